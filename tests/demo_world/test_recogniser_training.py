"""Pretraining of the embedded recogniser on toy identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline_steps.demo_world.pretraining.recogniser_training import (
    certainty_ratio,
    degrade,
    fit_quality_head,
    one_cycle,
    shorten_embeddings,
    train_recogniser,
)
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.recognition.margins import MarginHead


def patterns(n_identities: int, n_each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random patterns, each seen with shifts, brightness and noise."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n_identities):
        base = gaussian_filter(rng.normal(size=(112, 112, 3)), (8, 8, 0))
        base /= base.std()
        for _ in range(n_each):
            shifted = np.roll(base, tuple(rng.integers(-3, 4, 2)), (0, 1))
            images.append(
                128 + 40 * rng.uniform(0.7, 1.2) * shifted + rng.normal(0, 10, base.shape)
            )
    labels = np.repeat(np.arange(n_identities), n_each)
    return np.stack(images).clip(0, 255).astype(np.uint8), labels


def test_unseen_identities_are_told_apart_after_a_few_steps() -> None:
    images, labels = patterns(24, 4, seed=0)
    losses: list[float] = []
    network = train_recogniser(
        images,
        labels,
        widths=(16, 16, 16, 16, 16),
        epochs=6,
        batch_size=16,
        seed=0,
        threads=1,
        on_step=lambda step, n_steps, loss: losses.append(loss),
    )
    assert len(losses) == 36
    assert not network.training
    unseen, who = patterns(12, 2, seed=1)
    x = torch.from_numpy(unseen).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        embeddings, quality = network.forward_with_quality(x)
    assert quality.shape == (24,)
    assert torch.isfinite(quality).all()
    unit = torch.nn.functional.normalize(embeddings)
    cosines = (unit @ unit.T).fill_diagonal_(-1).numpy()
    assert np.mean(who[cosines.argmax(axis=1)] == who) >= 0.9
    half = network.half().float()
    torch.testing.assert_close(half(x), embeddings, rtol=0.05, atol=0.05)


def test_the_quality_head_regresses_the_certainty_ratio() -> None:
    images, labels = patterns(8, 16, seed=3)
    torch.manual_seed(0)
    network = IResNet((1, 1, 1, 1), (16, 16, 16, 16, 16), quality_head=True).eval()
    head = MarginHead(512, 8)
    assert network.qs is not None
    generator = torch.Generator().manual_seed(0)
    fit_quality_head(network.qs, network, head, images, torch.from_numpy(labels), generator)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    # The same draws again: the images that it was fitted to.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(x), generator=generator)
    seen = torch.cat([degrade(x[part], generator) for part in chosen.split(64)])
    with torch.inference_mode():
        embeddings, quality = network.forward_with_quality(seen)
        ratio = certainty_ratio(head.cosines(embeddings), torch.from_numpy(labels)[chosen])
    assert quality.mean() == pytest.approx(ratio.mean().item(), abs=1e-4)
    assert torch.corrcoef(torch.stack([quality, ratio]))[0, 1] > 0.8


def test_the_certainty_ratio_is_the_own_cosine_over_the_nearest_other() -> None:
    cosines = torch.tensor([[0.8, 0.1, 0.3], [0.5, 0.2, -0.4]])
    ratio = certainty_ratio(cosines, torch.tensor([0, 1]))
    torch.testing.assert_close(ratio, torch.tensor([0.8 / 1.3, 0.2 / 1.5]))


def test_degraded_images_keep_shape_range_and_identity_order() -> None:
    x = torch.from_numpy(patterns(16, 1, seed=2)[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    degraded = degrade(x, torch.Generator().manual_seed(0))
    again = degrade(x, torch.Generator().manual_seed(0))
    assert torch.equal(degraded, again)
    assert degraded.shape == x.shape
    assert degraded.abs().max() <= 1
    assert not torch.equal(degraded, x)

    # Image i still shows pattern i, as it is or mirrored.
    def unit(images: torch.Tensor) -> torch.Tensor:
        flat = (images - images.mean((2, 3), keepdim=True)).flatten(1)
        return torch.nn.functional.normalize(flat)

    match = torch.maximum(unit(degraded) @ unit(x).T, unit(degraded) @ unit(x.flip(3)).T)
    assert (match.argmax(dim=1) == torch.arange(16)).float().mean() > 0.9


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [one_cycle(step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_unaligned_images_are_refused() -> None:
    with pytest.raises(ValueError, match="112, 112, 3"):
        train_recogniser(
            np.zeros((4, 64, 64, 3), np.uint8), np.array([0, 0, 1, 1]), seed=0, threads=1
        )


def test_shorter_embeddings_keep_scalar_products_within_their_directions() -> None:
    torch.manual_seed(0)
    shape: dict[str, tuple[int, ...]] = {"layers": (1, 1, 1, 1), "widths": (16,) * 5}
    network = IResNet(**shape, embedding_dim=32)
    for buffer in (network.features.running_mean, network.features.running_var):
        assert buffer is not None
        buffer.uniform_(0.5, 2)
    network.eval()
    images, _ = patterns(12, 4, seed=1)
    faces = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        long = network(faces)
        whole = shorten_embeddings(network, images, 32, **shape)(faces)
        short = shorten_embeddings(network, images, 4, **shape)(faces)
    torch.testing.assert_close(whole @ whole.T, long @ long.T, rtol=1e-3, atol=1e-3)
    _, lengths, axes = torch.linalg.svd(long, full_matrices=False)
    assert lengths[3] > 1e-3
    best = long @ axes[:4].T @ axes[:4]
    torch.testing.assert_close(short @ short.T, best @ best.T, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="as many images"):
        shorten_embeddings(network, images[:3], 4, **shape)
