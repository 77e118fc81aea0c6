"""Training of the embedded denoiser, at a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline_steps.demo_world.pretraining import denoiser_training
from pipeline_steps.demo_world.pretraining.denoiser_training import (
    SCHEDULE,
    Denoiser,
    learning_rate_factor,
    noise_schedule,
    train_denoiser,
)
from pipeline_steps.demo_world.pretraining.training_images import TrainingImages
from pipeline_steps.demo_world.rendering.vocabulary import build_tokenizer

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

N = 12


def tiny_denoiser() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )


def tiny_text_encoder(vocabulary: int, start: int, end: int, max_tokens: int) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=max_tokens,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(denoiser_training, "denoiser", tiny_denoiser)
    monkeypatch.setattr(denoiser_training, "text_encoder", tiny_text_encoder)
    rng = np.random.default_rng(0)
    facts = TrainingImages(
        images=np.zeros((N, 1, 1, 3), np.uint8),
        landmarks=np.zeros((N, 5, 2), np.float32),
        identity=np.arange(N) // 2,
        expression=rng.integers(0, 5, N),
        place=rng.integers(0, 11, N),
        yaw=rng.uniform(-40, 40, N),
        male=rng.random(N) < 0.5,
    )
    names = ["bodi", "kalu"]
    return {
        "mean": torch.from_numpy(rng.normal(size=(N, 4, 8, 8))).float(),
        "std": torch.full((N, 4, 8, 8), 0.1),
        "scaling_factor": 0.9,
        "facts": facts,
        "tokenizer": build_tokenizer(tmp_path / "tokenizer", names),
        "names": names,
        "steps": 6,
        "batch": 4,
        "seed": 3,
    }


def state(model: Denoiser) -> list[torch.Tensor]:
    return [*(p.detach() for p in model.parameters()), *model.average]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    factors = np.array([learning_rate_factor(step, 4000) for step in range(4000)])
    assert factors[0] == pytest.approx(1 / 200)
    assert (np.diff(factors[:200]) > 0).all()
    assert (factors[200:3000] == 1).all()
    assert (np.diff(factors[3001:]) < 0).all()
    assert factors[-1] == pytest.approx(0.02, abs=1e-3)


def test_a_longer_run_shares_the_plateau_of_a_shorter_one() -> None:
    short, long = (
        [learning_rate_factor(step, steps) for step in range(750)] for steps in (1000, 5000)
    )
    assert short == long


def test_the_noise_schedule_is_the_schedulers() -> None:
    from diffusers import DDPMScheduler

    alpha_bar, weights = noise_schedule()
    torch.testing.assert_close(alpha_bar, DDPMScheduler(**SCHEDULE).alphas_cumprod)
    snr = alpha_bar / (1 - alpha_bar)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    noisy = snr < 5
    assert noisy.any()
    assert torch.allclose(weights[noisy], weights[-1])
    ratio = weights[~noisy] * snr[~noisy] / weights[-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5.0))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_denoiser(**arguments)
    checkpoint = tmp_path / "denoiser.pt"
    keep = denoiser_training._keep

    def keep_and_stop(*state: Any) -> None:
        keep(*state)
        raise KeyboardInterrupt

    monkeypatch.setattr(denoiser_training, "_keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(**arguments, checkpoint=checkpoint, checkpoint_every=3)
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    monkeypatch.setattr(denoiser_training, "_keep", keep)
    resumed = train_denoiser(**arguments, checkpoint=checkpoint, checkpoint_every=3)
    for a, b in zip(state(whole), state(resumed), strict=True):
        assert torch.equal(a, b)
    assert torch.load(checkpoint, weights_only=True)["step"] == 6


def test_training_moves_both_networks_and_the_average_follows(arguments: dict[str, Any]) -> None:
    start = train_denoiser(**{**arguments, "steps": 0})
    model = train_denoiser(**arguments)
    for networks in ("unet", "text"):
        before, after = (
            torch.cat([p.detach().flatten() for p in getattr(m, networks).parameters()])
            for m in (start, model)
        )
        assert not torch.equal(before, after)
    raw, average, first = (
        torch.cat([p.detach().flatten() for p in part])
        for part in (model.parameters(), model.average, start.parameters())
    )
    assert 0 < float((raw - average).norm()) < float((raw - first).norm())
    model.use_average()
    swapped = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(swapped, average)
    model.use_average()
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), raw)
