"""Make the prior preservation images: what the untouched base model knows of the class.

In:  the base model and the recogniser of the configuration.
Out: prior/<base model>/images/<index>.png       images that show a face;
     prior/<base model>/manifest.parquet         a row for every drawing, with its seed; one without
                                                 a face is a row with the reason, and drawn again;
     prior/<base model>/embeddings.safetensors   face embeddings, paired with the images by name.

Source: DreamBooth (Ruiz et al., CVPR 2023); ID-Booth, Eq. 5 and, for the embeddings, Eq. 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.command_line import step_command_line
from pipeline_steps.files.atomic import write_bytes
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.files.hashes import sha256_bytes
from pipeline_steps.files.images import encode_png
from pipeline_steps.files.lease import gpu_lease
from pipeline_steps.files.logs import get_logger, progress
from pipeline_steps.files.manifests import write_manifest
from pipeline_steps.files.tensors import save_features
from pipeline_steps.naming import GENERATED_BY
from pipeline_steps.seeds import seed_for
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.prior import PriorSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline_steps.diffusion.face_region import FaceEmbedder
    from pipeline_steps.diffusion.sampler import ImageRequest

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
) -> list[dict[str, Any]]:
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
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.content_key import weights_hash
    from pipeline_steps.diffusion.face_region import load_faces, to_arrays
    from pipeline_steps.diffusion.sampler import sample

    settings = frozen.settings
    log = get_logger("prior")
    base = load_base_model(frozen.weights["base_model"], device, settings.precision)
    if faces is None:
        faces = load_faces(frozen.weights["recogniser"], device, settings.min_face_size)
    common = {
        "prompt": settings.class_prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "scheduler": settings.scheduler,
        "base_model": base.name,
        "weights_sha256": weights_hash(frozen.weights["base_model"]),
    }
    rows: list[dict[str, Any]] = []
    embeddings: dict[int, NDArray[np.float32]] = {}
    missing = list(range(settings.images))
    bar = progress(range(0), description=f"prior {base.name}", total=settings.images, unit="image")
    for attempt in range(settings.attempts):
        batches = sample(
            base,
            [_request(frozen, base.name, index, attempt) for index in missing],
            steps=settings.steps,
            guidance=settings.guidance,
            scheduler=settings.scheduler,
            batch_size=batch_size,
        )
        for requests, images in batches:
            found = _embed(faces, images.to(device))
            pixels = to_arrays(images)
            for request, image, face in zip(requests, pixels, found, strict=True):
                file, digest, box = None, None, None
                if face is not None:
                    file, content = f"images/{request.index}.png", encode_png(image)
                    write_bytes(out / file, content)
                    digest, box = sha256_bytes(content), face[0]
                    embeddings[request.index] = face[1]
                    bar.update(1)
                rows.append(
                    common
                    | {
                        "index": request.index,
                        "attempt": attempt,
                        "file": file,
                        "sha256": digest,
                        "seed": request.seed,
                        "box": box,
                        "kept": face is not None,
                        "reason": "" if face is not None else "no face",
                    }
                )
        missing = [index for index in missing if index not in embeddings]
        if not missing:
            break
        log.info("%d images show no face and are drawn again", len(missing))
    bar.close()
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
        np.stack([embeddings[index] for index in order]),
        [f"images/{index}.png" for index in order],
        key="embeddings",
        recogniser=frozen.weights["recogniser"].name,
    )
    write_manifest(out / "manifest.parquet", rows, COLUMNS)
    rejected = len(rows) - len(order)
    log.info("%d images with a face, %d drawings without one", len(order), rejected)
    return rows


def _request(
    frozen: Frozen[PriorSettings], base_model: str, index: int, attempt: int
) -> ImageRequest:
    from pipeline_steps.diffusion.sampler import ImageRequest

    return ImageRequest(
        identity="prior",
        index=index,
        prompt=frozen.settings.class_prompt,
        negative_prompt=frozen.settings.negative_prompt,
        seed=seed_for(frozen.seed, "prior", base_model, index, attempt),
    )


def _embed(
    faces: FaceEmbedder, images: Tensor
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]] | None]:
    """Box and unit embedding of each image of uint8 [n, 3, h, w]; None where no face is found."""
    import torch

    from pipeline_steps.diffusion.face_region import to_signed

    result: list[tuple[NDArray[np.float32], NDArray[np.float32]] | None] = [None] * len(images)
    boxes = faces.boxes(images)
    where = [i for i, box in enumerate(boxes) if box is not None]
    if where:
        with torch.no_grad():
            found = torch.from_numpy(np.stack([box for box in boxes if box is not None]))
            rows = faces.embed(to_signed(images[where]), found.to(images.device))
            rows = torch.nn.functional.normalize(rows.float()).cpu()
        for i, row in zip(where, rows.numpy(), strict=True):
            result[i] = (boxes[i], row)  # type: ignore[assignment]
    return result


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
