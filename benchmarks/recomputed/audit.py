"""The counts and verdicts of the identity audit, written out once more for `recompute.py`.

Definitions: docs/evidence.md, "The identity audit".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats
from scipy.ndimage import gaussian_filter

from recomputed.images import Images
from recomputed.sets import lengths_one

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
Faces = tuple[Images, Array]  # a set of images and their embeddings [n, d]


@dataclass(frozen=True)
class Consented:
    """The photographs, and the thresholds that follow from them.

    Attributes:
        people: whose each photograph is [n].
        rows: embeddings of length 1 [n, d].
        photographs: of each person, uint8 [n, 112, 112, 3].
        windows: of each person, all shifts of all photographs, a row each.
        wild: embeddings of the reference set, or None.
        image, person, search, pixel: the thresholds; NaN where there is none.
    """

    people: Array
    rows: Array
    photographs: dict[str, Array]
    windows: dict[str, Array]
    wild: Array | None
    image: float
    person: float
    search: float
    pixel: float


def consented(settings: Row, photographs: Faces, wild: Faces | None = None) -> Consented:
    """Thresholds from photographs whose people are known."""
    images, rows = photographs[0], lengths_one(photographs[1])
    owner = np.array(images.people)
    names = sorted(set(images.people))
    everybody = rows @ rows.T
    pairs = np.triu(owner[:, None] != owner[None, :], k=1)
    image = lowest_threshold(everybody[pairs], settings["fmr"])
    means = np.stack([everybody[:, owner == name].mean(axis=1) for name in names], axis=1)
    others = owner[:, None] != np.array(names)[None, :]
    person = lowest_threshold(means[others], settings["fmr"])
    strangers, search = None, math.nan
    if wild is not None:
        strangers = lengths_one(wild[1])
        search = lowest_threshold((rows @ strangers.T).max(axis=1), settings["search_rate"])
        search = max(image, search)
    nearest, windows, pictures = [], {}, {}
    for name in names:
        pictures[name] = np.stack([images.pixels(int(i)) for i in np.flatnonzero(owner == name)])
        patches = [band_passed(picture) for picture in pictures[name]]
        shifted = [shifts(patch) for patch in patches]
        windows[name] = np.concatenate(shifted)
        for i, patch in enumerate(patches):
            rest = [shifted[j] for j in range(len(patches)) if j != i]
            if rest:
                nearest.append(float((np.concatenate(rest) @ middle(patch)).max()))
    pixel = math.nan
    if nearest:
        pixel = 1 - settings["copy_ratio"] * float(np.quantile(1 - np.array(nearest), 0.01))
    return Consented(owner, rows, pictures, windows, strangers, image, person, search, pixel)


def audit_row(settings: Row, generated: Faces, known: Consented) -> Row:
    """Counts and verdicts of one variant."""
    images, shown = generated[0], lengths_one(generated[1])
    theirs, owner, meant = known.rows, known.people, np.array(images.people)
    image, person, search = known.image, known.person, known.search
    people = sorted(set(owner.tolist()))
    everybody = theirs @ theirs.T

    # Swaps.
    to_people = np.stack([(shown @ theirs[owner == p].T).mean(axis=1) for p in people], axis=1)
    shows = []
    for row, name in zip(to_people, meant, strict=True):
        best = int(row.argmax())
        who = "own" if people[best] == name else "other"
        shows.append(who if row[best] >= person else "nobody")
    swapped = 0
    for name in set(images.people):
        mean = to_people[meant == name].mean(axis=0)
        swapped += people[int(mean.argmax())] != name and mean.max() >= person

    # Collisions.
    collisions = alike = 0
    for one, two in combinations(sorted(set(images.people)), 2):
        if np.median(shown[meant == one] @ shown[meant == two].T) >= image:
            collisions += 1
            both = one in people and two in people
            alike += both and np.median(everybody[owner == one][:, owner == two]) >= image

    # Copies: of a photograph of the person meant, or of the most similar person.
    to_photographs = (shown @ theirs.T).max(axis=1)
    copies = 0
    for i, name in enumerate(meant):
        if to_photographs[i] < image:
            continue
        nearest = {str(name), people[int(to_people[i].argmax())]}
        own = middle(band_passed(images.pixels(i)))
        found = [float((known.windows[p] @ own).max()) for p in nearest if p in known.windows]
        copies += bool(found) and max(found) >= known.pixel

    # Pixels against the closest photograph of the person meant.
    agreement = [
        agreement_with(images.pixels(i), known.photographs[str(name)])
        for i, name in enumerate(meant)
        if str(name) in known.photographs
    ]

    # Strangers.
    resembling, identities = 0, 0
    if known.wild is not None:
        to_wild = shown @ known.wild.T
        resembling = int((to_wild.max(axis=1) >= search).sum())
        for name in set(images.people):
            identities += np.median(to_wild[meant == name], axis=0).max() >= search
    n = len(meant)
    counts: Row = {
        "n_images": n,
        "n_identities": len(set(images.people)),
        "fmr": settings["fmr"],
        "image_threshold": image,
        "person_threshold": person,
        "search_threshold": search,
        "pixel_threshold": known.pixel,
        "own_share": shows.count("own") / n,
        "nobody_share": shows.count("nobody") / n,
        "swapped_images": shows.count("other"),
        "swapped_images_by_chance": settings["fmr"] * n * (len(people) - 1),
        "swapped_identities": int(swapped),
        "collisions": collisions,
        "collisions_of_photographs": int(alike),
        "copies": int(copies),
        "psnr": float(
            np.mean([psnr for psnr, _ in agreement if math.isfinite(psnr)] or [math.nan])
        ),
        "ssim": float(np.mean([ssim for _, ssim in agreement] or [math.nan])),
        "strangers": resembling,
        "strangers_by_chance": settings["search_rate"] * n if known.wild is not None else math.nan,
        "stranger_identities": int(identities),
    }
    return counts | verdicts(
        counts, judged=not math.isnan(known.pixel), searched=known.wild is not None
    )


def verdicts(counts: Row, judged: bool, searched: bool) -> Row:
    """pass, look or fail of each check, and the worst of them."""
    n = counts["n_images"]
    by_chance = stats.binom.ppf(0.99, n, counts["strangers_by_chance"] / n)
    told_apart = counts["collisions"] - counts["collisions_of_photographs"]
    graded = {
        "swaps": (counts["swapped_identities"], counts["swapped_images"]),
        "collisions": (told_apart, counts["collisions"]),
        "copies": (counts["copies"], not judged),
        "strangers": (
            counts["stranger_identities"],
            not searched or counts["strangers"] > by_chance,
        ),
    }
    words = {
        check: "fail" if fails else "look" if looks else "pass"
        for check, (fails, looks) in graded.items()
    }
    worst = next(word for word in ("fail", "look", "pass") if word in words.values())
    return {f"{check}_verdict": word for check, word in words.items()} | {"verdict": worst}


def agreement_with(image: Array, photographs: Array) -> tuple[float, float]:
    """PSNR (dB) and SSIM against the photograph of the smallest squared error.

    SSIM: Wang et al., 2004, by 7 x 7 means, sample covariances, and the mean over all windows that
    lie in the image and over the channels.
    """
    a = image.astype(np.float64)
    errors = [((a - photograph) ** 2).mean() for photograph in photographs]
    error = min(errors)
    b = photographs[errors.index(error)].astype(np.float64)
    psnr = 20 * math.log10(255) - 10 * math.log10(error) if error else math.inf

    def mean(x: Array) -> Array:
        return np.asarray(sliding_window_view(x, (7, 7), axis=(0, 1)).mean(axis=(-2, -1)))

    m, n = mean(a), mean(b)
    sample = 49 / 48
    va, vb, vab = (sample * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b)))
    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * m * n + c) * (2 * vab + d) / ((m**2 + n**2 + c) * (va + vb + d))
    return psnr, float(ssim.mean())


def lowest_threshold(scores: Array, rate: float) -> float:
    """Lowest threshold that at most this share of the scores reaches: just above one of them."""
    candidates = np.unique(scores)[::-1]
    lowest = candidates[0]
    for score in candidates:
        if (scores > score).sum() > int(rate * len(scores)):
            break
        lowest = score
    return float(np.nextafter(lowest, np.inf))


def band_passed(image: Array) -> Array:
    """Brightness (ITU-R BT.601) between blurs of 1 and 8 pixels, [112, 112]."""
    red, green, blue = (image[:, :, c].astype(np.float64) for c in range(3))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.asarray(gaussian_filter(bright, 1.0) - gaussian_filter(bright, 8.0))


def middle(patch: Array) -> Array:
    """The middle of a patch at half size, with mean 0 and length 1."""
    return _standard(patch[8:104, 8:104])


def shifts(patch: Array) -> Array:
    """The same of the patch and its mirror image, moved by up to two pixels, [50, 2304]."""
    rows = []
    for pixels in (patch, patch[:, ::-1]):
        for down in range(-2, 3):
            for right in range(-2, 3):
                rows.append(_standard(pixels[8 + down : 104 + down, 8 + right : 104 + right]))
    return np.stack(rows)


def _standard(x: Array) -> Array:
    halved = (x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]).ravel() / 4
    return lengths_one((halved - halved.mean())[None])[0]
