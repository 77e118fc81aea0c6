"""Sampling: batches change no image, and plain diffusers gives the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import (
    BaseModel,
    Conditioning,
    Predict,
    compiled_predict,
    to_arrays,
    to_uint8,
    with_fallback,
)
from pipeline_steps.diffusion.lora import AdapterBank, save_lora
from pipeline_steps.diffusion.sampling.sampler import (
    SCHEDULERS,
    ImageRequest,
    Sampling,
    make_scheduler,
    plan_batches,
    sample,
    sample_latents,
)
from pipeline_steps.diffusion.training.data import encode_files
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.sampling import MOST_STEPS, SampleSettings, Scheduler

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
NEGATIVE = "cartoon, cgi"


def requests(count: int, adapter: int | None = None) -> list[ImageRequest]:
    return [
        ImageRequest(
            f"ID_{adapter}", i, f"photo of sks person {i}", NEGATIVE, 100 + i, adapter=adapter
        )
        for i in range(count)
    ]


def strong_bank(base: BaseModel, count: int) -> AdapterBank:
    """Adapters of rank 2 and alpha 6, large enough to change images visibly."""
    bank = AdapterBank(base.unet, count=count, rank=2, alpha=6.0, targets=TARGETS)
    with torch.no_grad():
        bank.weights.normal_(std=0.3, generator=torch.Generator().manual_seed(4))
    return bank


def images_of(
    base: BaseModel,
    wanted: list[ImageRequest],
    *,
    batch_size: int,
    bank: AdapterBank | None = None,
    scheduler: str = "ddpm",
    guidance: float = 5.0,
) -> dict[tuple[str, int], np.ndarray]:
    result = {}
    how = Sampling(4, guidance, scheduler, batch_size)
    for done, images in sample(base, wanted, how, bank=bank):
        for request, image in zip(done, to_arrays(images), strict=True):
            result[request.identity, request.index] = image
    return result


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def latents_of(
    base: BaseModel,
    wanted: list[ImageRequest],
    *,
    batch_size: int,
    bank: AdapterBank | None = None,
    scheduler: str = "ddpm",
    predict: Predict | None = None,
) -> dict[tuple[str, int], torch.Tensor]:
    how = Sampling(steps=4, guidance=3.0, scheduler=scheduler, batch_size=batch_size)
    return {
        (request.identity, request.index): row
        for done, latents in sample_latents(base, wanted, how, bank=bank, predict=predict)
        for request, row in zip(done, latents, strict=True)
    }


def assert_same(
    one: dict[tuple[str, int], torch.Tensor],
    other: dict[tuple[str, int], torch.Tensor],
    tolerance: float = 1e-5,
) -> None:
    for key, value in one.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(other[key], value, rtol=0.0, atol=tolerance * scale)


def test_the_settings_offer_every_scheduler() -> None:
    assert set(get_args(Scheduler)) == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_changes_no_image_whatever_the_scheduler(base: BaseModel, scheduler: str) -> None:
    wanted = requests(5)
    one = latents_of(base, wanted, batch_size=1, scheduler=scheduler)
    many = latents_of(base, wanted, batch_size=4, scheduler=scheduler)
    assert set(one) == set(many) and len(one) == 5
    assert_same(one, many)
    assert (one["ID_None", 0] - one["ID_None", 1]).abs().max() > 0.1


@pytest.mark.parametrize("grouped", [False, True], ids=["folded", "grouped"])
def test_an_identity_alone_and_in_a_share_of_eight_gives_equal_images(
    base: BaseModel, grouped: bool
) -> None:
    """Equal to 1e-5, relative to the latents' range, in both ways to apply adapters."""
    bank = AdapterBank(base.unet, count=8, rank=2, alpha=2.0, targets=TARGETS)
    with torch.no_grad():
        bank.weights.normal_(std=0.15, generator=torch.Generator().manual_seed(4))
    predict = base.predict if grouped else None
    counts = [21, 3, 5, 21, 2, 1, 4, 7]
    share = [request for k, count in enumerate(counts) for request in requests(count, k)]
    together = latents_of(base, share, batch_size=16, bank=bank, predict=predict)
    assert len(together) == sum(counts)
    alone = latents_of(base, requests(21, 3), batch_size=21, bank=bank)
    assert_same(alone, together)
    assert (together["ID_0", 0] - together["ID_3", 0]).abs().max() > 0.01


def test_batches_of_a_compiled_network_have_one_shape(base: BaseModel) -> None:
    shapes = set()

    def predict(noisy: torch.Tensor, t: torch.Tensor, condition: Conditioning) -> torch.Tensor:
        shapes.add((tuple(noisy.shape), tuple(t.shape), len(condition)))
        return base.predict(noisy, t, condition)

    bank = strong_bank(base, 3)
    wanted = [*requests(4, 0), *requests(4, 1), *requests(3, 2)]
    images = latents_of(base, wanted, batch_size=8, bank=bank, predict=predict)
    assert len(images) == 11 and len(shapes) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_less_memory_means_smaller_batches_and_the_same_images(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    bank, wanted = strong_bank(base, 2), [*requests(5, 0), *requests(3, 1)]
    expected = images_of(base, wanted, batch_size=1, bank=bank)
    sizes: list[tuple[str, int]] = []

    def with_room_for(most: int, name: str, work: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(batch: Tensor, *rest: Any) -> Tensor:
            sizes.append((name, len(batch)))
            if len(batch) > most:
                raise torch.OutOfMemoryError("simulated")
            return work(batch, *rest)

        return wrapped

    predict = with_room_for(6, "predict", base.predict)  # guidance doubles a batch of three
    monkeypatch.setattr(base, "predict", predict)
    monkeypatch.setattr(base, "decode", with_room_for(1, "decode", base.decode))
    how = Sampling(4, 5.0, "ddpm", 8)
    found = {
        (request.identity, request.index): image
        for done, images in sample(
            base, wanted, how, bank=bank, predict=predict if compiled else None
        )
        for request, image in zip(done, to_arrays(images), strict=True)
    }
    assert set(found) == set(expected)
    for key, image in found.items():
        assert largest_difference(image, expected[key]) <= 1
    assert ("decode", 1) in sizes
    monkeypatch.setattr(base, "predict", with_room_for(1, "predict", predict))
    with pytest.raises(StepError, match="one image does not fit"):
        images_of(base, wanted, batch_size=8, bank=bank)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["ddpm", "dpmsolver++"])
def test_plain_diffusers_gives_the_same_image_with_and_without_our_weights(
    base: BaseModel, pipeline_folder: Path, tmp_path: Path, scheduler: str, guidance: float
) -> None:
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    kind = DDPMScheduler if scheduler == "ddpm" else DPMSolverMultistepScheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    [request] = requests(1, adapter=0)

    def plain() -> np.ndarray:
        image = pipe(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=4,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).images[0]
        result: np.ndarray = (image * 255).round().astype(np.uint8)
        return result

    options = {"batch_size": 1, "scheduler": scheduler, "guidance": guidance}
    untuned = plain()
    ours = images_of(base, [request], **options)["ID_0", 0]
    assert largest_difference(untuned, ours) <= 1
    bank = strong_bank(base, 1)
    ours = images_of(base, [request], bank=bank, **options)["ID_0", 0]
    save_lora(tmp_path, bank.adapter(0), rank=2, alpha=6.0, targets=TARGETS)
    pipe.load_lora_weights(tmp_path)
    tuned = plain()
    assert largest_difference(tuned, ours) <= 1
    assert largest_difference(tuned, untuned) > 5


def test_a_network_that_fails_to_compile_gives_way(base: BaseModel) -> None:
    calls = 0

    def broken(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("no compiler")

    wanted = requests(3)
    images = latents_of(base, wanted, batch_size=2, predict=with_fallback(base, broken))
    assert_same(latents_of(base, wanted, batch_size=2), images)
    assert calls == 1
    assert compiled_predict(base, "off") is None and compiled_predict(base, "auto") is None


def test_batches_are_full_and_hold_every_request_once() -> None:
    wanted = [*requests(21, 0), *requests(21, 1), *requests(3, 2), *requests(3, 3)]
    batches = plan_batches(wanted, 8)
    for batch in batches:
        assert len({len(group) for group in batch}) == 1
        assert all(len({request.adapter for request in group}) == 1 for group in batch)
        assert sum(len(group) for group in batch) <= 8
    flat = [request for batch in batches for group in batch for request in group]
    assert sorted(flat, key=repr) == sorted(wanted, key=repr)
    assert [len(batch) for batch in batches][-1] == 2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_no_number_of_steps_asks_for_a_time_that_was_not_trained(
    base: BaseModel, scheduler: str, spacing: str
) -> None:
    """1000 times were trained; beyond the last lie NaN, or errors, by the scheduler."""
    config = base.scheduler_config | {"timestep_spacing": spacing, "steps_offset": 1}
    for steps in (1, 2, 30, 500, 501, MOST_STEPS):
        made = make_scheduler(config, scheduler)
        made.set_timesteps(steps)
        times = np.asarray(made.timesteps)
        assert times.min() >= 0 and times.max() < base.train_timesteps, steps
    with pytest.raises(ValueError, match=str(MOST_STEPS)):
        SampleSettings(steps=MOST_STEPS + 1)


def test_an_image_with_a_number_that_is_not_finite_is_black() -> None:
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    images[1, 2, 3, 3], images[2, 0, 0, 0] = torch.nan, torch.inf
    shown = to_uint8(images)
    assert [bool(image.any()) for image in shown] == [True, False, False, True]


def test_latents_that_are_not_finite_stop_at_the_image_that_gives_them(
    base: BaseModel, tmp_path: Path
) -> None:
    for side, name in ((0, "a.png"), (128, "b.png")):
        write_png(tmp_path / name, np.full((32, 32, 3), side, dtype=np.uint8))
    noted = {tmp_path / name: sha256_file(tmp_path / name) for name in ("a.png", "b.png")}
    assert len(encode_files(base, noted, "prepare", "photo", None)) == 2
    next(base.vae.parameters()).data.fill_(torch.nan)
    with pytest.raises(StepError, match=r"no finite latents for .*a\.png"):
        encode_files(base, noted, "prepare", "photo", None)


def test_an_unknown_scheduler_is_refused(base: BaseModel) -> None:
    with pytest.raises(ValueError, match="ddpm"):
        images_of(base, requests(1), batch_size=1, scheduler="magic")
