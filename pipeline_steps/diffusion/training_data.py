"""Images of the dataset and of the prior set, encoded once for all steps of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_region import to_signed
from pipeline_steps.diffusion.latent_set import LatentSet
from pipeline_steps.files.dataset import read_embeddings
from pipeline_steps.files.errors import StepError
from pipeline_steps.files.images import BadImage, read_image
from pipeline_steps.files.manifests import read_manifest


def prior_latents(base: BaseModel, prior: Path, *, with_embeddings: bool) -> LatentSet:
    """The prior set.

    Args:
        base: Base model with its autoencoder in float32.
        prior: Folder with manifest.parquet, images/ and embeddings.safetensors.
        with_embeddings: Whether the method needs them.

    Raises:
        StepError: a file is missing or broken, or the images have more than one prompt.
    """
    manifest = read_manifest(prior / "manifest.parquet", ["file", "prompt", "kept"])
    kept = manifest[manifest["kept"].astype(bool)]
    prompts = sorted(set(kept["prompt"]))
    if len(prompts) != 1:
        raise StepError(f"the prior set {prior} has {len(prompts)} prompts; one is expected")
    files = list(kept["file"])
    path = prior / "embeddings.safetensors"
    embeddings = read_embeddings(path, files) if with_embeddings else None
    if embeddings is not None and not np.isfinite(embeddings).all():
        raise StepError(f"{path} does not fit the manifest beside it: run prior again")
    try:
        return encode_files(base, [prior / file for file in files], prompts[0], embeddings)
    except BadImage as error:
        raise StepError(f"prior set {prior}: {error}; delete it and run prior again") from error


def encode_files(
    base: BaseModel,
    files: Sequence[Path],
    prompt: str,
    embeddings: NDArray[np.float32] | None = None,
) -> LatentSet:
    """Latents of square image files, resized to the base model's resolution where they differ.

    Args:
        base: Base model with its autoencoder in float32.
        files: Images.
        prompt: The one prompt of all of them.
        embeddings: float32 [n, d], row by row those of the files; NaN for none.

    Returns:
        Tensors on the CPU.

    Raises:
        BadImage: an image is missing, broken or not square.
    """
    pixels = [_square(file, base.resolution) for file in files]
    mean, std = base.encode_images(
        to_signed(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    )
    rows = None if embeddings is None else torch.from_numpy(embeddings)
    return LatentSet(mean.cpu(), std.cpu(), rows, prompt)


def _square(file: Path, side: int) -> NDArray[np.uint8]:
    if not file.is_file():
        raise BadImage("missing", str(file))
    image = read_image(file)
    height, width = image.shape[:2]
    if height != width:
        raise BadImage("not square", f"{file} {width}x{height}")
    if height == side:
        return image
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized)
