"""What lies before and beside the aligned images: their sources, and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline_steps.recognition.backbones import load_backbone
from pipeline_steps.recognition.benchmarks import read_bin
from recomputed.images import AT_ONCE, Images, images_below, minus_one_to_one, opened
from recomputed.landmarks import TEMPLATE, similarity
from recomputed.study import Study

Array = np.ndarray[Any, Any]


def realigned(study: Study, name: str, images: Images) -> list[str]:
    """What is wrong with how a set was aligned: each image is cut from its source once more.

    Args:
        study: the study.
        name: the set; of archives, the in-the-wild set's and those of others, nothing is said.
        images: the set.
    """
    if name == "wild" or name.startswith("external/"):
        return []
    source = study.place("samples", variant=name).parent
    if name == "real":
        source = study.place("manifest").parent
    manifest = pd.read_parquet(images.folder / "manifest.parquet")
    made = set(images_below(source))
    wrong = []
    if len(made) != len(manifest):
        wrong.append(f"{len(made)} images in {source}, {len(manifest)} rows in the manifest")
    kept = manifest[manifest["kept"]]
    for index, file in enumerate(kept["source_file"]):
        place = source / file
        if file not in made:
            wrong.append(f"{file} is missing")
            continue
        a, b = similarity(images.landmarks[index], TEMPLATE)
        inverse = 1 / a
        with Image.open(opened(place)) as image:
            # PIL counts from a pixel's corner, the template from its centre, and PIL asks for
            # the way back.
            centre = 0.5 + 0.5j
            shift = centre - (centre + b) * inverse
            cut = image.convert("RGB").transform(
                (112, 112),
                Image.Transform.AFFINE,
                (inverse.real, -inverse.imag, shift.real, inverse.imag, inverse.real, shift.imag),
                Image.Resampling.BILINEAR,
            )
        off = np.abs(np.array(cut, np.int16) - images.pixels(index))[8:-8, 8:-8]
        if np.median(off) > 2 or off.mean() > 4:
            wrong.append(f"{images.files[index]} is off its landmarks ({off.mean():.1f} levels)")
    return wrong


def benchmark_distances(model: Path, benchmark: Path) -> tuple[Array, Array]:
    """Squared distances of a benchmark's pairs by a trained recogniser [n], and who is the same.

    The embedding of an image is that of the image plus that of its mirror image.
    """
    network, built_as, _ = load_backbone(model)
    images, same = read_bin(benchmark)
    side = built_as.input_size
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), AT_ONCE):
            batch = np.stack(
                [shrunk(minus_one_to_one(image), side) for image in images[start : start + AT_ONCE]]
            )
            both = [network(torch.from_numpy(x.copy())) for x in (batch, batch[:, :, :, ::-1])]
            rows.append((both[0].double() + both[1].double()).numpy())
    embeddings = np.concatenate(rows)
    embeddings = embeddings / np.sqrt((embeddings**2).sum(axis=1))[:, None]
    left, right = embeddings[0::2], embeddings[1::2]
    return ((left - right) ** 2).sum(axis=1), np.array(same, bool)


def shrunk(x: Array, side: int) -> Array:
    """[3, h, h] by the averages of the pixels that each new pixel covers, wholly or in part."""
    old = x.shape[1]
    if old == side:
        return x
    covers = np.zeros((side, old))
    for i in range(side):
        first, last = i * old // side, -(-(i + 1) * old // side)
        covers[i, first:last] = 1.0 / (last - first)
    return (covers @ x @ covers.T).astype(np.float32)
