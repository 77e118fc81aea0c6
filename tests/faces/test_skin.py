from __future__ import annotations

import numpy as np
import pytest
from skimage.color import lab2rgb

from pipeline_steps.faces.skin import skin_class, typology_angles


def face(lightness: float, yellow: float) -> np.ndarray:
    """An aligned face of one colour in CIELAB."""
    pixels = lab2rgb(np.full((112, 112, 3), (lightness, 12.0, yellow)))
    return np.round(pixels * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("lightness", "yellow", "name"),
    [
        (75.0, 14.0, "very light"),
        (67.0, 17.0, "light"),
        (62.0, 18.0, "intermediate"),
        (56.0, 19.0, "tan"),
        (45.0, 18.0, "brown"),
        (30.0, 14.0, "dark"),
    ],
)
def test_the_angle_is_its_definition_and_has_the_literatures_class(
    lightness: float, yellow: float, name: str
) -> None:
    (angle,) = typology_angles(face(lightness, yellow)[None])
    expected = np.degrees(np.arctan((lightness - 50.0) / yellow))
    assert angle == pytest.approx(expected, abs=1.5)  # colours have 8 bits
    assert skin_class(float(angle)) == name


def test_hair_or_a_shadow_over_one_region_changes_nothing() -> None:
    plain = face(62.0, 18.0)
    covered = plain.copy()
    covered[:45] = (30, 20, 15)  # hair over the forehead
    assert typology_angles(covered[None]) == pytest.approx(typology_angles(plain[None]), abs=1e-3)
