"""Rows of the quality and pose tables, from features of sets of images.

A metric of quality.csv is registered once, as an entry of `MEASURES`: its columns, its number, and
how the table of further measures shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline_steps.evidence.scores.sets import NO_IMAGE, ImageSet, Rows
from pipeline_steps.metrics.arrays import Undefined, feature_matrix, rows_of
from pipeline_steps.metrics.frechet import (
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_interval,
)
from pipeline_steps.metrics.mmd import cmmd, kernel_distance
from pipeline_steps.metrics.prdc import authenticity_percentage, precision_recall
from pipeline_steps.metrics.vendi import vendi_score, vendi_within
from pipeline_steps.naming import REASONS, VARIANT
from pipeline_steps.study.settings.evidence import QualitySettings

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Sets:
    """What a measure may look at."""

    real: ImageSet  # as it is compared (see `equal_sizes`)
    synthetic: ImageSet
    whole: ImageSet  # *all* images of the synthetic set, for what needs no reference
    settings: QualitySettings
    rng: Callable[[str], np.random.Generator]  # by purpose: one more changes no other one's draws

    def pair(self, role: str) -> tuple[Rows, Rows]:
        """Features of both sets by the extractor that the settings name for a role."""
        name = self.extractor(role)
        return self.real.features[name], self.synthetic.features[name]

    def extractor(self, role: str) -> str:
        """The extractor that the settings name for a role."""
        return str(getattr(self.settings, f"{role}_extractor"))


@dataclass(frozen=True)
class Shown:
    """A column of the table of further measures; `compares`: with a reference set, not alone."""

    title: str
    better: Literal["lower", "higher"]
    digits: int = 3
    compares: bool = True


@dataclass(frozen=True)
class Measure:
    """A metric on sets of images: its columns of quality.csv, with how they are shown if they are,
    and the value of each.
    """

    columns: Mapping[str, Shown | None]
    numbers: Callable[[Sets], Numbers]


def measure(column: str, number: Callable[[Sets], float], shown: Shown | None = None) -> Measure:
    """A metric that is one number."""
    return Measure({column: shown}, lambda sets: {column: number(sets)})


def _frechet(sets: Sets) -> Numbers:
    pair, settings = sets.pair("frechet"), sets.settings
    interval = frechet_interval(
        *pair,
        sets.real.identities,
        sets.synthetic.identities,
        groups=settings.replicates,
        rng=sets.rng("interval"),
        level=settings.confidence,
    )
    return {"fid": frechet_distance(*pair), "fid_low": interval.low, "fid_high": interval.high}


def _cmmd(sets: Sets) -> float:
    settings = sets.settings
    return cmmd(*sets.pair("cmmd"), sigma=settings.cmmd_sigma, scale=settings.cmmd_scale)


def _face_quality(sets: Sets) -> Numbers:
    features = sets.whole.features[sets.extractor("face_quality")]
    quality = feature_matrix(features, name="quality")
    return {"face_quality_mean": float(quality.mean()), "face_quality_sd": float(quality.std())}


def _frechet_at_infinity(sets: Sets) -> float:
    if not sets.settings.fd_infinity:
        return float("nan")
    return frechet_distance_at_infinity(*sets.pair("frechet"), rng=sets.rng("extrapolation"))


def _kernel_distance(sets: Sets) -> Numbers:
    distance = kernel_distance(
        *sets.pair("frechet"),
        subsets=sets.settings.kd_subsets,
        subset_size=sets.settings.kd_subset_size,
        rng=sets.rng("kernel distance"),
    )
    return {"kd": distance.mean, "kd_sd": distance.sd}


def _prompt_score(sets: Sets) -> float:
    """Mean over all images whose prompts ask for anything; NaN where none does."""
    rows = sets.whole.features.get(sets.extractor("prompt"), np.empty(0))
    asked = rows[rows >= 0]  # below: the prompt asks for nothing that is read
    return float(asked.mean(dtype=np.float64)) if len(asked) else float("nan")


def _vendi_within(sets: Sets) -> float:
    return vendi_within(sets.whole.features[sets.extractor("prdc")], sets.whole.identities)


MEASURES = (
    Measure(dict.fromkeys(("fid", "fid_low", "fid_high")), _frechet),
    measure("cmmd", _cmmd),
    Measure(dict.fromkeys(("face_quality_mean", "face_quality_sd")), _face_quality),
    measure("fd_inf", _frechet_at_infinity, Shown("Fréchet, n → ∞", "lower")),
    Measure({"kd": Shown("KD", "lower"), "kd_sd": None}, _kernel_distance),
    Measure(
        {
            "precision": None,
            "recall": None,
            "density": Shown("Density", "higher"),
            "coverage": Shown("Coverage", "higher"),
        },
        lambda sets: precision_recall(*sets.pair("prdc"), k=sets.settings.k),
    ),
    measure(
        "authpct",
        lambda sets: authenticity_percentage(*sets.pair("prdc")),
        Shown("AuthPct", "higher", 1),
    ),
    # Of the images drawn for that comparison.
    measure("vendi", lambda sets: vendi_score(sets.pair("prdc")[1]), Shown("Vendi", "higher", 2)),
    measure(
        "vendi_within_identity",
        _vendi_within,
        Shown("Vendi per identity", "higher", 2, compares=False),
    ),
    measure("prompt_score", _prompt_score, Shown("Prompt score", "higher", 2, compares=False)),
)
"""The metrics on sets of images, in the order in which they are shown."""

SHOWN = {
    column: shown
    for entry in MEASURES
    for column, shown in entry.columns.items()
    if shown is not None
}
ROLES = ("frechet", "cmmd", "prdc", "face_quality", "prompt")
# The columns of the paper's table stand first.
_FIRST = ("fid", "fid_low", "fid_high", "cmmd", "precision", "recall", "density", "coverage")
_MEASURED = dict.fromkeys((*_FIRST, *(column for entry in MEASURES for column in entry.columns)))
QUALITY_COLUMNS = (
    *(*VARIANT, "reference", "n_synthetic", "n_real", *_MEASURED, "extractors"),
    REASONS,
)
ANGLES = ("pitch", "yaw", "roll")
POSE_COLUMNS = (
    *VARIANT,
    *(f"{angle}_{number}" for angle in ANGLES for number in ("mean", "sd", "within_identity_sd")),
    *("n", "extractor", REASONS),
)


def equal_sizes(
    real: ImageSet,
    synthetic: ImageSet,
    settings: QualitySettings,
    real_rng: np.random.Generator,
    synthetic_rng: np.random.Generator,
) -> tuple[ImageSet, ImageSet]:
    """Draw both sets down to the smaller one's size and `max_images`, without replacement."""
    limit = settings.max_images or max(len(real), len(synthetic))
    smaller = min(len(real), len(synthetic), limit)
    real_size = smaller if settings.equal_n else min(len(real), limit)
    synthetic_size = smaller if settings.equal_n else min(len(synthetic), limit)
    return real.drawn(real_size, real_rng), synthetic.drawn(synthetic_size, synthetic_rng)


def halves(images: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Two random halves of equal size; of an odd number one image is left out."""
    order = rng.permutation(len(images))
    half = len(images) // 2
    return images.take(np.sort(order[:half])), images.take(np.sort(order[half : 2 * half]))


def quality_row(sets: Sets) -> dict[str, Any]:
    """The columns from n_synthetic to extractors of one synthetic set against one reference.

    `fid` is the Fréchet distance of the extractor that `extractors` names under frechet; it is the
    FID only for inception_v3. What cannot be computed is left out, with its reason.
    """
    row: dict[str, Any] = {"n_synthetic": len(sets.synthetic), "n_real": len(sets.real)}
    missing: dict[str, list[str]] = {}
    for entry in MEASURES:
        try:
            row |= entry.numbers(sets)
        except Undefined as error:
            missing.setdefault(str(error), []).extend(entry.columns)
    told = "; ".join(f"{', '.join(columns)}: {why}" for why, columns in missing.items())
    row[REASONS] = told if len(sets.whole) else NO_IMAGE
    return row | {"extractors": " ".join(f"{role}={sets.extractor(role)}" for role in ROLES)}


def pose_row(angles: Rows, identities: Sequence[str]) -> dict[str, float | str]:
    """Mean, sd, and the mean over identities of the sd within each; NaN where none has two images.

    Args:
        angles: pitch, yaw and roll in degrees [n, 3].
        identities: identity per row [n].

    Returns:
        The columns of the angles; without an image only the reason.

    Raises:
        ValueError: `angles` is not [n, 3].
    """
    values = np.asarray(angles, dtype=np.float64)
    if len(values) == 0:
        return {REASONS: NO_IMAGE}
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"head pose must be [n, 3], not {values.shape}")
    spreads = [values[own].std(axis=0) for own in rows_of(identities).values() if len(own) > 1]
    within = np.mean(spreads, axis=0) if spreads else np.full(3, np.nan)
    numbers = {"mean": values.mean(axis=0), "sd": values.std(axis=0), "within_identity_sd": within}
    return {
        f"{angle}_{name}": float(number[column])
        for column, angle in enumerate(ANGLES)
        for name, number in numbers.items()
    }
