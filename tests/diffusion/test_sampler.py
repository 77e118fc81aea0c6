"""Sampling: batches change no image, and plain diffusers gives the same one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_steps.diffusion.adapters import AdapterBank
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_region import to_arrays
from pipeline_steps.diffusion.lora_files import save_lora
from pipeline_steps.diffusion.sampler import ImageRequest, plan_batches, sample

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
    for done, images in sample(
        base,
        wanted,
        steps=4,
        guidance=guidance,
        scheduler=scheduler,
        batch_size=batch_size,
        bank=bank,
    ):
        for request, image in zip(done, to_arrays(images), strict=True):
            result[request.identity, request.index] = image
    return result


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
def test_batch_size_changes_no_image(base: BaseModel, scheduler: str) -> None:
    wanted = requests(5)
    one = images_of(base, wanted, batch_size=1, scheduler=scheduler)
    many = images_of(base, wanted, batch_size=4, scheduler=scheduler)
    assert set(one) == set(many) and len(one) == 5
    assert all(largest_difference(one[key], many[key]) <= 1 for key in one)
    assert largest_difference(one["ID_None", 0], one["ID_None", 1]) > 5


def test_identities_of_one_batch_keep_their_own_adapters(base: BaseModel) -> None:
    bank = strong_bank(base, 3)
    wanted = [request for k in range(3) for request in requests(2, k)]
    together = images_of(base, wanted, batch_size=6, bank=bank)
    for k in range(3):
        alone = images_of(base, requests(2, k), batch_size=1, bank=bank)
        assert all(largest_difference(alone[key], together[key]) <= 1 for key in alone)
    assert largest_difference(together["ID_0", 0], together["ID_1", 0]) > 5


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


def test_an_unknown_scheduler_is_refused(base: BaseModel) -> None:
    with pytest.raises(ValueError, match="ddpm"):
        images_of(base, requests(1), batch_size=1, scheduler="magic")
