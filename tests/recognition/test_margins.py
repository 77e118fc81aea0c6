"""Margin losses against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline_steps.recognition.margins import AdaFace, MarginHead


def head_with_centres(centres: list[list[float]], **options: object) -> MarginHead:
    head = MarginHead(len(centres[0]), len(centres), **options)  # type: ignore[arg-type]
    with torch.no_grad():
        head.weight.copy_(torch.tensor(centres))
    return head


def at_angles(*angles: float, norm: float = 3.0) -> torch.Tensor:
    return norm * torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float32)


def test_cosface_subtracts_the_margin_from_the_own_cosine_only() -> None:
    head = head_with_centres([[5.0, 0.0], [0.0, 0.1]], loss="cosface", scale=64.0, margin=0.35)
    angles = (0.3, 1.2)
    logits = head(at_angles(*angles), torch.tensor([0, 1])).detach().numpy()
    expected = [
        [64 * (math.cos(0.3) - 0.35), 64 * math.sin(0.3)],
        [64 * math.cos(1.2), 64 * (math.sin(1.2) - 0.35)],
    ]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.05, 0.8, 1.6, 2.5])
def test_arcface_adds_the_margin_to_the_own_angle(angle: float) -> None:
    head = head_with_centres([[1.0, 0.0], [0.0, 1.0]], loss="arcface", scale=30.0, margin=0.5)
    logits = head(at_angles(angle), torch.tensor([0])).detach().numpy()[0]
    expected = [30 * math.cos(angle + 0.5), 30 * math.sin(angle)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_arcface_keeps_falling_where_the_angle_would_pass_pi() -> None:
    head = head_with_centres([[1.0, 0.0], [0.0, 1.0]], loss="arcface", scale=1.0, margin=0.5)
    angles = torch.linspace(0.1, math.pi - 0.01, 200)
    own = head(at_angles(*angles.tolist()), torch.zeros(200, dtype=torch.long))[:, 0]
    assert (own.diff() < 0).all()


@pytest.mark.parametrize("loss", ["cosface", "arcface"])
def test_without_margin_it_is_normalised_softmax(loss: str) -> None:
    torch.manual_seed(0)
    head = MarginHead(8, 5, loss=loss, scale=10.0, margin=0.0)
    x, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    cosines = functional.cosine_similarity(x[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(x, labels), 10 * cosines, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", ["cosface", "arcface"])
def test_gradients_match_finite_differences(loss: str) -> None:
    torch.manual_seed(1)
    head = MarginHead(4, 3, loss=loss, scale=2.0, margin=0.3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 4))
    x = torch.randn(2, 4, requires_grad=True)
    labels = torch.tensor([2, 0])

    def value(at: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(at, labels), labels)

    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-2
    for i in range(2):
        for j in range(4):
            moved = torch.zeros_like(x)
            moved[i, j] = step
            numeric = (value(x + moved) - value(x - moved)) / (2 * step)
            assert gradient[i, j].item() == pytest.approx(numeric.item(), abs=2e-3)


def literal_adaface(
    batches: list[np.ndarray], centres: np.ndarray, labels: np.ndarray, m: float, h: float
) -> list[np.ndarray]:
    """Equations 11 to 14 in plain loops over raw embeddings; logits of every batch, scale 64."""
    mean = sd = None
    everything = []
    for batch in batches:
        norms = [math.sqrt(sum(float(v) ** 2 for v in z)) for z in batch]
        batch_mean = sum(norms) / len(norms)
        batch_sd = math.sqrt(sum((n - batch_mean) ** 2 for n in norms) / (len(norms) - 1))
        mean = batch_mean if mean is None else 0.01 * batch_mean + 0.99 * mean
        sd = batch_sd if sd is None else 0.01 * batch_sd + 0.99 * sd
        logits = np.zeros((len(batch), len(centres)))
        for i, z in enumerate(batch):
            quality = max(-1.0, min(1.0, (norms[i] - mean) / ((sd + 1e-3) / h)))
            for j, w in enumerate(centres):
                cosine = float(z @ w) / norms[i] / math.sqrt(float(w @ w))
                theta = math.acos(max(-1.0, min(1.0, cosine)))
                if j == labels[i]:
                    g_angle, g_add = -m * quality, m * quality + m
                    moved = min(max(theta + g_angle, 0.0), math.pi)
                    logits[i, j] = 64 * (math.cos(moved) - g_add)
                else:
                    logits[i, j] = 64 * math.cos(theta)
        everything.append(logits)
    return everything


def test_adaface_equals_the_papers_equations_over_several_batches() -> None:
    rng = np.random.default_rng(0)
    centres, labels = rng.normal(size=(5, 16)), np.array([0, 1, 2, 3, 4, 0])
    # Norms from tiny to huge, so that the quality is clipped at either end.
    batches = [rng.normal(size=(6, 16)) * rng.lognormal(1.0, 1.5, (6, 1)) for _ in range(4)]
    batches[1][0] = -3 * centres[0]  # opposite the own centre: the angle is cut at pi
    head = head_with_centres(centres.tolist(), loss="adaface", scale=64.0, margin=0.4)
    expected = literal_adaface(batches, centres, labels, m=0.4, h=0.333)
    for batch, logits in zip(batches, expected, strict=True):
        ours = head(torch.tensor(batch, dtype=torch.float32), torch.tensor(labels))
        np.testing.assert_allclose(ours.detach().numpy(), logits, rtol=1e-4, atol=0.1)
        free = np.ones_like(logits, dtype=bool)
        free[0] = False  # near pi a float32 angle is good to 1e-3
        np.testing.assert_allclose(ours.detach().numpy()[free], logits[free], rtol=2e-4, atol=2e-3)


def test_adaface_on_normalised_features_is_cosface() -> None:
    torch.manual_seed(2)
    x = functional.normalize(torch.randn(8, 16))
    labels = torch.arange(8) % 4
    heads = [MarginHead(16, 4, loss=loss, margin=0.4) for loss in ("adaface", "cosface")]
    heads[1].weight = heads[0].weight
    torch.testing.assert_close(heads[0](x, labels), heads[1](x, labels), rtol=1e-4, atol=1e-3)


def test_adafaces_extremes_are_arcface_for_poor_and_a_larger_margin_for_good_images() -> None:
    margin = AdaFace().eval()
    margin.mean.fill_(10.0)
    margin.sd.fill_(1.0)
    cosine = torch.tensor([0.3, 0.3, 0.3])
    found = margin(cosine, torch.tensor([0.0, 10.0, 99.0]), 0.4)
    theta = math.acos(0.3)
    expected = [math.cos(theta + 0.4), 0.3 - 0.4, math.cos(theta - 0.4) - 0.8]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert margin.mean == 10.0  # evaluation leaves the statistics alone


@pytest.mark.parametrize("loss", ["arcface", "adaface"])
def test_gradient_is_finite_exactly_at_a_centre(loss: str) -> None:
    head = head_with_centres([[1.0, 0.0], [0.0, 1.0]], loss=loss, scale=64.0, margin=0.5)
    x = at_angles(0.0, 0.0).requires_grad_()
    functional.cross_entropy(head(x, torch.tensor([0, 0])), torch.tensor([0, 0])).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_one_identity_and_unknown_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 identities"):
        MarginHead(8, 1)
    with pytest.raises(ValueError, match="sphereface"):
        MarginHead(8, 2, loss="sphereface")
