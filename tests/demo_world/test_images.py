"""Photographs for training: rendered once by all cores, opened again, and their crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.demo_world.pretraining import images
from pipeline_steps.demo_world.pretraining.images import (
    Photographs,
    face_crop,
    lightness,
    load,
    render,
    stretched_box,
)
from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.rendering.population import person, wild_nuisance
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE

WHAT = Photographs(seed=4, population="pretraining", people=4, each=1)
MARKS = np.array([[50.0, 54.0], [78.0, 54.0], [64.0, 70.0], [53.0, 84.0], [75.0, 84.0]])


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PEOPLE_PER_FILE", 2)
    monkeypatch.setattr(images, "RENDER_SIZE", 32)


def test_rendering_stops_when_asked_and_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PEOPLE_PER_FILE", 1)
    asked = iter((False, True))
    assert not render(tmp_path, WHAT, workers=1, over=lambda: next(asked, True))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert render(tmp_path, WHAT, workers=1, over=lambda: False)
    assert 0 < len(first) < 4
    assert len(list(tmp_path.iterdir())) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert not render(tmp_path / "elsewhere", WHAT, workers=1, over=lambda: True)


def test_facts_are_those_of_the_photographs(tmp_path: Path) -> None:
    for path, numbers in WHAT.files(tmp_path).items():
        images._write(path, numbers, WHAT)
    found = load(tmp_path, WHAT, "pictures", "landmarks", "identity", "place", "age", "skin")
    made = images.photograph_people(WHAT, range(3, 4))
    who, how = person(4, "pretraining", 3), wild_nuisance(4, "pretraining", 3, 0)
    photo = who.photograph(how, 32, 1)
    blocks = photo.image.reshape(16, 2, 16, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(found["pictures"][3], np.floor(blocks + 0.5))
    np.testing.assert_allclose(found["landmarks"][3], photo.landmarks / 2 - 0.25, rtol=1e-5)
    assert found["identity"].tolist() == [0, 1, 2, 3]
    assert PLACES[found["place"][3]] == how.place
    assert found["age"][3] == pytest.approx(how.age)
    assert found["skin"][3] == pytest.approx(lightness(who.identity.skin))
    assert EXPRESSIONS[made["expression"][0]] == how.expression
    assert made["yaw"][0] == pytest.approx(how.yaw)
    assert made["male"][0] == (who.identity.gender == "male")
    assert made["crops"].shape == (1, 112, 112, 3)


def test_lightness_is_cies() -> None:
    assert lightness((1, 1, 1)) == pytest.approx(1)
    assert lightness((0, 0, 0)) == pytest.approx(0)
    assert lightness((0.184187, 0.184187, 0.184187)) == pytest.approx(0.5, abs=1e-4)


def dots(points: np.ndarray) -> np.ndarray:
    """A black image with a bright disc at each point, in a colour of its own."""
    y, x = np.mgrid[:128, :128]
    image = np.zeros((128, 128, 3), np.uint8)
    for k, (px, py) in enumerate(points):
        image[(x - px) ** 2 + (y - py) ** 2 <= 9] = np.array([250 - 40 * k, 0, 50 + 40 * k])
    return image


def centres(crop: np.ndarray) -> np.ndarray:
    """Where the five discs are in a crop."""
    y, x = np.mgrid[: len(crop), : len(crop)]
    found = []
    for k in range(5):
        near = np.abs(crop.astype(int) - [250 - 40 * k, 0, 50 + 40 * k]).sum(-1) < 30
        found.append((x[near].mean(), y[near].mean()))
    return np.array(found)


def crops(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([face_crop(dots(MARKS), MARKS, rng) for _ in range(24)])


def test_aligned_crops_scatter_about_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LOW_RESOLUTION", 0)
    monkeypatch.setattr(images, "STRETCHED", 0)
    full = crops(0)
    found = np.stack([centres(crop) for crop in full])
    np.testing.assert_allclose(found.mean(0), ARCFACE_TEMPLATE, atol=5)
    assert 0.2 < found.std(0).mean() < 5
    np.testing.assert_array_equal(full, crops(0))
    monkeypatch.setattr(images, "LOW_RESOLUTION", 1)
    brightness = [part.max(-1).astype(float).mean(0) for part in (full, crops(0))]
    assert np.corrcoef(brightness[0].ravel(), brightness[1].ravel())[0, 1] > 0.8


def test_a_stretched_box_holds_the_whole_face_upright() -> None:
    rng = np.random.default_rng(0)
    boxes = [stretched_box(dots(MARKS), MARKS, rng) for _ in range(20)]
    assert all(box.shape == (112, 112, 3) for box in boxes)
    found = np.stack([centres(box) for box in boxes]).mean(0)
    assert found[0, 0] < 50 < 62 < found[1, 0]
    assert found[:2, 1].mean() < 55
    assert found[3:, 1].mean() > 70
    corner = stretched_box(dots(MARKS), MARKS - 60, rng)  # reaches outside the image
    assert corner.shape == (112, 112, 3)
