"""The rule of choice and its two measures, against closed forms and NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline_steps.diffusion.base_models.base import Runtime
from pipeline_steps.diffusion.training.choice import Trial, choose, diversity, similarity
from pipeline_steps.diffusion.training.data import hold_out
from pipeline_steps.diffusion.training.memory import Backoff
from pipeline_steps.diffusion.training.run import SavedStates, run_fleet
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.study.settings.diffusion import ChoiceSettings, FinetuneSettings


def images(*patterns: np.ndarray) -> torch.Tensor:
    """Grey images [n, 3, 32, 32] whose shrunk form is the 16 x 16 pattern."""
    large = np.stack([np.kron(pattern, np.ones((2, 2))) for pattern in patterns])
    return torch.from_numpy(np.repeat(large[:, None], 3, axis=1).astype(np.uint8))


def test_diversity_is_one_minus_the_mean_correlation_of_shrunk_images() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 16, 16))
    correlations = np.asarray(np.corrcoef(noise.reshape(5, -1)))
    expected = 1 - correlations[np.triu_indices(5, 1)].mean()
    assert diversity(images(*noise)) == pytest.approx(expected, abs=1e-12)


def test_diversity_of_copies_is_zero_whatever_their_brightness_and_contrast() -> None:
    pattern = np.arange(256).reshape(16, 16) // 4
    assert diversity(images(pattern, pattern * 2 + 60, pattern + 9)) == pytest.approx(0, abs=1e-12)
    assert diversity(images(pattern, 255 - pattern)) == pytest.approx(2, abs=1e-12)


def test_similarity_is_the_mean_cosine_and_an_image_without_a_face_counts_zero() -> None:
    held_out = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    faces = torch.tensor([[3.0, 0.0], [torch.nan, torch.nan]])
    assert similarity(faces, held_out) == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert similarity(faces[:1], held_out[:1]) == pytest.approx(1.0)


def test_the_most_similar_of_the_diverse_enough_is_chosen() -> None:
    untuned = Trial(0, similarity=0.9, diversity=1.0, faces=1.0)
    rising = [Trial(100, 0.3, 0.9, 1.0), Trial(200, 0.6, 0.7, 1.0), Trial(300, 0.8, 0.4, 1.0)]
    assert choose([untuned, *rising], 0.6).step == 200
    assert choose([untuned, *rising], 0.0).step == 300
    assert choose([untuned, *rising], 0.95).step == 100  # none is; the most diverse
    assert choose([*rising, untuned], 0.6).step == 200
    nothing = Trial(50, similarity=math.nan, diversity=1.0, faces=0.0)
    assert choose([untuned, nothing, *rising], 0.6).step == 200
    same = Trial(50, similarity=0.9, diversity=math.nan, faces=1.0)
    assert choose([untuned, same, *rising], 0.6).step == 200
    assert choose([untuned, same, *rising], 0.95).step == 100


def test_held_out_images_have_faces_and_depend_on_seed_and_identity_only() -> None:
    embeddings = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    embeddings[3] = np.nan
    held = hold_out(embeddings, 5, seed=1, identity="ID_1")
    assert held.sum() == 5 and not held[3]
    assert (held == hold_out(embeddings, 5, seed=1, identity="ID_1")).all()
    assert (held != hold_out(embeddings, 5, seed=1, identity="ID_2")).any()
    assert (held != hold_out(embeddings, 5, seed=2, identity="ID_1")).any()
    with pytest.raises(StepError, match="too few to hold out 20"):
        hold_out(embeddings, 20, seed=1, identity="ID_1")


def test_steps_beyond_the_end_are_refused() -> None:
    settings = FinetuneSettings(steps=100, choice=ChoiceSettings(steps=(50, 200)))
    with pytest.raises(ValueError, match="200 is beyond the last step, 100"):
        settings.resolved("tiny", "dreambooth")
    with pytest.raises(ValidationError, match="ascending"):
        ChoiceSettings(steps=(20, 10))
    with pytest.raises(ValidationError, match="token"):
        ChoiceSettings(steps=(20,), prompts=("photo of a person",))


class Steps:
    """A fleet of one that only counts its steps."""

    def __init__(self) -> None:
        self.subjects, self.settings = {"ID_1": None}, SimpleNamespace(steps=4)
        self.step_number, self.sound = 0, True

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self.step_number >= 4

    def step(self) -> torch.Tensor:
        self.step_number += 1
        return torch.zeros(1, 4)

    def state(self) -> dict[str, torch.Tensor]:
        return {"step": torch.tensor([self.step_number])}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.step_number = int(state["step"])

    def results(self) -> dict[str, str]:
        return {"ID_1": "trained"}


def test_a_step_at_whose_trial_the_memory_did_not_suffice_is_tried_again(tmp_path: Path) -> None:
    tried: list[int] = []
    failing = [2, 4]  # each once

    class Tried(SimpleNamespace):
        def __call__(self, fleet: Steps) -> None:
            step = fleet.step_number
            if step in failing:
                failing.remove(step)
                raise torch.OutOfMemoryError("the detector")
            if step in (0, 2, 4) and step not in tried:
                tried.append(step)

    trials: Any = Tried(state=lambda names: {}, apply=lambda fleet: None)
    saved, stop = SavedStates(tmp_path, {"ID_1": "key"}), StopRequest()

    def train(fleet: Any) -> None:
        run_fleet(fleet, "dreambooth", saved, 1e9, stop, trials)

    open_fleet: Any = lambda names, runtime: Steps()  # noqa: E731
    found: Any = Backoff(open_fleet, torch.device("cpu"), Runtime()).run(["ID_1"], train, None)
    assert found == {"ID_1": "trained"}
    assert tried == [0, 2, 4]
