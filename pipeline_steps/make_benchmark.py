"""Make a verification benchmark of your own photographs, in InsightFace's .bin format.

In:  photographs (--images): a folder or an archive; and either a CSV of pairs (--pairs) with the
     columns first, second and same (true or false), whose files lie in --images; or nothing else,
     and pairs are drawn: the photographs' folders then say who is who.
Out: --out, a .bin file of 112x112 faces, which a study names under benchmarks, and which
     InsightFace's own reader opens; beside it <name>.csv, a row for every pair with its kind, and
     for what was left out with the reason.
     Drawn pairs are of three kinds: genuine, in turn from every person; impostor, of two people by
     chance; hard, of two people and the most alike by a recogniser (--recogniser). They come in
     random order, since the protocol has ten folds of consecutive pairs.

Source: the format and protocol of InsightFace; pairs as in Huang et al., "Labeled Faces in the
Wild", 2007, with hard impostors as in Deng, Hu, Zhang, Chen and Guo, "Fine-grained face
verification: FGLFW database", Pattern Recognition 66, 2017.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.extractors import load_extractor, unmarked
from pipeline_steps.identities.participants import YES_OR_NO
from pipeline_steps.identities.photographs import Photograph, list_photographs
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.tables import read_csv, write_csv
from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.recognition.benchmarks import MAX_PAIRS, write_bin
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.registry import pick, read_models

COLUMNS = ("first", "second", "same", "kind", "kept", "reason")
ROWS_AT_ONCE = 1024

Faces = dict[str, NDArray[np.uint8]]
Pair = tuple[str, str]
Drawn = list[tuple[Pair, str]]


def run(
    *,
    images: Path,
    out: Path,
    pairs: Path | None = None,
    genuine: int = 3000,
    impostor: int = 3000,
    hard: int = 0,
    recogniser: str | None = None,
    seed: int = 0,
    device: str,
) -> list[dict[str, Any]]:
    """Align the photographs, choose pairs, and write both files.

    Args:
        images: Folder or archive of the photographs.
        out: File to write, .bin.
        pairs: CSV of pairs; None: they are drawn.
        genuine: Genuine pairs to draw; fewer where there are no more.
        impostor: Impostor pairs to draw by chance.
        hard: Impostor pairs to choose by likeness.
        recogniser: Who says how alike, by its name in config/models.yaml. Don't test it, or what
            was trained by it, on the pairs that it chose.
        seed: Of the draw.
        device: "cpu" or "cuda".

    Returns:
        The rows of the CSV.

    Raises:
        StepError: no such photographs or pairs, too many pairs, or none left.
    """
    if hard and (pairs or recogniser is None):
        raise StepError("--hard chooses among drawn pairs by a --recogniser: name one, no --pairs")
    listing = {_name(item): item for item in list_photographs(images).photographs}
    given = _given(pairs) if pairs else []
    wanted = {name for pair, _ in given for name in pair} if pairs else listing.keys()
    faces, reasons = aligned({n: item for n, item in listing.items() if n in wanted}, device)
    reasons |= dict.fromkeys(wanted - listing.keys(), "no such photograph")
    if pairs:
        rows = [(pair, "genuine" if same else "impostor") for pair, same in given]
    else:
        owners = {name: listing[name].where.owner for name in faces if listing[name].where.folder}
        reasons |= dict.fromkeys(faces.keys() - owners.keys(), "in nobody's folder")
        rng = numpy_generator(seed, "make_benchmark")
        rows = drawn_genuine(owners, genuine, rng)
        rows += drawn_impostors(owners, impostor, rng)
        if hard and recogniser is not None:
            models = read_models(PROJECT_ROOT / "config/models.yaml")
            entry = pick(models, recogniser, "--recogniser", "recogniser")
            names = sorted(owners)
            judge = load_extractor(entry, device)
            rounds = [names[start : start + 64] for start in range(0, len(names), 64)]
            found = [judge.extract(unmarked([faces[name] for name in part])) for part in rounds]
            embeddings = np.concatenate(found)
            taken = {frozenset(pair) for pair, _ in rows}
            rows += hardest(names, [owners[n] for n in names], embeddings, hard, taken)
        rows = [rows[place] for place in rng.permutation(len(rows))]
    left_out = [name for pair, _ in rows for name in pair if name in reasons]
    kept = [(pair, kind) for pair, kind in rows if not reasons.keys() & {*pair}]
    same = [kind == "genuine" for _, kind in kept]
    if not kept or len(kept) > MAX_PAIRS:
        raise StepError(f"{images} gives {len(kept)} pairs; a benchmark has 1 to {MAX_PAIRS}")
    write_bin(out, np.stack([faces[name] for pair, _ in kept for name in pair]), same)
    told = [_row(pair, kind, reasons) for pair, kind in rows]
    told += [
        {"first": name, "kept": False, "reason": reason}
        for name, reason in sorted(reasons.items())
        if name not in left_out
    ]
    write_csv(out.with_suffix(".csv"), told, COLUMNS)
    get_logger("make_benchmark").info(
        "%d pairs (%d of one person) written to %s; %d photographs left out",
        *(len(kept), sum(same), out, len(reasons)),
    )
    return told


def aligned(photographs: Mapping[str, Photograph], device: str) -> tuple[Faces, dict[str, str]]:
    """The largest face of each photograph, and why others have none."""
    faces: Faces = {}
    reasons: dict[str, str] = {}
    detector = Detector(device)
    for name, item in progress(photographs.items(), description="align", unit="image"):
        try:
            image = read_image(item.read())
        except BadImage as error:
            reasons[name] = error.reason
            continue
        (face,) = detector.detect([image], padding=0.5)
        if face is None:
            reasons[name] = "no face"
        else:
            faces[name] = align_to_template(image, face.landmarks)
    return faces, reasons


def drawn_genuine(owners: Mapping[str, str], n: int, rng: np.random.Generator) -> Drawn:
    """Up to n pairs of one person each, as many of every person as there are."""
    of: dict[str, list[str]] = defaultdict(list)
    for name in sorted(owners):
        of[owners[name]].append(name)
    own = [list(combinations(names, 2)) for names in of.values()]
    shuffled = [[pairs[place] for place in rng.permutation(len(pairs))[:n]] for pairs in own]
    in_turn = [pair for turn in zip_longest(*shuffled) for pair in turn if pair]
    return [(pair, "genuine") for pair in in_turn[:n]]


def drawn_impostors(owners: Mapping[str, str], n: int, rng: np.random.Generator) -> Drawn:
    """Up to n different pairs of two people."""
    names = sorted(owners)
    sizes = np.unique([owners[name] for name in names], return_counts=True)[1]
    possible = (len(names) ** 2 - int(np.square(sizes).sum())) // 2
    if possible <= 2 * n:  # too few to draw again and again
        every = [pair for pair in combinations(names, 2) if owners[pair[0]] != owners[pair[1]]]
        return [(every[place], "impostor") for place in rng.permutation(len(every))[:n]]
    found: dict[Pair, None] = {}
    while len(found) < n:
        one, other = sorted(rng.integers(len(names), size=2).tolist())
        if owners[names[one]] != owners[names[other]]:
            found[names[one], names[other]] = None
    return [(pair, "impostor") for pair in found]


def hardest(
    names: Sequence[str],
    people: Sequence[str],
    embeddings: NDArray[np.float32],
    n: int,
    taken: set[frozenset[str]],
) -> Drawn:
    """Of every face and the one most like it of another person, the n most alike pairs.

    Args:
        names, people, embeddings: of each face; embeddings are unit rows [k, d].
        n: how many.
        taken: pairs that are there already.
    """
    owners = np.asarray(people)
    alike: dict[frozenset[str], float] = {}
    for start in range(0, len(names), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores = embeddings[rows] @ embeddings.T
        scores[owners[rows, None] == owners[None]] = -np.inf
        for row, column in enumerate(scores.argmax(axis=1)):
            pair = frozenset({names[start + row], names[column]})
            if np.isfinite(scores[row, column]) and pair not in taken:
                alike[pair] = float(scores[row, column])
    order = sorted(alike, key=lambda pair: (-alike[pair], sorted(pair)))
    return [((min(pair), max(pair)), "hard") for pair in order[:n]]


def _given(path: Path) -> list[tuple[Pair, bool]]:
    """Pairs of a CSV, and whether they are one person's."""
    found = []
    table = read_csv(path, ("first", "second", "same"), texts=True)
    for line, row in enumerate(table.to_dict("records"), start=2):
        word = row["same"].strip().lower()
        if word not in YES_OR_NO:
            raise StepError(f"{path}, line {line}: same is {row['same']!r}, expected true or false")
        found.append(((row["first"].strip(), row["second"].strip()), YES_OR_NO[word]))
    return found


def _name(photograph: Photograph) -> str:
    """Path of a photograph inside its source."""
    return photograph.source.partition("/")[2]


def _row(pair: Pair, kind: str, reasons: Mapping[str, str]) -> dict[str, Any]:
    why = "; ".join(f"{name}: {reasons[name]}" for name in dict.fromkeys(pair) if name in reasons)
    row = {"first": pair[0], "second": pair[1], "same": kind == "genuine", "kind": kind}
    return row | {"kept": not why, "reason": why}


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
