"""From planned rows to images: base model, adapters and sampler of one configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from pipeline_steps.diffusion.adapters.lora_files import load_bank
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.sampling.compiled_sampling import compiled_predict
from pipeline_steps.diffusion.sampling.sample_plan import Row
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, sample
from pipeline_steps.diffusion.training.runtime import Switch
from pipeline_steps.naming import VARIANT
from pipeline_steps.runtime.logs import progress
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import SampleSettings

# Adapters on the network together. With others it is compiled anew, which on a GPU takes as long as
# hundreds of images; 128 adapters of the paper take 0.4 GB (SD-2.1) or 3 GB (SDXL).
AT_ONCE = {"cpu": 16, "cuda": 128}


class Painter:
    """Samples rows; the base model is loaded when the first are asked for.

    Args:
        frozen: Configuration of the sample step.
        loras: Folder with the identities' weights; None: the untuned base model.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image.
        compile_network: See ``Runtime.compile``.
    """

    def __init__(
        self,
        frozen: Frozen[SampleSettings],
        loras: Path | None,
        device: str,
        batch_size: int,
        compile_network: Switch,
    ) -> None:
        self._frozen = frozen
        self._loras = loras
        self._device = device
        self._batch_size = batch_size
        self._compile_network = compile_network
        self._base: BaseModel | None = None

    def paint(self, rows: Sequence[Row]) -> Iterator[tuple[list[ImageRequest], Tensor]]:
        """Batches of requests and their images, uint8 [n, 3, h, w] on the CPU."""
        settings = self._frozen.settings
        if self._base is None:
            weights = self._frozen.weights["base_model"]
            self._base = load_base_model(weights, self._device, settings.precision)
        variant = self._frozen.variant
        label = "/".join(variant.get(name, "") for name in VARIANT)
        identities = list(dict.fromkeys(row["identity"] for row in rows))
        with progress(range(0), description=label, total=len(rows), unit="image") as bar:
            at_once = AT_ONCE.get(self._device, AT_ONCE["cpu"])
            for start in range(0, len(identities), at_once):
                part = identities[start : start + at_once]
                loras = self._loras
                folders = [] if loras is None else [loras / name for name in part]
                bank = load_bank(self._base.unet, folders) if folders else None
                wanted = [row for row in rows if row["identity"] in part]
                try:
                    for requests, images in sample(
                        self._base,
                        [_request(row, part if bank is not None else None) for row in wanted],
                        steps=settings.steps,
                        guidance=settings.guidance,
                        scheduler=settings.scheduler,
                        batch_size=self._batch_size,
                        bank=bank,
                        predict=compiled_predict(self._base, self._compile_network),
                    ):
                        yield requests, images
                        bar.update(len(requests))
                finally:
                    if bank is not None:
                        bank.remove()


def _request(row: Row, identities: Sequence[str] | None) -> ImageRequest:
    return ImageRequest(
        identity=row["identity"],
        index=row["index"],
        prompt=row["prompt"],
        negative_prompt=row["negative_prompt"],
        seed=row["seed"],
        adapter=None if identities is None else identities.index(row["identity"]),
    )
