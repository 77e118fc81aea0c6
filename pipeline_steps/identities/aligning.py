"""Faces of some images, cut out on the template: what the step align does with each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.faces.alignment import TEMPLATE_SIZE, align_to_template
from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import BadImage, encode_png, read_image

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detector

Row = dict[str, Any]

COLUMNS = (
    *("identity", "file", "source_file", "source_sha256", "sha256"),
    *("box", "landmarks", "probability", "kept", "reason"),
)


@dataclass(frozen=True)
class Input:
    """An image to align: whose it is, its name in the source, its name here, its bytes, and the box
    of the person's face where there may be several."""

    identity: str
    source_file: str
    file: str
    read: Callable[[], bytes]
    box: Any = None


def begin(inputs: Sequence[Input]) -> tuple[list[Row], list[bytes]]:
    """Rows of images before they are looked at, with their hashes, and the bytes of each.

    What cannot be read has the reason in its row, and no bytes.
    """
    rows: list[Row] = []
    contents: list[bytes] = []
    for one in inputs:
        row = dict.fromkeys(COLUMNS) | {"kept": False, "reason": "no face"}
        row |= {"identity": one.identity, "source_file": one.source_file}
        content = b""
        try:
            content = one.read()
            row["source_sha256"] = sha256_bytes(content)
        except BadImage as error:
            row["reason"] = error.reason
        except OSError:
            row["reason"] = "missing"
        rows.append(row)
        contents.append(content)
    return rows, contents


def align_batch(
    inputs: Sequence[Input],
    begun: Sequence[Row],
    contents: Sequence[bytes],
    detector: Detector | None,
    padding: float,
    out: Path,
) -> list[Row]:
    """Align some images and write those with a face.

    Args:
        inputs: the images.
        begun, contents: their rows and bytes, from `begin`.
        detector, padding: how faces are searched; without a detector the pixels are taken as they
            are, which have to be those of aligned faces.
        out: folder to write.

    Returns:
        The finished rows, as JSON values.
    """
    rows = [dict(row) for row in begun]
    images: dict[int, NDArray[np.uint8]] = {}
    for index, (row, content) in enumerate(zip(rows, contents, strict=True)):
        if row["source_sha256"] is None:
            continue
        try:
            images[index] = read_image(content)
        except BadImage as error:
            row["reason"] = error.reason
    if detector is None:
        for index, image in images.items():
            if image.shape[:2] == (TEMPLATE_SIZE, TEMPLATE_SIZE):
                rows[index] |= written(out, inputs[index].file, image)
            else:
                rows[index]["reason"] = "not of the set's size"
        return rows
    faces = detector.detect(list(images.values()), padding=padding)
    for (index, image), face in zip(images.items(), faces, strict=True):
        if face is None:
            continue
        face = face.nearest(inputs[index].box)
        rows[index] |= written(
            out, inputs[index].file, align_to_template(image, face.landmarks)
        ) | {
            "box": face.box.tolist(),
            "landmarks": face.landmarks.ravel().tolist(),
            "probability": face.probability,
        }
    return rows


def written(out: Path, file: str, face: NDArray[np.uint8]) -> Row:
    """Write an aligned face; what its row says of it."""
    png = encode_png(face)
    write_bytes(out / file, png)
    return {"file": file, "sha256": sha256_bytes(png), "kept": True, "reason": ""}
