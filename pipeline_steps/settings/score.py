"""Settings of the score step: which extractor feeds which metric, and the metrics' constants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline_steps.settings.base import Section

SCORE_KINDS = ("quality", "identity", "pose")


class QualitySettings(Section):
    """Set metrics against the reference sets (the paper's Table 1)."""

    frechet_extractor: str = Field(
        default="inception_v3",
        description="Features of the Fréchet distance and of the kernel distance. Only with "
        "inception_v3 are they the FID and the KID.",
    )
    cmmd_extractor: str = Field(default="clip_l14_336", description="Features of the CMMD.")
    prdc_extractor: str = Field(
        default="inception_v3",
        description="Features of precision, recall, density, coverage, Vendi score and AuthPct.",
    )
    face_quality_extractor: str = Field(
        default="crfiqa", description="Predictor of the face image quality, one number per image."
    )
    k: int = Field(
        default=3,
        ge=1,
        description="Neighbours that span a manifold; 3 in Kynkäänniemi et al., 5 in FG 2025.",
    )
    cmmd_sigma: float = Field(
        default=10.0,
        gt=0,
        description="Bandwidth of the CMMD's Gaussian kernel, on features of length 1 (Jayasumana "
        "et al., CVPR 2024).",
    )
    cmmd_scale: float = Field(
        default=1000.0, gt=0, description="Factor by which the CMMD is multiplied, as published."
    )
    kd_subsets: int = Field(
        default=100, ge=1, description="Subsets over which the kernel distance is averaged."
    )
    kd_subset_size: int = Field(
        default=1000,
        ge=2,
        description="Images of either set in such a subset; smaller sets are taken whole.",
    )
    fd_infinity: bool = Field(
        default=False,
        description="Extrapolate the Fréchet distance to infinitely many images (column fd_inf); "
        "costs 15 distances, and means something only with more images than features.",
    )
    equal_n: bool = Field(
        default=True,
        description="Compare sets of equal size by a seeded draw from the larger one; the Fréchet "
        "distance depends on n.",
    )
    max_images: int | None = Field(
        default=None,
        ge=2,
        description="At most so many images of each set, which makes variants comparable that lost "
        "different numbers of faces; null: all.",
    )
    replicates: int = Field(
        default=50,
        ge=0,
        description="Interval of the Fréchet distance: people are left out one by one, or in so "
        "many groups where there are more of them. Each costs one distance; 0: no interval.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the intervals.")


class IdentitySettings(Section):
    """Genuine and impostor similarity (the paper's Table 2)."""

    recognisers: tuple[str, ...] = Field(
        default=("arcface_r100",),
        min_length=1,
        description="Recognisers that judge, one row each. Name an independent one beside the one "
        "used in training: a judge that trained the images is no neutral judge.",
    )
    impostors: Literal["all", "equal"] = Field(
        default="all",
        description="Impostor pairs: all of them, or as many as genuine ones by a seeded draw. The "
        "paper draws; all pairs estimate the same numbers without the draw's noise.",
    )
    replicates: int = Field(
        default=1000,
        ge=0,
        description="Bootstrap replicates over identities, for intervals of the differences "
        "between methods; 0: none.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the intervals.")


class PoseSettings(Section):
    """Spread of the head pose."""

    extractor: str = Field(default="sixdrepnet", description="Estimator of pitch, yaw and roll.")


class ScoreSettings(Section):
    """How sets of images are scored; one part per kind of score."""

    quality: QualitySettings = Field(default=QualitySettings(), description="Kind quality.")
    identity: IdentitySettings = Field(default=IdentitySettings(), description="Kind identity.")
    pose: PoseSettings = Field(default=PoseSettings(), description="Kind pose.")

    def extractors(self, kind: str) -> tuple[str, ...]:
        """Names of the extractors whose features one of ``SCORE_KINDS`` needs, each once."""
        quality = self.quality
        names = {
            "quality": (
                quality.frechet_extractor,
                quality.cmmd_extractor,
                quality.prdc_extractor,
                quality.face_quality_extractor,
            ),
            "identity": self.identity.recognisers,
            "pose": (self.pose.extractor,),
        }[kind]
        return tuple(dict.fromkeys(names))
