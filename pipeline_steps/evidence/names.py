"""What sets, methods and networks are called, and their order and colours on show."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd

from pipeline_steps.faces.skin import CLASSES
from pipeline_steps.naming import EXTERNAL, REAL, UNTUNED, WILD, natural_key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.source import NOT_APPLICABLE, Source

# In the order in which tables and figures show them, which is the paper's.
ORDERED = {
    REAL: "Real",
    WILD: "In the wild",
    "sd21": "SD-2.1",
    "sdxl": "SD-XL",
    NOT_APPLICABLE: "–",
    "base": "Base",
    "complex": "Complex",
    "fg2025": "FG 2025",
    UNTUNED: "–",
    "dreambooth": "DreamBooth",
    "portraitbooth": "PortraitBooth",
    "idbooth": "ID-Booth",
    "facefusion": "Face Fusion",
    "id3": "ID³",
    "lfw": "LFW",
    "agedb_30": "AgeDB-30",
    "calfw": "CA-LFW",
    "cfp_fp": "CFP-FP",
    "cplfw": "CP-LFW",
    "plain": "Plain",
    "age_gap": "Age gap",
    "cross_age": "Cross-age",
    "frontal_profile": "Frontal-profile",
    "cross_pose": "Cross-pose",
}
SKIN = [name for _, name in CLASSES]
# All others come after, in natural order.
LABELS = ORDERED | {
    "demo": "Demo",
    "inception_v3": "Inception-v3",
    "clip_l14_336": "CLIP ViT-L/14-336",
    "clip_prompts": "CLIP ViT-L/14-336",
    "dinov2_l14": "DINOv2 ViT-L/14",
    "arcface_r100": "ArcFace r100",
    "dlib_resnet": "dlib",
    "facenet_vggface2": "FaceNet (VGGFace2)",
    "crfiqa": "CR-FIQA",
    "sixdrepnet": "6DRepNet",
    "landmark_pose": "solvePnP on five landmarks",
    "demo_recogniser": "demo recogniser",
    "demo_recogniser_b": "second demo recogniser",
    "demo_attributes": "demo attributes",
    "demo_quality": "demo quality",
    "demo_prompts": "demo attributes",
    "validation": "Held-out set",
    EXTERNAL: "External sets",
    "vgg2_fp": "VGG2-FP",
}
# Okabe and Ito (2008): told apart with any colour vision, and in this order by lightness too.
COLOURS = {
    UNTUNED: "#8c8c8c",
    "dreambooth": "#E69F00",
    "portraitbooth": "#009E73",
    "idbooth": "#0072B2",
    "facefusion": "#D55E00",
    "id3": "#CC79A7",
}
SPARE_COLOURS = ("#56B4E9", "#000000", "#B8A900")
SETTING = ("base_model", "prompts")  # within which methods are compared
SETS = (*SETTING, "method")  # columns that name a set of images, in sorting order
WORST_TO_BEST = "worst / best"  # row of ratios between groups of people
_PLACES = {name: place for place, name in enumerate([*ORDERED, *SKIN])}
_PLACES[WORST_TO_BEST] = len(_PLACES) + 1  # after all names


class Names:
    """Display names: the built-in ones, and those that a study adds or replaces.

    Attributes:
        guide: The recogniser in the losses, guidance or gate that made images, "" where none was.
    """

    def __init__(self, labels: Mapping[str, str] | None = None, guide: str = "") -> None:
        self._labels = {**LABELS, **(labels or {})}
        self.guide = guide

    @classmethod
    def of(cls, frozen: Frozen[Any]) -> Names:
        """Names of a study, from a frozen configuration with labels."""
        entry = frozen.weights.get("recogniser")
        return cls(frozen.settings.labels, entry.name if entry else "")

    def __call__(self, key: str) -> str:
        """The display name of `key`; a key that has none is shown as it is."""
        return self._labels.get(key, key)

    def method(self, key: str) -> str:
        """A method's name where the untuned model needs a word and tables have a dash."""
        return UNTUNED if key == UNTUNED else self(key)

    def variant(self, source: Source) -> str:
        """`SD-2.1, Base, ID-Booth`; a reference set's own name."""
        if source.is_reference or source.is_external:
            return self(source.base_model if source.is_reference else source.method)
        return f"{self(source.base_model)}, {self(source.prompts)}, {self.method(source.method)}"


def order_key(key: object) -> tuple[Any, ...]:
    """Sort key of names: that of `ORDERED`, then natural order."""
    name = str(key)
    return (_PLACES.get(name, len(_PLACES)), natural_key(name))


def source_key(source: Source) -> tuple[Any, ...]:
    """Sort key of sets of images: base model, then prompts, then method, as in the tables."""
    return tuple(order_key(source.columns[column]) for column in SETS)


def by_setting(sources: Iterable[Source]) -> dict[tuple[str, str], list[Source]]:
    """Variants of each (base model, prompts), all in the order in which they are shown."""
    found: dict[tuple[str, str], list[Source]] = {}
    for source in sorted(sources, key=source_key):
        found.setdefault((source.base_model, source.prompts), []).append(source)
    return found


def sorted_groups(
    frame: pd.DataFrame, keys: Sequence[Hashable]
) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows by key, in the order in which they are shown."""
    found = [(tuple(map(str, key)), rows) for key, rows in frame.groupby(list(keys), sort=False)]
    return sorted(found, key=lambda item: [order_key(part) for part in item[0]])


def competes(method: str) -> bool:
    """Whether a method is ranked: reference sets and the untuned model are there to compare."""
    return method not in (UNTUNED, NOT_APPLICABLE)


def colours_of(methods: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Colour of each method, a study's own first; those without one get the spare ones in turn."""
    known, spare = {**COLOURS, **own}, cycle(SPARE_COLOURS)
    return {method: known.get(method) or next(spare) for method in methods}
