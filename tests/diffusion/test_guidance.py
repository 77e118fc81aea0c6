"""Identity guidance: the adjusted score is the derivative that it claims to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.objectives import cosine_similarity, id_weight, predict_x0
from pipeline_steps.diffusion.sampling.guidance import SCHEDULES, IdentityGuidance, others_of
from pipeline_steps.diffusion.sampling.sampler import (
    ImageRequest,
    Sampling,
    make_scheduler,
    sample_latents,
)
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.sampling import IdentityGuidanceSettings
from tests.diffusion.toy_fleet import CentreFace

T, WEIGHT = 400, 3.0
BOX = torch.tensor([[8.0, 8.0, 24.0, 24.0]])


def likeness(guide: CentreFace | None = None, **settings: Any) -> IdentityGuidance:
    targets = torch.randn(
        2, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).unbind()
    return IdentityGuidance(
        IdentityGuidanceSettings(**{"weight": WEIGHT} | settings),
        guide or CentreFace(),
        dict(zip(("ID_1", "ID_2"), targets, strict=True)),
    )


@pytest.fixture
def noisy(base: BaseModel) -> Tensor:
    base.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(2)
    return 0.1 * torch.randn(2, *base.latent_shape, generator=generator, dtype=torch.float64)


def network(base: BaseModel) -> Callable[[Tensor], Tensor]:
    condition = base.encode_prompts(["photo of sks person"] * 2)
    return lambda x: base.predict(x, torch.full((2,), T), condition)


def closeness(base: BaseModel, guide: IdentityGuidance, noisy: Tensor, output: Tensor) -> Tensor:
    """The cosines themselves, written out."""
    abar = base.alphas_cumprod[T].expand(2)
    images = base.decode(predict_x0(noisy, output, abar, base.prediction_type)).clamp(-1, 1)
    rows = guide.guide.embed(images, BOX.expand(2, 4))
    return cosine_similarity(rows, torch.stack(list(guide.targets.values()))).sum()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gradient", ["estimate", "network"])
def test_the_change_is_the_slope_of_the_likeness(
    base: BaseModel, noisy: Tensor, gradient: str, prediction: str
) -> None:
    """Against central differences in fp64, along directions drawn at random."""
    base.scheduler_config["prediction_type"] = prediction
    guide, predict = likeness(gradient=gradient), network(base)
    with torch.no_grad():
        plain = predict(noisy)
        leaned = guide.adjusted(base, ["ID_1", "ID_2"], T, noisy, predict)
        abar = base.alphas_cumprod[T]
        # a change of v at fixed x_t is that of epsilon over sqrt(abar)
        scale = abar.sqrt() if prediction == "v_prediction" else torch.ones(())
        slope = (
            -(leaned - plain) * scale / (1 - abar).sqrt() / (WEIGHT * id_weight(torch.tensor(T)))
        )
        assert slope.abs().max() > 1e-4
        for seed in range(3):
            way = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(seed)).double()
            step = 1e-6 * way
            at = [noisy + step, noisy - step]
            outputs = [predict(x) if gradient == "network" else plain for x in at]
            ahead, behind = (
                closeness(base, guide, x, output) for x, output in zip(at, outputs, strict=True)
            )
            assert float((slope * way).sum()) == pytest.approx(
                float((ahead - behind) / 2e-6), rel=1e-6, abs=1e-9
            )


@pytest.mark.parametrize("gradient", ["estimate", "network"])
def test_the_first_step_of_a_schedule_that_begins_with_noise_alone_is_a_number(
    base: BaseModel, noisy: Tensor, gradient: str
) -> None:
    base.scheduler_config["prediction_type"] = "v_prediction"
    base.alphas_cumprod = base.alphas_cumprod.clone()
    base.alphas_cumprod[T] = 0.0  # zero terminal SNR
    leaned = likeness(gradient=gradient).adjusted(base, ["ID_1", "ID_2"], T, noisy, network(base))
    assert leaned.isfinite().all()


def test_images_without_a_face_or_a_target_are_left_as_they_are(
    base: BaseModel, noisy: Tensor
) -> None:
    predict = network(base)
    plain = predict(noisy)
    blind = likeness(CentreFace(sees=lambda image: False))
    assert torch.equal(blind.adjusted(base, ["ID_1", "ID_2"], T, noisy, predict), plain)
    guide = likeness()
    unknown = replace(guide, targets=guide.targets | {"ID_2": torch.full((32,), np.nan).double()})
    leaned = unknown.adjusted(base, ["ID_1", "ID_2"], T, noisy, predict)
    assert torch.equal(leaned[1], plain[1])
    assert not torch.equal(leaned[0], plain[0])


@pytest.mark.parametrize(
    ("schedule", "without_noise", "noise"),
    [("id3", 0.25, 0.134471), ("quadratic", 1.0, 0.0), ("constant", 1.0, 1.0)],
)
def test_schedules_begin_and_end_where_they_should(
    schedule: str, without_noise: float, noise: float
) -> None:
    found = SCHEDULES[schedule](torch.tensor([0, 1000]), 1000)
    assert found.tolist() == pytest.approx([without_noise, noise], abs=1e-6)


def test_only_steps_within_the_interval_are_guided(base: BaseModel) -> None:
    guide = likeness(interval=(0.2, 0.5))
    guided = [t for t in range(0, base.train_timesteps, 50) if guide.active(base, t)]
    assert guided == list(range(200, 501, 50))
    with pytest.raises(ValidationError, match="0 <= first < second <= 1"):
        likeness(interval=(0.5, 0.2))


class Shown:
    """People on a network whose output is a number each, and another one without the prompt."""

    compiles, condition = False, None

    def activate(self, rows: Sequence[int] | None, length: int = 1, guided: bool = False) -> None:
        self.rows = torch.tensor([*(rows or [])]), length, guided

    def predict(self, x: Tensor, *_: object) -> Tensor:
        rows, length, guided = self.rows
        without = torch.full((len(rows), 1), 0.3)
        given = torch.tensor([0.7, -0.2, 1.1])[rows][:, None]
        both = torch.cat([without, given], dim=1) if guided else given
        return both.repeat_interleave(length)[:, None, None, None].expand_as(x)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_negative_guidance_adds_a_share_of_the_difference_to_another_person(
    base: BaseModel, guidance: float
) -> None:
    """One step of DDIM in closed form: x0 = (x - sqrt(1 - abar) eps) / sqrt(abar)."""
    plain = [ImageRequest(f"ID_{k}", i, "", "", 5, k) for k in (0, 1) for i in (0, 1)]
    asked = [replace(one, away=replace(one, adapter=2, of="ID_2")) for one in plain]
    shown = Shown()
    how = Sampling(1, guidance, "ddim", 4, negative=0.5)
    [(_, made)] = sample_latents(base, asked, how, bank=shown, predict=shown.predict)
    scheduler = make_scheduler(base.scheduler_config, "ddim")
    scheduler.set_timesteps(1)
    x = torch.randn((1, *base.latent_shape), generator=torch.Generator().manual_seed(5))
    for z, request in zip(made, asked, strict=True):
        given = (0.7, -0.2)[request.adapter or 0]
        eps = 0.3 + guidance * (given - 0.3) + 0.5 * (given - 1.1)
        output = torch.full_like(x, eps)
        wanted = scheduler.step(output, scheduler.timesteps[0], x, return_dict=False)[0]
        torch.testing.assert_close(z[None], wanted)
    with pytest.raises(ValueError, match="away from whom"):
        list(sample_latents(base, plain, how, bank=shown, predict=shown.predict))


def test_the_other_person_is_the_next_of_a_circle_that_shares_do_not_change() -> None:
    people = [Subject(f"ID_{k}", None, (), ()) for k in range(9)]
    away = others_of(people, 3)
    assert set(away) == set(away.values()) and all(one != other for one, other in away.items())
    fewer = others_of(people[1:], 3)
    assert [one for one in fewer if fewer[one] != away[one]] == [
        one for one, other in away.items() if other == "ID_0"
    ]
    with pytest.raises(StepError, match="two people"):
        others_of(people[:1], 3)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler", "dpmsolver++"])
@pytest.mark.parametrize("gradient", ["estimate", "network"])
def test_guided_samples_are_liker_and_batches_change_none(
    base: BaseModel, scheduler: str, gradient: str
) -> None:
    asked = [
        ImageRequest(name, 0, "photo of a person", "", seed)
        for seed, name in enumerate(("ID_1", "ID_2"))
    ]
    guide = likeness(weight=40.0, gradient=gradient)
    guide = replace(guide, targets={name: row.float() for name, row in guide.targets.items()})

    def latents(like: IdentityGuidance | None, size: int) -> Tensor:
        how = Sampling(4, 2.0, scheduler, size)
        return torch.cat([made for _, made in sample_latents(base, asked, how, likeness=like)])

    def cosines(made: Tensor) -> Tensor:
        with torch.no_grad():
            rows = guide.guide.embed(base.decode(made).clamp(-1, 1), BOX.expand(2, 4))
        return cosine_similarity(rows, torch.stack(list(guide.targets.values())))

    together, alone = latents(guide, 2), latents(guide, 1)
    assert torch.allclose(together, alone, atol=1e-4)
    assert (cosines(together) > cosines(latents(None, 2)) + 0.01).all()
