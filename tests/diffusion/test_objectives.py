"""Objectives against closed forms, finite differences and diffusers' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline_steps.diffusion import objectives


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    anchor, positive, negative = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64)
    return anchor, positive, negative


def test_identity_loss_is_one_minus_cosine(rows: tuple[torch.Tensor, ...]) -> None:
    anchor, positive, _ = rows
    expected = 1 - F.cosine_similarity(anchor, positive)
    torch.testing.assert_close(objectives.identity_loss(anchor, positive), expected)
    assert objectives.identity_loss(anchor, 3 * anchor).abs().max() < 1e-12


def test_triplet_loss_matches_the_corrected_equation(rows: tuple[torch.Tensor, ...]) -> None:
    anchor, positive, negative = rows
    for margin in (0.0, 0.3, 1.0):
        gap = F.cosine_similarity(negative, anchor) - F.cosine_similarity(positive, anchor)
        expected = torch.maximum(gap + margin, torch.zeros_like(gap))
        result = objectives.triplet_identity_loss(anchor, positive, negative, margin)
        torch.testing.assert_close(result, expected)


def test_triplet_loss_at_known_angles() -> None:
    angle = math.pi / 3
    anchor = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[math.cos(angle), math.sin(angle)]])
    negative = torch.tensor([[0.0, 1.0]])
    near = objectives.triplet_identity_loss(anchor, positive, negative, 1.0)
    torch.testing.assert_close(near, torch.tensor([0.5]))
    swapped = objectives.triplet_identity_loss(anchor, negative, positive, 1.0)
    torch.testing.assert_close(swapped, torch.tensor([1.5]))
    assert objectives.triplet_identity_loss(anchor, anchor, -anchor, 1.0).item() == 0.0


def test_a_step_down_the_triplet_loss_nears_the_positive_and_leaves_the_negative(
    rows: tuple[torch.Tensor, ...],
) -> None:
    anchor, positive, negative = rows
    anchor = anchor.clone().requires_grad_()
    objectives.triplet_identity_loss(anchor, positive, negative).sum().backward()
    assert anchor.grad is not None
    after = anchor.detach() - 0.1 * anchor.grad
    before = anchor.detach()
    gained = F.cosine_similarity(after, positive) - F.cosine_similarity(before, positive)
    lost = F.cosine_similarity(before, negative) - F.cosine_similarity(after, negative)
    assert (gained > 0).all()
    assert (lost > 0).all()


def test_gradients_match_finite_differences(rows: tuple[torch.Tensor, ...]) -> None:
    anchor, positive, negative = rows
    anchor = anchor.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: objectives.triplet_identity_loss(a, positive, negative, 1.0), (anchor,)
    )
    assert torch.autograd.gradcheck(lambda a: objectives.identity_loss(a, positive), (anchor,))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [0, 17, 500, 999])
def test_estimated_clean_latents_equal_the_schedulers(kind: str, t: int) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, prediction_type=kind
    )
    generator = torch.Generator().manual_seed(t)
    noisy, output = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    scheduler.set_timesteps(1000)
    expected = scheduler.step(output, t, noisy, generator=generator).pred_original_sample
    abar = scheduler.alphas_cumprod[torch.full((3,), t)].double()
    result = objectives.predict_x0(noisy, output, abar, kind)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_and_target_equal_the_schedulers_and_invert(kind: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    clean, noise = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    timesteps = torch.tensor([3, 400, 998])
    abar = scheduler.alphas_cumprod.double()[timesteps]
    noisy = objectives.add_noise(clean, noise, abar)
    expected = scheduler.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, expected, rtol=1e-6, atol=1e-6)
    target = objectives.prediction_target(clean, noise, abar, kind)
    if kind == "v_prediction":
        velocity = scheduler.get_velocity(clean, noise, timesteps)
        torch.testing.assert_close(target, velocity, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(objectives.predict_x0(noisy, target, abar, kind), clean)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="sample"):
        objectives.predict_x0(torch.ones(1, 1), torch.ones(1, 1), torch.full((1,), 0.5), "sample")


def test_min_snr_weights_are_the_papers_for_either_prediction() -> None:
    abar = torch.tensor([0.0, 1 / 3, 0.5, 0.95], dtype=torch.float64)  # SNR 0, 1/2, 1, 19
    of_v = objectives.min_snr_weight(abar, 5.0, "v_prediction")
    torch.testing.assert_close(of_v, torch.tensor([0, 1 / 3, 1 / 2, 5 / 20]).double())
    of_epsilon = objectives.min_snr_weight(abar[1:], 5.0, "epsilon")
    torch.testing.assert_close(of_epsilon, torch.tensor([1, 1, 5 / 19]).double())


def test_timestep_weight_falls_quadratically() -> None:
    weights = objectives.timestep_weight(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.25, 1e-6], dtype=torch.float64))


def test_noise_prediction_loss_is_per_sample() -> None:
    output = torch.zeros(2, 1, 2, 2)
    target = torch.stack([torch.ones(1, 2, 2), torch.full((1, 2, 2), 3.0)])
    expected = torch.tensor([1.0, 9.0])
    torch.testing.assert_close(objectives.noise_prediction_loss(output, target), expected)
