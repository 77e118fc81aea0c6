"""What the pretraining's loss functions, augmentations and schedules do, on small arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_steps.demo_world.pretrain import base_model
from pipeline_steps.demo_world.pretraining import autoencoder, denoiser, recogniser, training
from pipeline_steps.demo_world.pretraining.captions import names
from pipeline_steps.demo_world.pretraining.plan import PLANS, RECOGNISERS, Amounts
from pipeline_steps.demo_world.pretraining.recogniser import degrade, faceless
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.runtime.errors import StepError

MARKS = torch.tensor([[[20.0, 26.0], [44.0, 26.0], [32.0, 36.0], [23.0, 46.0], [41.0, 46.0]]])


def a_stage(**changed: object) -> training.Stage:
    network = nn.Linear(2, 1)
    stage = training.Stage(
        name="line",
        seed=1,
        networks=network,
        loss=lambda count, generator: (
            network(torch.randn(count, 2, generator=generator)).square().mean()
        ),
        measure=lambda average: {},
        amounts=Amounts(40, 4, 0.1),
        warm_up=8,
        hold=16,
    )
    return replace(stage, **changed)  # type: ignore[arg-type]


def a_run(folder: Path) -> training.Run:
    return training.Run(folder, None, "cpu", False, lambda: False)


# Schedules ----------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_with_the_root_of_the_images() -> None:
    def factor(images: int, warm: int) -> float:
        state = training.State(nn.Linear(1, 1), images=images, warm=warm)
        return training.learning_rate_factor(a_stage(), state)

    assert factor(0, 0) == 0.5
    assert factor(4, 4) == factor(12, 12) == 1
    assert factor(64, 64) == 0.5
    assert factor(64, 0) == 0.25  # after a small state it rises again


def test_the_average_forgets_half_within_a_share_of_what_was_seen() -> None:
    kept = math.prod(training.averaging(images, 10) for images in range(1000, 1050, 10))
    assert kept == pytest.approx(0.5, abs=0.02)
    assert training.averaging(0, 10) < 1e-5


def test_a_diverged_training_keeps_its_last_state_and_says_so(tmp_path: Path) -> None:
    training.train(a_stage(), a_run(tmp_path))
    before = (tmp_path / "line.safetensors").read_bytes()
    longer = a_stage(
        amounts=Amounts(80, 4, 0.1), loss=lambda count, generator: torch.tensor(math.nan) * BAD
    )
    with pytest.raises(StepError, match="line diverged"):
        training.train(longer, a_run(tmp_path))
    assert (tmp_path / "line.safetensors").read_bytes() == before


BAD = nn.Parameter(torch.ones(()))


def test_bfloat16_is_used_where_the_processor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, has in (("fma avx2 f16c", False), ("avx512f avx512_bf16", True)):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: f"flags : {flags}\n")
        assert training.processor_has_bfloat16("cpu") is has


def test_attention_of_bfloat16_is_computed_in_single_precision() -> None:
    def leaf(seed: int) -> torch.Tensor:
        values = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(seed))
        return values.bfloat16().requires_grad_()

    q, k, v = map(leaf, range(3))
    mask = torch.zeros(6, 6).bfloat16().masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    with torch.autocast("cpu", torch.bfloat16), training.SingleAttention():
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = functional.scaled_dot_product_attention(*wide, attn_mask=mask.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    slope = torch.autograd.grad(found.float().square().sum(), q)[0]
    wanted = torch.autograd.grad(expected.bfloat16().float().square().sum(), wide[0])[0]
    assert torch.equal(slope, wanted.bfloat16())


def test_plans_render_whole_files_and_share_networks() -> None:
    cpu, cuda = PLANS["cpu"], PLANS["cuda"]
    assert all(n % 10 == 0 for plan in PLANS.values() for n in (plan.people, plan.unseen))
    assert (cpu.seed, cpu.each, cpu.named, cpu.recognisers) == (
        cuda.seed,
        cuda.each,
        cuda.named,
        cuda.recognisers,
    )
    assert sum(cuda.shares.values()) < 0.5  # the denoiser gets the rest


# Autoencoder --------------------------------------------------------------------------------------


def test_eyes_count_most_and_weights_average_to_one() -> None:
    weight = autoencoder.place_weights(MARKS, 64)[0, 0]
    assert float(weight.mean()) == pytest.approx(1)
    eye, mouth, cheek, corner = weight[26, 20], weight[46, 32], weight[40, 14], weight[0, 0]
    assert eye > mouth > cheek > corner
    assert eye > 4 * corner


def test_the_same_difference_counts_more_in_the_dark() -> None:
    light, dark = torch.full((1, 3, 8, 8), 0.8), torch.full((1, 3, 8, 8), -0.9)
    weight = torch.ones(1, 1, 8, 8)

    def loss(x: torch.Tensor) -> float:
        return float(autoencoder.reconstruction_loss(x + 0.05, x, weight))

    assert loss(dark) > 1.8 * loss(light)
    assert float(autoencoder.reconstruction_loss(dark, dark, weight)) == 0
    below = torch.full_like(dark, -1.5).requires_grad_()
    autoencoder.reconstruction_loss(below, light, weight).backward()
    assert below.grad is not None
    assert (below.grad < 0).all()  # what is too dark to have a root still brightens


def test_a_mirror_takes_the_landmarks_along() -> None:
    x = torch.zeros(2, 3, 64, 64)
    x[:, :, 26, 20] = 1
    marks = MARKS.expand(2, 5, 2)
    flipped, moved = autoencoder.mirror(x, marks, torch.tensor([True, False]))
    for image, points in zip(flipped, moved, strict=True):
        column, row = (int(v) for v in points[0])
        assert image[0, row, column] == 1
    assert torch.equal(flipped[1], x[1])


class Blurs(nn.Module):
    """An autoencoder that only gets the pixels around the left eye of the brighter image wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def encode(self, x: torch.Tensor) -> object:
        from types import SimpleNamespace

        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z: torch.Tensor) -> object:
        from types import SimpleNamespace

        y = z.clone()
        bright = z.mean((1, 2, 3)) > 0
        y[bright, :, 26, 20] += 0.2
        return SimpleNamespace(sample=y)


def test_the_signal_to_noise_ratio_is_told_for_eyes_and_for_dark_faces() -> None:
    pictures = np.full((10, 64, 64, 3), 40, np.uint8)
    pictures[2:] = 200
    marks = MARKS.expand(10, 5, 2).numpy()
    found = autoencoder.reconstruction_quality(Blurs().eval(), pictures, marks)
    assert found["psnr_dark"] == math.inf  # two of ten, and they are right
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.8 * 0.01 / 64**2), abs=0.01)
    assert found["psnr_eyes"] < found["psnr"] - 5


# Recogniser ---------------------------------------------------------------------------------------


def faces(n: int) -> torch.Tensor:
    """Smooth random patterns [n, 3, 112, 112]."""
    coarse = torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(coarse, size=112, mode="bicubic").clamp(-1, 1)


def small_network(quality_head: bool) -> IResNet:
    torch.manual_seed(0)
    return IResNet((1, 1, 1, 1), (16,) * 5, embedding_dim=8, quality_head=quality_head)


def test_degraded_faces_keep_shape_range_colour_and_order() -> None:
    x = faces(32)
    found = degrade(x, torch.Generator().manual_seed(0))
    assert torch.equal(found, degrade(x, torch.Generator().manual_seed(0)))
    assert found.shape == x.shape
    assert found.abs().max() <= 1
    colours = [(v + 1).mean((2, 3)) for v in (x, found)]
    change = (colours[1] / colours[0] - 1).abs()
    assert change.median() < 0.12  # a person's skin stays theirs

    def unit(images: torch.Tensor) -> torch.Tensor:
        return functional.normalize((images - images.mean((2, 3), keepdim=True)).flatten(1))

    match = torch.maximum(unit(found) @ unit(x).T, unit(found) @ unit(x.flip(3)).T)
    assert (match.argmax(dim=1) == torch.arange(32)).float().mean() > 0.8


def test_faceless_images_lose_what_is_at_the_eyes() -> None:
    x = faces(8)
    x[:, :, 50, 36:40] = 1.0  # eyes
    x[:, :, 50, 72:76] = -1.0
    found = faceless(x, torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    contrast = found[:6, :, 50, 36:40].mean() - found[:6, :, 50, 72:76].mean()
    assert contrast < 0.3 * (x[:6, :, 50, 36:40].mean() - x[:6, :, 50, 72:76].mean())
    assert torch.equal(found[2:4, :, 100:], x[2:4, :, 100:]) or torch.allclose(
        found[2:4, :, 100:], x[2:4, :, 100:], atol=0.02
    )  # skin instead of eyes leaves the chin


def test_the_certainty_ratio_is_the_own_cosine_over_the_nearest_other() -> None:
    cosines = torch.tensor([[0.8, 0.1, 0.3], [0.5, 0.2, -0.4]])
    ratio = recogniser.certainty_ratio(cosines, torch.tensor([0, 1]))
    torch.testing.assert_close(ratio, torch.tensor([0.8 / 1.3, 0.2 / 1.5]))


def test_only_the_guide_is_pushed_away_from_faceless_images() -> None:
    own = torch.tensor([0, 1])
    centres = torch.eye(2, 8)
    embeddings = torch.cat([centres, centres[:1]]).requires_grad_()
    for kind in RECOGNISERS:
        model = recogniser.Trainee(kind, small_network(kind.guides), centres)
        shown = embeddings if kind.guides else embeddings[:2]
        (slope,) = torch.autograd.grad(recogniser._loss(model, shown, own), embeddings)
        assert bool(slope[2].abs().sum() > 0) is kind.guides


def test_people_begin_where_the_network_puts_their_faces(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (5, 112, 112, 3), generator=torch.Generator().manual_seed(0))
    identity = torch.tensor([1, 0, 1, 0, 1])
    network = small_network(quality_head=False)
    found = recogniser.centres(network, pictures.to(torch.uint8), identity, a_run(tmp_path))
    with torch.no_grad():
        rows = functional.normalize(network.eval()(pictures.permute(0, 3, 1, 2) / 127.5 - 1))
    expected = functional.normalize(torch.stack([rows[identity == k].sum(0) for k in (0, 1)]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model = recogniser.Trainee(RECOGNISERS[1], network, found)
    assert torch.equal(model.head.weight, found)


def test_a_recogniser_learns_to_tell_unseen_patterns_apart(tmp_path: Path) -> None:
    def patterns(seed: int, people: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        base = torch.from_numpy(rng.normal(size=(people, 3, 7, 7))).float()
        big = functional.interpolate(base, size=112, mode="bicubic").clamp(-1.5, 1.5)
        each = big.repeat_interleave(4, 0) * torch.from_numpy(
            rng.uniform(0.8, 1.2, (4 * people, 1, 1, 1))
        )
        crops = (128 + 70 * each + torch.from_numpy(rng.normal(0, 6, each.shape))).clip(0, 255)
        return {
            "crops": crops.permute(0, 2, 3, 1).numpy().astype(np.uint8),
            "identity": np.arange(people).repeat(4),
        }

    run = a_run(tmp_path)
    stage = recogniser.stage(
        RECOGNISERS[0],
        small_network(quality_head=True),
        patterns(0, 20),
        patterns(1, 8),
        run,
        seed=0,
        amounts=Amounts(480, 16, 5e-3),
    )
    state = training.train(replace(stage, warm_up=64), run)
    assert state.curve[-1]["eer"] < 0.2


# Denoiser -----------------------------------------------------------------------------------------


def test_the_noise_schedule_is_the_base_models() -> None:
    from diffusers import DDPMScheduler

    alpha_bar, weights = denoiser.noise_schedule()
    shipped = DDPMScheduler.from_pretrained(base_model() / "scheduler")
    torch.testing.assert_close(alpha_bar, shipped.alphas_cumprod)
    snr = alpha_bar / (1 - alpha_bar)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    noisy = snr < 5
    assert torch.allclose(weights[noisy], weights[-1])
    ratio = weights[~noisy] * snr[~noisy] / weights[-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5.0))


def test_captions_become_tokens_of_their_own_photograph() -> None:
    from transformers import CLIPTokenizer

    words = names(2, PLANS["cpu"].seed)
    tokenizer = CLIPTokenizer.from_pretrained(str(base_model() / "tokenizer"))
    columns = {
        "identity": np.array([1, 7]),
        "male": np.array([1, 0]),
        "expression": np.array([1, 2]),
        "place": np.array([1, 0]),
        "yaw": np.array([0.0, 0.0]),
    }
    tokens = denoiser.caption_tokens(columns, tokenizer, words, seed=0)
    assert tokens.shape == (2, denoiser.CAPTIONS_EACH, tokenizer.model_max_length)
    named, other = (" ".join(tokenizer.batch_decode(part)) for part in tokens)
    assert words[1] in named
    assert words[0] not in named + other
    assert words[1] not in other
    assert int(tokens.max()) == len(tokenizer) - 1


def test_a_denoiser_goes_on_as_it_was_and_with_more_channels_at_first_without_them() -> None:
    own, wider = (denoiser.networks(base_model(), channels)["unet"].eval() for channels in (4, 6))
    z, text = torch.randn(1, 6, 16, 16), torch.randn(1, 3, 128)
    with torch.no_grad():
        expected = own(z[:, :4], 500, text).sample
        found = wider(z, 500, text).sample
    torch.testing.assert_close(found[:, :4], expected)
    assert not found[:, 4:].any()
