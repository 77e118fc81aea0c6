"""Make the prior preservation images: what the untouched base model knows of the class.

In:  the base model and the recogniser of the configuration.
Out: prior/<base model>/images/<index>.png       images that show a face;
     prior/<base model>/manifest.parquet         a row for every sample, with its seed; one without
                                                 a face is a row with the reason, and another is
                                                 made in its place;
     prior/<base model>/embeddings.safetensors   face embeddings, paired with the images by name;
     prior/<base model>/images/items.json        keys of the finished samples, which are kept.

Source: DreamBooth (Ruiz et al., CVPR 2023); ID-Booth, Eq. 5 and, for the embeddings, Eq. 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.naming import GENERATED_BY
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key, weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import PriorSettings
from pipeline_steps.study.store import Store
from pipeline_steps.study.versions import made_with

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline_steps.diffusion.guide import Guide

Row = dict[str, Any]

FOLDER = "images"
COLUMNS = (
    "index",
    "attempt",
    "file",
    "sha256",
    *GENERATED_BY,
    "base_model",
    "weights_sha256",
    "box",
    "kept",
    "reason",
)


def run(
    frozen: Frozen[PriorSettings],
    *,
    out: Path,
    device: str = "cpu",
    batch_size: int = 16,
    guide: Guide | None = None,
) -> list[Row]:
    """Sample the prior set and write images, manifest and embeddings.

    Args:
        frozen: The step's configuration, with the roles base_model and recogniser.
        out: Folder to write.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image.
        guide: Detector and recogniser; None: MTCNN and the recogniser of the configuration.

    Returns:
        The manifest's rows.

    Raises:
        StepError: too few images show a face after all attempts.
        Interrupted: a signal asked to stop; finished images are kept.
    """
    import torch
    from torch.nn.functional import normalize

    from pipeline_steps.diffusion.sampling.plan import BaseAlone
    from pipeline_steps.diffusion.sampling.samples import Painter, Samples
    from pipeline_steps.faces.recogniser import embedded_by

    settings, name = frozen.settings, frozen.weights["base_model"].name
    painter = Painter(frozen, BaseAlone(), device, batch_size, "off")
    faces = _Faces(frozen, device, guide)
    with stop_requested() as stop:
        stores = {FOLDER: Store(out / FOLDER, made_with(frozen))}
        samples = Samples(out, stores, painter, faces, stop)
        rows = samples.finish(
            [_plan(frozen, index, 0) for index in range(settings.images)],
            partial(_keys, frozen),
            attempts=settings.attempts,
            again=lambda row: _plan(frozen, row["index"], row["attempt"] + 1),
        )
    rows.sort(key=lambda row: (row["index"], row["attempt"]))
    kept = [row for row in rows if row["kept"]]
    if len(kept) < settings.images:
        raise StepError(
            f"{settings.images - len(kept)} of {settings.images} prior images of {name!r} show no "
            f"face after {settings.attempts} attempts with the prompt {settings.class_prompt!r}: "
            "change prior.class_prompt, or raise prior.attempts"
        )
    recogniser = frozen.weights["recogniser"]
    save_features(
        out / "embeddings.safetensors",
        normalize(torch.tensor([row["embedding"] for row in kept])).numpy(),
        [row["file"] for row in kept],
        key="embeddings",
        recogniser=recogniser.name,
        **embedded_by(recogniser),
    )
    versions = sorted(samples.versions(rows))
    rows = [{column: row[column] for column in COLUMNS} for row in rows]
    write_manifest(out / "manifest.parquet", rows, COLUMNS, versions=versions)
    left_out = len(rows) - len(kept)
    get_logger("prior").info("%d images with a face, %d without", len(kept), left_out)
    return rows


def _plan(frozen: Frozen[PriorSettings], index: int, attempt: int) -> Row:
    """What an attempt at one image follows from."""
    settings, base_model = frozen.settings, frozen.weights["base_model"]
    return {
        "identity": FOLDER,
        "index": index,
        "attempt": attempt,
        "prompt": settings.class_prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": seed_for(frozen.seed, "prior", base_model.name, index, attempt),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "scheduler": settings.scheduler,
        "base_model": base_model.name,
        "weights_sha256": weights_hash(base_model),
    }


def _keys(frozen: Frozen[PriorSettings], rows: Sequence[Row]) -> list[str]:
    """Keys of samples, and of the faces found in them."""
    settings = frozen.settings
    how = {"precision": settings.precision, "min_face_size": settings.min_face_size}
    return [key(frozen, row=row, **how) for row in rows]


class _Faces:
    """Asks for a face in every image, and embeds it; see ``samples.Checks``."""

    shown = ("box", "embedding")

    def __init__(self, frozen: Frozen[PriorSettings], device: str, guide: Guide | None) -> None:
        self.keys = {FOLDER: ""}  # the samples' own keys say how they are measured
        self._frozen = frozen
        self._device = device
        self._guide = guide

    def measure(self, identity: str, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        import torch

        from pipeline_steps.diffusion.guide import embed_largest, load_guide

        if self._guide is None:
            least = self._frozen.settings.min_face_size
            self._guide = load_guide(self._frozen.weights["recogniser"], self._device, least)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self._device)
        return [
            {"box": face[0].tolist(), "embedding": face[1].tolist()}
            if face is not None and face[1].isfinite().all()
            else {}
            for face in embed_largest(self._guide, pixels)
        ]

    def reason_against(self, facts: dict[str, Any]) -> str:
        return "" if facts else "no face"


main = command(run, hidden=["guide"])

if __name__ == "__main__":
    raise SystemExit(run_main(main))
