"""The rule of choice and its two measures, against closed forms and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline_steps.diffusion.training.choice import Trial, choose, diversity, similarity
from pipeline_steps.diffusion.training.data import hold_out
from pipeline_steps.runtime.errors import StepError
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
