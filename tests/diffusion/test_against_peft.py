"""A fleet of six against six plain training loops with PEFT, one identity at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.lora import Adapter, AdapterBank
from pipeline_steps.diffusion.training import fleet
from pipeline_steps.diffusion.training.data import LatentSet, Recipe, StepNoise, step_noise
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.settings.diffusion import FinetuneSettings
from tests.diffusion.toy_fleet import CentreFace, fine_tune, latent_set

SIX = tuple(f"ID_{i}" for i in range(6))
SETTINGS = FinetuneSettings(
    steps=20, learning_rate=1e-3, rank=2, alpha=2.0, clip_norm=0.02
).for_method("idbooth")
SEED = 11


def images(base: BaseModel) -> tuple[dict[str, LatentSet], LatentSet]:
    subjects = {
        name: latent_set(name, 3 + i % 3, "photo of sks person", base.dtype)
        for i, name in enumerate(SIX)
    }
    return subjects, latent_set("prior", 7, "photo of a person", base.dtype)


def start_of(base: BaseModel, name: str) -> Adapter:
    bank = AdapterBank(base.unet, count=1, rank=2, alpha=2.0, targets=SETTINGS.targets)
    bank.initialise(0, torch_generator(SEED, "finetune", base.name, name, "lora"))
    adapter = bank.adapter(0)
    bank.remove()
    return adapter


def vector(adapter: Adapter) -> Tensor:
    return torch.cat([part.flatten() for pair in adapter.values() for part in pair]).double()


def plain_loop(base: BaseModel, name: str, subject: LatentSet, prior: LatentSet) -> Adapter:
    """One identity, as the recipe says it, with PEFT's layers and torch's own clipping."""
    from peft import LoraConfig

    unet = copy.deepcopy(base.unet)
    initial = start_of(base, name)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(SETTINGS.targets)))
    torch.nn.Module.to(unet, base.dtype)
    trained = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for layer, (down, up) in initial.items():
            trained[f"{layer}.lora_A.default.weight"].copy_(down)
            trained[f"{layer}.lora_B.default.weight"].copy_(up)
    optimiser = torch.optim.AdamW(trained.values(), lr=SETTINGS.learning_rate, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / SETTINGS.steps))
    )
    hidden = base.encode_prompts([subject.prompt, prior.prompt]).hidden
    faces, clipped = CentreFace(), []
    for step in range(SETTINGS.steps):
        draw = step_noise(
            SEED,
            base.name,
            name,
            step,
            n_instance=len(subject),
            n_prior=len(prior),
            batch_size=1,
            latent_shape=base.latent_shape,
            train_timesteps=1000,
        )
        plain_loss(base, unet, hidden, draw, subject, prior, faces).backward()  # type: ignore[no-untyped-call]
        clipped.append(torch.nn.utils.clip_grad_norm_(trained.values(), SETTINGS.clip_norm))
        optimiser.step()
        rates.step()
        optimiser.zero_grad()
    assert max(clipped) > SETTINGS.clip_norm
    return {
        layer: (
            trained[f"{layer}.lora_A.default.weight"].detach(),
            trained[f"{layer}.lora_B.default.weight"].detach(),
        )
        for layer in initial
    }


def plain_loss(
    base: BaseModel,
    unet: torch.nn.Module,
    hidden: Tensor,
    draw: StepNoise,
    subject: LatentSet,
    prior: LatentSet,
    faces: CentreFace,
) -> Tensor:
    mean = torch.cat([subject.mean[draw.instance], prior.mean[draw.prior]])
    std = torch.cat([subject.std[draw.instance], prior.std[draw.prior]])
    clean = mean + std * draw.posterior.to(mean)
    noise = draw.noise.to(mean)
    abar = base.alphas_cumprod[draw.timesteps].view(2, 1, 1, 1)
    signal, spread = abar.sqrt().to(mean), (1 - abar).sqrt().to(mean)
    noisy = signal * clean + spread * noise
    output = unet(noisy, draw.timesteps, hidden).sample
    estimate = (noisy[:1] - spread[:1] * output[:1]) / signal[:1]
    picture = base.vae.decode(estimate / base.vae.config.scaling_factor).sample.clamp(-1, 1)
    anchor = faces.embed(picture, torch.tensor([[8, 8, 24, 24]]))
    assert subject.embeddings is not None
    assert prior.embeddings is not None
    cosine = torch.nn.functional.cosine_similarity
    gap = cosine(prior.embeddings[draw.prior], anchor) - cosine(
        subject.embeddings[draw.instance], anchor
    )
    weight = (1 - draw.timesteps[0].double() / 1000) ** 2
    return (
        (output[:1] - noise[:1]).square().mean()
        + (output[1:] - noise[1:]).square().mean()
        + weight * (gap + 1.0).clamp(min=0).sum()
    )


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_a_fleet_of_six_equals_six_plain_loops_and_a_global_clip_does_not(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, limit: float
) -> None:
    base.to("cpu", dtype)
    subjects, prior = images(base)

    def errors() -> list[float]:
        recipe = Recipe("idbooth", SETTINGS, SEED)
        together = fine_tune(base, subjects, prior, recipe, CentreFace())
        return [
            float(
                (vector(together[name].adapter) - vector(alone[name])).norm()
                / (vector(alone[name]) - vector(start_of(base, name))).norm()
            )
            for name in SIX
        ]

    alone = {name: plain_loop(base, name, subjects[name], prior) for name in SIX}
    found = max(errors())
    print(f"relative L2 of the update, {dtype}: {found:.1e}")
    assert found < limit

    clip_rows = fleet.clip_rows
    monkeypatch.setattr(fleet, "clip_rows", lambda rows, most: clip_rows(rows.view(1, -1), most))
    assert min(errors()) > 50 * limit


def test_the_size_of_the_share_changes_no_identity(base: BaseModel) -> None:
    """K = 1, 3 and 8 identities at once."""
    base.to("cpu", torch.float64)
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    names = [f"ID_{i}" for i in range(8)]
    settings = SETTINGS.model_copy(update={"steps": 5})

    def train(count: int) -> Tensor:
        subjects = {
            name: latent_set(name, 3, "photo of sks person", base.dtype) for name in names[:count]
        }
        result = fine_tune(base, subjects, prior, Recipe("idbooth", settings, 1), CentreFace())
        return vector(result["ID_0"].adapter)

    one, three, eight = (train(count) for count in (1, 3, 8))
    assert (three - one).norm() < 1e-12 * one.norm()
    assert (eight - one).norm() < 1e-12 * one.norm()
