"""Make the prior preservation images: what the untouched base model knows of the class.

In:  the base model and the recogniser of the configuration.
Out: prior/<base model>/images/<index>.png       images that show a face;
     prior/<base model>/manifest.parquet         a row for every drawing, with its seed; one without
                                                 a face is a row with the reason, and drawn again;
     prior/<base model>/embeddings.safetensors   face embeddings, paired with the images by name.

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
from pipeline_steps.runtime.command_line import step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.diffusion import PriorSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.diffusion.sampling.sampler import ImageRequest
    from pipeline_steps.diffusion.training.face_region import FaceEmbedder

    Face = tuple[NDArray[np.float32], Tensor]  # box, embedding

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
    faces: FaceEmbedder | None = None,
) -> list[Row]:
    """Sample the prior set and write images, manifest and embeddings.

    Args:
        frozen: The step's configuration, with the roles base_model and recogniser.
        out: Folder to write.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image.
        faces: Detector and recogniser; None: MTCNN and the recogniser of the configuration.

    Returns:
        The manifest's rows.

    Raises:
        StepError: too few images show a face after all attempts.
    """
    import torch
    from torch.nn.functional import normalize

    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.training.face_region import load_faces
    from pipeline_steps.study.key import weights_hash

    settings = frozen.settings
    log = get_logger("prior")
    base = load_base_model(frozen.weights["base_model"], device, settings.precision)
    if faces is None:
        faces = load_faces(frozen.weights["recogniser"], device, settings.min_face_size)
    common = dict.fromkeys(COLUMNS) | {
        "prompt": settings.class_prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "scheduler": settings.scheduler,
        "base_model": base.name,
        "weights_sha256": weights_hash(frozen.weights["base_model"]),
        "kept": False,
        "reason": "no face",
    }
    rows: list[Row] = []
    embeddings: dict[int, Tensor] = {}
    missing = list(range(settings.images))
    with progress(
        range(0), description=f"prior {base.name}", total=settings.images, unit="image"
    ) as bar:
        for attempt in range(settings.attempts):
            for request, image, face in _draw(frozen, base, faces, missing, attempt, batch_size):
                row = common | {"index": request.index, "attempt": attempt, "seed": request.seed}
                if face is not None:
                    file, content = f"images/{request.index}.png", encode_png(image)
                    write_bytes(out / file, content)
                    row |= {"file": file, "sha256": sha256_bytes(content), "box": face[0]}
                    row |= {"kept": True, "reason": ""}
                    embeddings[request.index] = face[1]
                    bar.update(1)
                rows.append(row)
            missing = [index for index in missing if index not in embeddings]
            if not missing:
                break
            log.info("%d images show no face and are drawn again", len(missing))
    if missing:
        raise StepError(
            f"{len(missing)} of {settings.images} prior images of {base.name!r} show no face after "
            f"{settings.attempts} attempts with the prompt {settings.class_prompt!r}: change "
            "prior.class_prompt, or raise prior.attempts"
        )
    rows.sort(key=lambda row: (row["index"], row["attempt"]))
    order = sorted(embeddings)
    save_features(
        out / "embeddings.safetensors",
        normalize(torch.stack([embeddings[index] for index in order])).numpy(),
        [f"images/{index}.png" for index in order],
        key="embeddings",
        recogniser=frozen.weights["recogniser"].name,
    )
    write_manifest(out / "manifest.parquet", rows, COLUMNS)
    rejected = len(rows) - len(order)
    log.info("%d images with a face, %d drawings without one", len(order), rejected)
    return rows


def _draw(
    frozen: Frozen[PriorSettings],
    base: BaseModel,
    faces: FaceEmbedder,
    indices: Sequence[int],
    attempt: int,
    batch_size: int,
) -> Iterator[tuple[ImageRequest, NDArray[np.uint8], Face | None]]:
    """One drawing of each image: what was asked for, uint8 [h, w, 3], and its largest face."""
    from pipeline_steps.diffusion.sampling.sampler import ImageRequest, sample
    from pipeline_steps.diffusion.training.face_region import embed_largest, to_arrays

    settings = frozen.settings
    wanted = [
        ImageRequest(
            identity="prior",
            index=index,
            prompt=settings.class_prompt,
            negative_prompt=settings.negative_prompt,
            seed=seed_for(frozen.seed, "prior", base.name, index, attempt),
        )
        for index in indices
    ]
    for requests, images in sample(
        base,
        wanted,
        steps=settings.steps,
        guidance=settings.guidance,
        scheduler=settings.scheduler,
        batch_size=batch_size,
    ):
        found = embed_largest(faces, images.to(base.device))
        yield from zip(requests, to_arrays(images), found, strict=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("prior", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the prior set")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="images sampled together; changes no image"
    )
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, PriorSettings)
    with gpu_lease() as device:
        run(frozen, out=arguments.out, device=device, batch_size=arguments.batch_size)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
