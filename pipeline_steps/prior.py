"""Make the prior preservation images: what the untouched base model knows of the class.

In:  the base model and the recogniser of the configuration.
Out: prior/<base model>/images/<index>.png       images that show a face;
     prior/<base model>/manifest.parquet         a row for every sample, with its seed; one without
                                                 a face is a row with the reason, and another is
                                                 made in its place;
     prior/<base model>/embeddings.safetensors   face embeddings, paired with the images by name;
     prior/<base model>/items.json               keys of the finished samples, which are kept.

Source: DreamBooth (Ruiz et al., CVPR 2023); ID-Booth, Eq. 5 and, for the embeddings, Eq. 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import encode_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.naming import GENERATED_BY
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key, weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import PriorSettings
from pipeline_steps.study.store import Item, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.diffusion.training.guide import Guide

Row = dict[str, Any]

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
    """
    import torch
    from torch.nn.functional import normalize

    settings, base_model = frozen.settings, frozen.weights["base_model"].name
    log, store = get_logger("prior"), Store(out)
    maker = _Maker(frozen, device, batch_size, guide)
    weights_sha256 = weights_hash(frozen.weights["base_model"])
    rows: list[Row] = []
    found: dict[int, Item] = {}
    missing = list(range(settings.images))
    with progress(
        range(0), description=f"prior {base_model}", total=settings.images, unit="image"
    ) as bar:
        for attempt in range(settings.attempts):
            for planned, item in maker.items(store, _plan(frozen, missing, attempt)):
                row = dict.fromkeys(COLUMNS) | planned | {"base_model": base_model}
                row |= {"weights_sha256": weights_sha256, "kept": False, "reason": "no face"}
                for file, digest in item.files.items():
                    row |= {"file": file, "sha256": digest, "box": item.facts["box"]}
                    row |= {"kept": True, "reason": ""}
                    found[planned["index"]] = item
                    bar.update(1)
                rows.append(row)
            missing = [index for index in missing if index not in found]
            if not missing:
                break
            log.info("%d images show no face and are made again", len(missing))
    if missing:
        raise StepError(
            f"{len(missing)} of {settings.images} prior images of {base_model!r} show no face "
            f"after {settings.attempts} attempts with the prompt {settings.class_prompt!r}: change "
            "prior.class_prompt, or raise prior.attempts"
        )
    rows.sort(key=lambda row: (row["index"], row["attempt"]))
    embeddings = torch.tensor([found[index].facts["embedding"] for index in sorted(found)])
    save_features(
        out / "embeddings.safetensors",
        normalize(embeddings).numpy(),
        [f"images/{index}.png" for index in sorted(found)],
        key="embeddings",
        recogniser=frozen.weights["recogniser"].name,
    )
    write_manifest(out / "manifest.parquet", rows, COLUMNS)
    log.info("%d images with a face, %d without", len(found), len(rows) - len(found))
    return rows


def _plan(frozen: Frozen[PriorSettings], indices: Sequence[int], attempt: int) -> list[Row]:
    """What one attempt at some images follows from; the columns of GENERATED_BY among it."""
    settings, base_model = frozen.settings, frozen.weights["base_model"].name
    return [
        {
            "index": index,
            "attempt": attempt,
            "prompt": settings.class_prompt,
            "negative_prompt": settings.negative_prompt,
            "seed": seed_for(frozen.seed, "prior", base_model, index, attempt),
            "steps": settings.steps,
            "guidance": settings.guidance,
            "scheduler": settings.scheduler,
        }
        for index in indices
    ]


class _Maker:
    """Samples images and looks for a face; networks are loaded when the first is missing."""

    def __init__(
        self, frozen: Frozen[PriorSettings], device: str, batch_size: int, guide: Guide | None
    ) -> None:
        self._frozen = frozen
        self._device = device
        self._batch_size = batch_size
        self._guide = guide
        self._base: BaseModel | None = None

    def items(self, store: Store, rows: Sequence[Row]) -> Iterator[tuple[Row, Item]]:
        """Planned samples and what came of them, those first that are finished."""
        settings, missing = self._frozen.settings, {}
        more = {"precision": settings.precision, "min_face_size": settings.min_face_size}
        for row in rows:
            name, own = f"{row['index']}.{row['attempt']}", key(self._frozen, row=row, **more)
            item = store.find(name, own)
            if item is None:
                missing[row["index"]] = row, name, own
            else:
                yield row, item
        for made in self._make([row for row, _, _ in missing.values()]) if missing else ():
            fresh = {}
            for index, image, face in made:
                row, name, own = missing[index]
                item = Item(own)
                if face is not None:
                    file, content = f"images/{index}.png", encode_png(image)
                    write_bytes(store.folder / file, content)
                    facts = {"box": face[0].tolist(), "embedding": face[1].tolist()}
                    item = Item(own, {file: sha256_bytes(content)}, facts)
                fresh[name] = item
                yield row, item
            store.add(fresh)

    def _make(self, rows: Sequence[Row]) -> Iterator[list[tuple[int, NDArray[np.uint8], Any]]]:
        """Batches of index, image uint8 [h, w, 3], and box and embedding of its largest face."""
        from pipeline_steps.diffusion.base_models import load_base_model
        from pipeline_steps.diffusion.base_models.base import to_arrays
        from pipeline_steps.diffusion.sampling.sampler import ImageRequest, sample
        from pipeline_steps.diffusion.training.guide import embed_largest, load_guide

        settings, weights = self._frozen.settings, self._frozen.weights
        if self._base is None:
            self._base = load_base_model(weights["base_model"], self._device, settings.precision)
        if self._guide is None:
            self._guide = load_guide(weights["recogniser"], self._device, settings.min_face_size)
        wanted = [
            ImageRequest("prior", row["index"], row["prompt"], row["negative_prompt"], row["seed"])
            for row in rows
        ]
        for requests, images in sample(
            self._base,
            wanted,
            steps=settings.steps,
            guidance=settings.guidance,
            scheduler=settings.scheduler,
            batch_size=self._batch_size,
        ):
            faces = embed_largest(self._guide, images.to(self._base.device))
            indices = [request.index for request in requests]
            yield list(zip(indices, to_arrays(images), faces, strict=True))


main = command(run, hidden=["guide"])

if __name__ == "__main__":
    raise SystemExit(run_main(main))
