"""Rows of the score tables from features: arrays in, one dictionary per row out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.metrics.authenticity import authenticity_percentage
from pipeline_steps.metrics.frechet import frechet_distance, frechet_distance_at_infinity
from pipeline_steps.metrics.jackknife import frechet_interval
from pipeline_steps.metrics.kernel_distance import kernel_distance
from pipeline_steps.metrics.mmd import cmmd
from pipeline_steps.metrics.prdc import precision_recall
from pipeline_steps.metrics.vendi import vendi_score, vendi_within
from pipeline_steps.naming import VARIANT
from pipeline_steps.study.settings.evidence import QualitySettings

Rows = NDArray[np.float32]

QUALITY_COLUMNS = (
    *VARIANT,
    "reference",
    "n_synthetic",
    "n_real",
    "fid",
    "fid_low",
    "fid_high",
    "cmmd",
    "precision",
    "recall",
    "density",
    "coverage",
    "face_quality_mean",
    "face_quality_sd",
    "fd_inf",
    "kd",
    "kd_sd",
    "authpct",
    "vendi",
    "vendi_within_identity",
    "extractors",
)
IDENTITY_COLUMNS = (
    *VARIANT,
    "versus",
    "recogniser",
    "n_genuine",
    "n_impostor",
    "eer",
    "eer_low",
    "eer_high",
    "fmr100",
    "fmr1000",
    "impostor_mean",
    "impostor_sd",
    "genuine_mean",
    "genuine_sd",
    "fdr",
    "fdr_low",
    "fdr_high",
)
ANGLES = ("pitch", "yaw", "roll")
POSE_COLUMNS = (
    *VARIANT,
    *(f"{angle}_{number}" for angle in ANGLES for number in ("mean", "sd", "within_identity_sd")),
    "n",
    "extractor",
)
REPLICATE_COLUMNS = (
    *VARIANT,
    "versus",
    "recogniser",
    "identities_sha256",
    "n_identities",
    "replicate",
    "eer",
    "fdr",
    "genuine_mean",
)


@dataclass(frozen=True)
class ImageSet:
    """Features of one set of images by several extractors.

    Attributes:
        files: relative file names, one per image [n].
        identities: identity per image [n].
        features: extractor -> float32 [n, d].
    """

    files: list[str]
    identities: list[str]
    features: dict[str, Rows]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: NDArray[np.intp]) -> ImageSet:
        """The images at these rows."""
        return ImageSet(
            [self.files[row] for row in rows],
            [self.identities[row] for row in rows],
            {name: values[rows] for name, values in self.features.items()},
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
    return _draw(real, real_size, real_rng), _draw(synthetic, synthetic_size, synthetic_rng)


def halves(images: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
    """Two random halves of equal size; of an odd number one image is left out."""
    order = rng.permutation(len(images))
    half = len(images) // 2
    return images.take(np.sort(order[:half])), images.take(np.sort(order[half : 2 * half]))


def quality_row(
    real: ImageSet,
    synthetic: ImageSet,
    whole: ImageSet,
    settings: QualitySettings,
    rng: Callable[[str], np.random.Generator],
) -> dict[str, Any]:
    """Set metrics of one synthetic set against one reference.

    Args:
        real, synthetic: the sets as they are compared (see `equal_sizes`).
        whole: *all* images of the synthetic set, for what needs no reference.
        settings: extractors and constants.
        rng: purpose -> generator; a purpose more or less changes no other one's draws.

    Returns:
        The columns from n_synthetic to extractors. `fid` is the Fréchet distance of the extractor
        that `extractors` names under frechet; it is the FID only for inception_v3.
    """
    pair = _features(real, synthetic, settings.frechet_extractor)
    manifolds = _features(real, synthetic, settings.prdc_extractor)
    interval = frechet_interval(
        *pair,
        real.identities,
        synthetic.identities,
        groups=settings.replicates,
        rng=rng("interval"),
        level=settings.confidence,
    )
    kd = kernel_distance(
        *pair,
        subsets=settings.kd_subsets,
        subset_size=settings.kd_subset_size,
        rng=rng("kernel distance"),
    )
    infinity = float("nan")
    if settings.fd_infinity:
        infinity = frechet_distance_at_infinity(*pair, rng=rng("extrapolation"))
    quality = whole.features[settings.face_quality_extractor].astype(np.float64)
    extractors = {
        "frechet": settings.frechet_extractor,
        "cmmd": settings.cmmd_extractor,
        "prdc": settings.prdc_extractor,
        "face_quality": settings.face_quality_extractor,
    }
    return {
        "n_synthetic": len(synthetic),
        "n_real": len(real),
        "fid": frechet_distance(*pair),
        "fid_low": interval.low,
        "fid_high": interval.high,
        "cmmd": cmmd(
            *_features(real, synthetic, settings.cmmd_extractor),
            sigma=settings.cmmd_sigma,
            scale=settings.cmmd_scale,
        ),
        **precision_recall(*manifolds, k=settings.k),
        "face_quality_mean": float(quality.mean()),
        "face_quality_sd": float(quality.std()),
        "fd_inf": infinity,
        "kd": kd.mean,
        "kd_sd": kd.sd,
        "authpct": authenticity_percentage(*manifolds),
        "vendi": vendi_score(manifolds[1]),
        "vendi_within_identity": vendi_within(
            whole.features[settings.prdc_extractor], whole.identities
        ),
        "extractors": " ".join(f"{metric}={name}" for metric, name in extractors.items()),
    }


def _features(real: ImageSet, synthetic: ImageSet, extractor: str) -> tuple[Rows, Rows]:
    return real.features[extractor], synthetic.features[extractor]


def pose_row(angles: Rows, identities: Sequence[str]) -> dict[str, float]:
    """Mean, sd, and the mean over identities of the sd within each.

    Args:
        angles: pitch, yaw and roll in degrees [n, 3].
        identities: identity per row [n]; those with a single image have no spread and don't count.

    Returns:
        Nine columns; within_identity_sd is NaN where no identity has two images.

    Raises:
        ValueError: `angles` is not [n, 3].
    """
    values = np.asarray(angles, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 3 or len(values) == 0:
        raise ValueError(f"head pose must be [n, 3] with n >= 1, not {values.shape}")
    names, codes, counts = np.unique(
        np.asarray(identities, dtype=str), return_inverse=True, return_counts=True
    )
    spreads = [
        values[codes == index].std(axis=0) for index in range(len(names)) if counts[index] > 1
    ]
    within = np.mean(spreads, axis=0) if spreads else np.full(3, np.nan)
    row = {}
    for column, angle in enumerate(ANGLES):
        row[f"{angle}_mean"] = float(values[:, column].mean())
        row[f"{angle}_sd"] = float(values[:, column].std())
        row[f"{angle}_within_identity_sd"] = float(within[column])
    return row


def _draw(images: ImageSet, size: int, rng: np.random.Generator) -> ImageSet:
    if size >= len(images):
        return images
    return images.take(np.sort(rng.choice(len(images), size=size, replace=False)))
