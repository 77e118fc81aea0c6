"""Display names and the order in which tables and figures show things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_steps.naming import REFERENCES, UNTUNED, natural_key
from pipeline_steps.study.sources import NOT_APPLICABLE

LABELS = {
    "real": "Real",
    "wild": "In the wild",
    NOT_APPLICABLE: "–",
    UNTUNED: "–",
    "demo": "Demo",
    "sd21": "SD-2.1",
    "sdxl": "SD-XL",
    "dreambooth": "DreamBooth",
    "portraitbooth": "PortraitBooth",
    "idbooth": "ID-Booth",
    "base": "Base",
    "complex": "Complex",
    "fg2025": "FG 2025",
    "inception_v3": "Inception-v3",
    "clip_l14_336": "CLIP ViT-L/14-336",
    "dinov2_l14": "DINOv2 ViT-L/14",
    "arcface_r100": "ArcFace r100",
    "crfiqa": "CR-FIQA",
    "sixdrepnet": "6DRepNet",
    "landmark_pose": "solvePnP on five landmarks",
    "demo_recogniser": "demo recogniser",
    "demo_recogniser_b": "second demo recogniser",
    "demo_attributes": "demo attributes",
    "demo_quality": "demo quality",
    "lfw": "LFW",
    "agedb_30": "AgeDB-30",
    "calfw": "CA-LFW",
    "cfp_fp": "CFP-FP",
    "cplfw": "CP-LFW",
    "plain": "Plain",
    "cross_age": "Cross-age",
    "cross_pose": "Cross-pose",
    "frontal_profile": "Frontal-profile",
    "age_gap": "Age gap",
    "validation": "Held-out set",
    "vgg2_fp": "VGG2-FP",
}

# Everything not listed comes after what is, in natural order.
ORDER = (
    *REFERENCES,
    "sd21",
    "sdxl",
    NOT_APPLICABLE,
    "base",
    "complex",
    "fg2025",
    UNTUNED,
    "dreambooth",
    "portraitbooth",
    "idbooth",
    "lfw",
    "agedb_30",
    "calfw",
    "cfp_fp",
    "cplfw",
    "plain",
    "age_gap",
    "cross_age",
    "frontal_profile",
    "cross_pose",
)


class Names:
    """Display names: the built-in ones, and those that a study adds or replaces."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = {**LABELS, **(labels or {})}

    def __call__(self, key: str) -> str:
        """The display name of `key`; a key that has none is shown as it is."""
        return self._labels.get(key, key)


def order_key(key: str) -> tuple[Any, ...]:
    """Sort key of names: the paper's order first, then natural order."""
    known = ORDER.index(key) if key in ORDER else len(ORDER)
    return (known, natural_key(key))


def variant_key(base_model: str, prompts: str, method: str) -> tuple[Any, ...]:
    """Sort key of rows: base model, then prompts, then method, as in the paper's tables."""
    return (order_key(base_model), order_key(prompts), order_key(method))
