"""Photographs for training: rendered once, then opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.demo_world.pretraining import training_images
from pipeline_steps.demo_world.pretraining.training_images import TrainingImages, load_or_render
from pipeline_steps.demo_world.rendering.nuisance import EXPRESSIONS, PLACES
from pipeline_steps.demo_world.rendering.population import person, wild_nuisance


def load(folder: Path, *, identities: int = 3, workers: int = 1) -> TrainingImages:
    return load_or_render(
        folder,
        seed=4,
        population="pretraining",
        identities=identities,
        images_each=2,
        size=32,
        workers=workers,
    )


def test_facts_are_those_of_the_photographs(tmp_path: Path) -> None:
    made = load(tmp_path)
    assert made.images.shape == (6, 32, 32, 3)
    assert made.identity.tolist() == [0, 0, 1, 1, 2, 2]
    who, how = person(4, "pretraining", 1), wild_nuisance(4, "pretraining", 1, 1)
    photo = who.photograph(how, 32, 1)
    np.testing.assert_array_equal(made.images[3], photo.image)
    np.testing.assert_allclose(made.landmarks[3], photo.landmarks, rtol=1e-6)
    assert PLACES[made.place[3]] == how.place
    assert EXPRESSIONS[made.expression[3]] == how.expression
    assert made.yaw[3] == pytest.approx(how.yaw)
    assert bool(made.male[3]) == (who.identity.gender == "male")


def test_nothing_is_rendered_twice_and_other_amounts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path)
    note = tmp_path / "made_of.json"
    before = note.stat().st_mtime_ns, (tmp_path / "images.npy").stat().st_mtime_ns
    load(tmp_path)
    assert (note.stat().st_mtime_ns, (tmp_path / "images.npy").stat().st_mtime_ns) == before
    monkeypatch.setattr(training_images, "CHUNK", 2)
    parallel = load(tmp_path / "parallel", workers=2)
    np.testing.assert_array_equal(parallel.images, load(tmp_path).images)
    assert len(load(tmp_path, identities=1).images) == 2
