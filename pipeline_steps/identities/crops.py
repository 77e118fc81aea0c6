"""The square crop of a photograph about its person's face, and which of several faces that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.faces.alignment import Square
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.identities.candidates import Candidate
from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import encode_png, read_image
from pipeline_steps.io.weights import Weights
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import PrepareSettings
from pipeline_steps.study.store import Item, Store

PICTURE = {"resolution", "margin", "min_face_side", "detection_side", "detector"}

Row = dict[str, Any]


class Face(NamedTuple):
    """A face of a photograph, in its pixels, as JSON values.

    Attributes:
        box: x1, y1, x2, y2.
        landmarks: x and y of five points, see `faces.alignment`.
        probability: of being a face, in [0, 1].
    """

    box: list[float]
    landmarks: list[float]
    probability: float


def picture(settings: PrepareSettings) -> dict[str, Any]:
    """The settings that say what comes out of a photograph."""
    return settings.model_dump(mode="json", include=PICTURE)


def frame(
    row: Row, image: NDArray[np.uint8], face: Face, settings: PrepareSettings
) -> bytes | None:
    """Crop a photograph uint8 [h, w, 3] about a face; its row gets box, landmarks and the rest.

    Returns:
        PNG bytes, or None where the face is too small.
    """
    corners = np.reshape(face.box, (2, 2))
    if (corners[1] - corners[0]).min() < settings.min_face_side:
        row["reason"] = "face too small (prepare.min_face_side)"
        return None
    square = Square.about_face(corners.ravel(), image.shape[0], image.shape[1], settings.margin)
    size = settings.resolution
    row |= {
        "box": square.points(corners, size).ravel().tolist(),
        "landmarks": square.points(np.reshape(face.landmarks, (5, 2)), size).ravel().tolist(),
        "probability": face.probability,
        "kept": True,
    }
    return encode_png(square.cut(image, size))


class Faces:
    """The study's recogniser, loaded when a photograph shows several faces; None: it has none."""

    def __init__(self, weights: Weights | None, device: str) -> None:
        self.weights, self.device, self.lock = weights, device, Lock()
        self.recogniser: Recogniser | None = None

    def __call__(self) -> Recogniser | None:
        with self.lock:
            if self.recogniser is None and self.weights is not None:
                self.recogniser = load_recogniser(self.weights, self.device)
        return self.recogniser


def choose_faces(
    name: str,
    candidates: Sequence[Candidate],
    items: Mapping[str, Item],
    frozen: Frozen[PrepareSettings],
    store: Store,
    faces: Faces,
) -> Item:
    """Whose face a photograph with several is of, and its image, or find that finished.

    With three photographs or more it is the face that is most like the person's others: whose
    largest similarity to a face of each other photograph is the highest in the mean. With fewer, or
    without a recogniser, it is the largest.

    Args:
        name: of the item.
        candidates: all photographs of an identity.
        items: what came of them: ``rows`` and ``faces``.
        frozen: the step's configuration.
        store: the dataset.
        faces: the study's recogniser.

    Returns:
        The item, not noted yet; its fact ``chosen`` has the manifest rows.
    """
    settings = frozen.settings
    pairs = [pair for item in items.values() for pair in item.facts["rows"]]
    made_under = key(frozen, settings=picture(settings), photographs=pairs)
    if (item := store.find(name, made_under)) is not None:
        return item
    several = {
        file: [Face(*face) for face in found]
        for item in items.values()
        for file, found in item.facts["faces"].items()
    }
    reads = {f"images/{one.identity}/{one.stem}.png": one.photograph.read for one in candidates}
    framed: dict[str, list[tuple[Row, bytes]]] = {}
    for row, _ in pairs:
        file = row["file"]
        if file in several:
            image = read_image(reads[file]())
            each = [(dict(row), face) for face in several[file]]
            pngs = [(one, frame(one, image, face, settings)) for one, face in each]
            framed[file] = [(one, png) for one, png in pngs if png is not None]
        elif row["kept"]:
            framed[file] = [(row, (store.folder / file).read_bytes())]
    recogniser = faces() if len(framed) > 2 else None
    best = most_alike(framed, recogniser) if recogniser else dict.fromkeys(framed, 0)
    how = "the one most like the person's others kept" if recogniser else "largest kept"
    rows = []
    for file, found in several.items():
        row, png = framed[file][best[file]]
        said = [f"{len(found)} faces, {how}", *filter(None, [row["reason"]])]
        rows.append(row | {"sha256": sha256_bytes(png), "reason": "; ".join(said)})
        write_bytes(store.folder / file, png)
    return Item(made_under, {row["file"]: row["sha256"] for row in rows}, {"chosen": rows})


def most_alike(
    framed: Mapping[str, Sequence[tuple[Row, bytes]]], recogniser: Recogniser
) -> dict[str, int]:
    """Number of the face of each photograph that is most like those of the others."""
    embedded = {
        file: recogniser.embed_regions(
            [read_image(png) for _, png in shown], [np.asarray(row["box"]) for row, _ in shown]
        )
        for file, shown in framed.items()
    }
    return {
        file: int(
            np.mean(
                [(own @ other.T).max(axis=1) for name, other in embedded.items() if name != file],
                axis=0,
            ).argmax()
        )
        for file, own in embedded.items()
    }
