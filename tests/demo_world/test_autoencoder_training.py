"""Training of the embedded autoencoder, at a tiny size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline_steps.demo_world.pretraining import autoencoder_training
from pipeline_steps.demo_world.pretraining.autoencoder_training import (
    contrast_weight,
    face_weight,
    halve,
    latent_moments,
    learning_rate_factor,
    psnr,
    reconstruction_loss,
    to_batch,
    train_autoencoder,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def tiny_autoencoder() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(24, 32, 32, 3)), (0, 4, 4, 0))
    return (128 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def test_pixels_map_to_minus_one_and_one() -> None:
    x = to_batch(np.array([[[[0, 255, 51]]]], np.uint8))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_halving_is_the_rounded_mean_of_four_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    blocks = np.stack([images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).astype(float)
    np.testing.assert_array_equal(halve(images), np.floor(blocks.mean(0) + 0.5))


def test_weights_favour_the_face_and_the_dark_and_average_to_one() -> None:
    weight = face_weight(64)
    assert weight.shape == (1, 1, 64, 64)
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight[0, 0, 33, 32] / weight[0, 0, 0, 0]) == pytest.approx(3.0, rel=0.01)
    x = torch.full((1, 3, 32, 32), 0.8)
    x[..., :16] = -0.8
    dark = contrast_weight(x)
    assert float(dark.mean()) == pytest.approx(1.0)
    assert float(dark[0, 0, 16, 2]) > 2 * float(dark[0, 0, 16, 30])


def test_the_loss_is_zero_for_a_copy_and_counts_edges_beside_levels() -> None:
    x = torch.zeros(1, 3, 16, 16)
    weight = torch.ones(1, 1, 16, 16)
    assert float(reconstruction_loss(x, x, weight)) == 0
    assert float(reconstruction_loss(x + 0.1, x, weight)) == pytest.approx(0.1, rel=1e-4)
    stripes = x.clone()
    stripes[..., ::2] += 0.2  # the same mean distance, and an edge at every pixel
    assert float(reconstruction_loss(stripes, x, weight)) == pytest.approx(0.24, rel=1e-3)


def test_psnr_is_in_decibels_of_the_full_range() -> None:
    a = torch.zeros(1, 3, 4, 4)
    assert psnr(a + 0.2, a) == pytest.approx(20.0, abs=1e-4)


def test_the_learning_rate_rises_then_falls() -> None:
    factors = [learning_rate_factor(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01)
    assert int(np.argmax(factors)) in range(90, 110)
    assert factors[110:] == sorted(factors[110:], reverse=True)
    assert factors[-1] == pytest.approx(0.02)


def test_training_learns_and_scales_latents_to_unit_variance(
    pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder_training, "autoencoder", tiny_autoencoder)
    monkeypatch.setattr(autoencoder_training, "WARM_UP_STEPS", 5)

    def quality(model: AutoencoderKL) -> float:
        x = to_batch(pictures)
        with torch.inference_mode():
            return psnr(model(x).sample, x)

    first = train_autoencoder(pictures, steps=4, batch=8, seed=0, learning_rate=5e-3)
    again = train_autoencoder(pictures, steps=4, batch=8, seed=0, learning_rate=5e-3)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    before = quality(first)
    trained = train_autoencoder(
        pictures, steps=60, batch=8, seed=0, learning_rate=1e-2, start=first, cycle=1
    )
    assert quality(trained) > before + 1
    mean, std = latent_moments(trained, pictures, batch=10)
    assert mean.shape == std.shape == (24, 4, 8, 8)
    variance = float(mean.var() + (std**2).mean()) * trained.config.scaling_factor**2
    assert variance == pytest.approx(1.0, rel=1e-3)
