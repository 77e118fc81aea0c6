"""Fine-tuning many identities at once equals fine-tuning each alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.guide import identity_term
from pipeline_steps.diffusion.objectives import triplet_identity_loss
from pipeline_steps.diffusion.training import fleet
from pipeline_steps.diffusion.training.data import LatentSet, Recipe, StepNoise
from pipeline_steps.diffusion.training.fleet import join_rows, take_rows
from pipeline_steps.diffusion.training.losses import LOSSES
from tests.diffusion.tiny_study import EveryFace
from tests.diffusion.toy_fleet import (
    NAMES,
    SETTINGS,
    CentreFace,
    a_fleet,
    fine_tune,
    finish,
    latent_set,
    relative,
    train,
    vector,
)


@pytest.mark.parametrize("method", ["dreambooth", "portraitbooth", "idbooth"])
def test_a_share_trains_each_identity_as_if_alone(base: BaseModel, method: str) -> None:
    base.to("cpu", torch.float64)
    together = train(base, method=method)
    for name in NAMES:
        alone = train(base, (name,), method=method)[name]
        assert relative(together[name], alone) < 1e-12
        assert together[name].losses["identity"] == pytest.approx(alone.losses["identity"])


def test_clipping_is_active_and_a_clip_over_the_fleet_would_show(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.to("cpu", torch.float64)
    alone = train(base, ("ID_2",))["ID_2"]

    norms: list[Tensor] = []
    clip_rows: Callable[[Tensor, float], Tensor] = fleet.clip_rows

    def recorded(gradients: Tensor, largest: float) -> Tensor:
        norms.append(clip_rows(gradients, largest))
        return norms[-1]

    monkeypatch.setattr(fleet, "clip_rows", recorded)
    train(base)
    assert (torch.stack(norms) > SETTINGS.clip_norm).any()

    def over_the_fleet(gradients: Tensor, largest: float) -> Tensor:
        return clip_rows(gradients.view(1, -1), largest)

    monkeypatch.setattr(fleet, "clip_rows", over_the_fleet)
    assert relative(train(base)["ID_2"], alone) > 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_equals_a_plain_loop_with_peft_and_adamw(base: BaseModel, kind: str) -> None:
    """The same identity by PEFT's layers, torch's clipping, and diffusers' schedule and noising."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig
    from torch.nn import functional as F

    from pipeline_steps.diffusion.training.data import step_noise
    from pipeline_steps.seeds import torch_generator

    base.to("cpu", torch.float64)
    base.scheduler_config["prediction_type"] = kind
    ours = train(base, ("ID_1",), method="dreambooth")["ID_1"]

    start = fleet.AdapterBank(base.unet, count=1, rank=2, alpha=2.0, targets=SETTINGS.targets)
    start.initialise(0, torch_generator(11, "finetune", "tiny", "ID_1", "lora"))
    initial = start.adapter(0)
    start.remove()
    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(SETTINGS.targets))
    base.unet.add_adapter(config)
    base.unet.to(torch.float64)
    trained = {n: p for n, p in base.unet.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, (down, up) in initial.items():
            trained[f"{name}.lora_A.default.weight"].copy_(down)
            trained[f"{name}.lora_B.default.weight"].copy_(up)
    subject = latent_set("ID_1", 3, "photo of sks person", base.dtype)
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    noising = DDPMScheduler.from_config(base.scheduler_config)
    prompts = base.encode_prompts([subject.prompt, prior.prompt]).hidden
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=1e-2)
    schedule = get_scheduler("cosine", optimiser, num_warmup_steps=0, num_training_steps=6)
    for step in range(6):
        draw = step_noise(
            11,
            "tiny",
            "ID_1",
            step,
            n_instance=3,
            n_prior=7,
            batch_size=1,
            latent_shape=(4, 8, 8),
            train_timesteps=1000,
        )
        mean = torch.cat([subject.mean[draw.instance], prior.mean[draw.prior]])
        std = torch.cat([subject.std[draw.instance], prior.std[draw.prior]])
        clean, noise = mean + std * draw.posterior.double(), draw.noise.double()
        noisy = noising.add_noise(clean, noise, draw.timesteps)
        output = base.unet(noisy, draw.timesteps, prompts).sample
        target = noise
        if kind == "v_prediction":
            target = noising.get_velocity(clean, noise, draw.timesteps)
        loss = F.mse_loss(output[:1], target[:1]) + F.mse_loss(output[1:], target[1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), SETTINGS.clip_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    for name, (down, up) in ours.adapter.items():
        # diffusers keeps the noise schedule in single precision
        torch.testing.assert_close(
            trained[f"{name}.lora_A.default.weight"].detach(), down, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            trained[f"{name}.lora_B.default.weight"].detach(), up, rtol=1e-4, atol=1e-5
        )


def test_the_identity_term_moves_the_weights_and_its_absence_does_not(base: BaseModel) -> None:
    plain = train(base, method="dreambooth")["ID_1"]
    without_face = train(base, guide=CentreFace(lambda image: False))["ID_1"]
    with_face = train(base)["ID_1"]
    torch.testing.assert_close(vector(without_face), vector(plain))
    assert set(without_face.losses["identity"]) == {0.0}
    assert set(without_face.losses["face_found"]) == {0.0}
    assert min(with_face.losses["identity"]) > 0
    assert relative(with_face, plain) > 1e-3


def test_faces_missing_in_some_samples_leave_the_others_term_untouched(base: BaseModel) -> None:
    base.to("cpu", torch.float64)
    some = CentreFace(lambda image: int(image[0, 0, 0]) % 2 == 0)
    together = train(base, guide=some)
    shares = [sum(together[name].losses["face_found"]) / SETTINGS.steps for name in NAMES]
    assert 0 < sum(shares) < len(NAMES)
    for name in NAMES:
        assert relative(together[name], train(base, (name,), guide=some)[name]) < 1e-12


def test_training_images_without_an_embedding_have_no_identity_term(base: BaseModel) -> None:
    subject = latent_set("ID_1", 1, "photo of sks person", base.dtype)
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    assert subject.embeddings is not None
    subject.embeddings[:] = math.nan
    idbooth, dreambooth = (
        Recipe(method, SETTINGS.for_method("idbooth"), 11) for method in ("idbooth", "dreambooth")
    )
    result = fine_tune(base, {"ID_1": subject}, prior, idbooth, CentreFace())["ID_1"]
    plain = fine_tune(base, {"ID_1": subject}, prior, dreambooth)["ID_1"]
    assert result.finite
    assert set(result.losses["face_found"]) == {0.0}
    torch.testing.assert_close(vector(result), vector(plain))


def test_the_network_is_given_back_untouched(base: BaseModel) -> None:
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    result = train(base)
    after = base.unet.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(result[name].finite for name in NAMES)


def test_one_identitys_divergence_touches_no_other(base: BaseModel) -> None:
    base.to("cpu", torch.float64)
    subjects = {name: latent_set(name, 3, "photo of sks person", base.dtype) for name in NAMES}
    prior = latent_set("prior", 7, "photo of a person", base.dtype)
    recipe = Recipe("dreambooth", SETTINGS.for_method("dreambooth"), 11)
    sound = fine_tune(base, subjects, prior, recipe)
    subjects["ID_2"].mean[:] = math.nan
    broken = fine_tune(base, subjects, prior, recipe)
    assert not broken["ID_2"].finite
    for name in ("ID_1", "ID_3"):
        assert broken[name].finite
        assert relative(broken[name], sound[name]) < 1e-12


@pytest.mark.parametrize("method", ["dreambooth", "portraitbooth", "idbooth"])
def test_a_larger_batch_has_the_mean_gradient_of_its_samples(base: BaseModel, method: str) -> None:
    base.to("cpu", torch.float64)
    two = SETTINGS.model_copy(update={"batch_size": 2})
    with a_fleet(base, method=method, settings=two) as fleet:
        for _ in range(2):  # away from the start, where half of the gradients are zero
            fleet.step()
        state, whole = fleet.state(), fleet.noise(2)
        losses = fleet.loss.backward(whole)
        gradients = fleet.bank.collect_gradients()
    parts = []
    with a_fleet(base, method=method) as fleet:
        fleet.load_state(state)
        for i in range(2):  # the i-th instance image with the i-th prior image
            pair = [i, 2 + i]
            own = StepNoise(
                whole.instance[:, [i]],
                whole.prior[:, [i]],
                *(each[:, pair] for each in (whole.posterior, whole.noise, whole.timesteps)),
            )
            parts.append((fleet.loss.backward(own), fleet.bank.collect_gradients()))
    first, second = parts
    assert relative_difference(first[1], second[1]) > 0.1
    torch.testing.assert_close(losses, (first[0] + second[0]) / 2)
    assert relative_difference(gradients, (first[1] + second[1]) / 2) < 1e-12


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_reduced_precision_follows_full_precision(base: BaseModel) -> None:
    full = train(base)["ID_1"]
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    reduced = train(base.to("cpu", "bf16"), settings=settings)["ID_1"]
    assert vector(reduced).dtype == torch.float32
    assert reduced.losses["instance"] == pytest.approx(full.losses["instance"], rel=0.1)


def test_similarities_are_taken_in_single_precision() -> None:
    faces = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()

    class Narrow(EveryFace):
        def embed(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
            return faces + 0 * images.mean().bfloat16()

    others = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))
    result = identity_term(
        torch.zeros(4, 3, 8, 8),
        term=triplet_identity_loss,
        decode=lambda latents: latents,
        guide=Narrow(),
        positives=others[0],
        negatives=others[1],
        margin=1.0,
        weights=torch.ones(4),
        chunk=4,
    )
    expected = triplet_identity_loss(faces.float(), *others, 1.0)
    torch.testing.assert_close(result.values, expected, rtol=0, atol=1e-6)


def test_methods_that_need_embeddings_say_so(base: BaseModel) -> None:
    subjects = {"ID_1": LatentSet(torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8), None, "a")}
    with pytest.raises(ValueError, match="embeddings"):
        fine_tune(base, subjects, subjects["ID_1"], Recipe("idbooth", SETTINGS, 0))


def test_clip_rows_equals_torch_for_each_row() -> None:
    gradients = torch.randn(3, 50, dtype=torch.float64) * torch.tensor([[0.001], [1.0], [30.0]])
    expected = []
    for row in gradients:
        parameter = torch.nn.Parameter(torch.zeros_like(row))
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        expected.append(parameter.grad)
    fleet.clip_rows(gradients, 1.0)
    torch.testing.assert_close(gradients, torch.stack(expected))


def test_cosine_schedule_falls_from_the_peak_towards_zero() -> None:
    rates = [fleet.learning_rate(2.0, "cosine", step, 10) for step in range(11)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(0.0)
    assert fleet.learning_rate(2.0, "constant", 9, 10) == 2.0


@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit"])
def test_a_fleet_goes_on_from_its_state_to_the_same_bits(base: BaseModel, optimiser: str) -> None:
    settings = SETTINGS.model_copy(update={"optimiser": optimiser})
    with a_fleet(base, settings=settings) as fleet:
        whole = finish(fleet)
    with a_fleet(base, settings=settings) as fleet:
        for _ in range(3):
            fleet.step()
        state = fleet.state()
        finish(fleet)  # the state is a copy
    assert state["losses"].shape == (3, 3, len(LOSSES))
    with a_fleet(base, settings=settings) as fleet:
        fleet.load_state(state)
        assert fleet.step_number == 3
        resumed = finish(fleet)
    for name in NAMES:
        assert torch.equal(vector(resumed[name]), vector(whole[name]))
        assert resumed[name].losses == whole[name].losses


def test_identities_of_several_states_go_on_in_shares_of_other_sizes(base: BaseModel) -> None:
    base.to("cpu", torch.float64)
    with a_fleet(base) as fleet:
        whole = finish(fleet)
    states = []
    for names in (NAMES[:2], NAMES[2:]):
        with a_fleet(base, names) as fleet:
            fleet.step()
            fleet.step()
            states.append(fleet.state())
    with a_fleet(base, (NAMES[2], NAMES[0])) as fleet:
        fleet.load_state(take_rows(join_rows(states), [2, 0]))
        for name, result in finish(fleet).items():
            assert relative(result, whole[name]) < 1e-12


def test_states_that_do_not_fit_are_refused(base: BaseModel) -> None:
    with a_fleet(base) as fleet:
        early = fleet.state()
        fleet.step()
        state = fleet.state()
        with pytest.raises(ValueError, match="expected"):
            fleet.load_state(take_rows(state, [0, 1]))
        with pytest.raises(ValueError, match="one step"):
            join_rows([early, state])
        with pytest.raises(ValueError, match="one step"):
            fleet.load_state(state | {"step": torch.tensor([1, 1, 0])})
        finish(fleet)
        with pytest.raises(ValueError, match="steps are done"):
            fleet.step()
