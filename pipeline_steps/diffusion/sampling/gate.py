"""Which sampled images are usable: a face is found, it resembles the identity, it is good enough.

Measuring an image and deciding on it are apart: a threshold that changes needs no image anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import TARGETS, Subject, embeddings_file
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.io.tensors import load_features
from pipeline_steps.study.key import weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import GateSettings, SampleSettings

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detection


@dataclass(frozen=True)
class Measured:
    """What is known of an image.

    Attributes:
        face: Whether a face was found.
        similarity: Cosine to the mean of the identity's photographs, in [-1, 1]; None: not asked
            for, no face, or no number.
        quality: Face quality; None likewise.
    """

    face: bool
    similarity: float | None = None
    quality: float | None = None


class Measure(Protocol):
    """Measures images."""

    def measure(self, identity: str, images: NDArray[np.uint8]) -> list[Measured]:
        """Measure images uint8 [n, h, w, 3] that shall show an identity."""


class Gate:
    """Which images of a share are usable, a ``samples.Checks``; who measures is opened when asked.

    Args:
        frozen: Configuration of the sample step, with a gate.
        dataset: Folder of the dataset.
        subjects: The identities of the share.
        device: "cpu" or "cuda".
        measure: Measures images; None: the networks of the configuration.

    Attributes:
        keys: Identity to the key of how its images are measured; thresholds are no part of it.
    """

    shown = ("similarity", "quality")

    def __init__(
        self,
        frozen: Frozen[SampleSettings],
        dataset: Path,
        subjects: Sequence[Subject],
        device: str,
        measure: Measure | None = None,
    ) -> None:
        self.settings = gate_of(frozen)
        self.keys = {subject.identity: _key(frozen, dataset, subject) for subject in subjects}
        self._measure = measure
        self._open = lambda: FaceMeasure(frozen, dataset, subjects, device)

    def measure(self, identity: str, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        if self._measure is None:
            self._measure = self._open()
        return [asdict(seen) for seen in self._measure.measure(identity, images)]

    def reason_against(self, facts: dict[str, Any]) -> str:
        return reason_against(Measured(**facts), self.settings)


def reason_against(measured: Measured, gate: GateSettings) -> str:
    """Why an image is not usable; empty where it is."""
    if not measured.face:
        return "no face"
    for name, value, least in (
        ("similarity", measured.similarity, gate.min_similarity),
        ("quality", measured.quality, gate.min_quality),
    ):
        if least is not None and (value is None or not value >= least):
            return f"low {name}"
    return ""


class FaceMeasure:
    """The align step's detector, and the networks that the gate asks for; arguments as of Gate.

    Raises:
        StepError: weights or embeddings are missing or unfit, or by another network.
    """

    def __init__(
        self,
        frozen: Frozen[SampleSettings],
        dataset: Path,
        subjects: Sequence[Subject],
        device: str,
    ) -> None:
        from pipeline_steps.faces.detection import Detector
        from pipeline_steps.faces.recogniser import load_recogniser

        gate = gate_of(frozen)
        found = gate.align.detector
        self._padding, self._device = gate.align.padding, device
        self._detector = Detector(device, found.min_face_size, found.thresholds)
        self._recogniser = self._quality = None
        self._centres: dict[str, NDArray[np.float32]] = {}
        if gate.min_similarity is not None:
            self._recogniser = load_recogniser(frozen.weights["recogniser"], device)
            self._centres = centres(frozen, dataset, subjects)
        if gate.min_quality is not None:
            self._quality = load_recogniser(frozen.weights["quality"], device)

    def measure(self, identity: str, images: NDArray[np.uint8]) -> list[Measured]:
        found = self._detector.detect(list(images), padding=self._padding)
        where = [i for i, face in enumerate(found) if face is not None]
        faces = [face for face in found if face is not None]
        similarities = self._similarities(identity, images[where], faces)
        qualities = self._qualities(images[where], faces)
        measured = [Measured(False)] * len(images)
        for i, similarity, quality in zip(where, similarities, qualities, strict=True):
            measured[i] = Measured(True, _number(similarity), _number(quality))
        return measured

    def _similarities(
        self, identity: str, images: NDArray[np.uint8], faces: Sequence[Detection]
    ) -> list[float | None]:
        if self._recogniser is None or not faces:
            return [None] * len(faces)
        import torch

        from pipeline_steps.diffusion.base_models.base import to_signed
        from pipeline_steps.faces.detection import crop_and_resize

        # The embed step's face region: the detector's box, stretched, not aligned.
        pixels = to_signed(torch.from_numpy(images).permute(0, 3, 1, 2)).to(self._device)
        boxes = torch.from_numpy(np.stack([face.box for face in faces])).to(self._device)
        with torch.inference_mode():
            regions = crop_and_resize(pixels, boxes, self._recogniser.input_size)
            rows = self._recogniser.embed_tensor(regions).float()
            rows = torch.nn.functional.normalize(rows).cpu()
        return [float(value) for value in rows.numpy() @ self._centres[identity]]

    def _qualities(
        self, images: NDArray[np.uint8], faces: Sequence[Detection]
    ) -> list[float | None]:
        if self._quality is None or not faces:
            return [None] * len(faces)
        from pipeline_steps.faces.alignment import align_to_template

        aligned = [
            align_to_template(image, face.landmarks)
            for image, face in zip(images, faces, strict=True)
        ]
        return [float(value) for value in self._quality.quality(np.stack(aligned))]


def gate_of(frozen: Frozen[SampleSettings]) -> GateSettings:
    """The gate of a configuration that has one; likeness counts where images show given people."""
    gate = frozen.settings.gate
    if gate is None:
        raise ValueError("the configuration has no gate")
    shows_people = METHODS[frozen.variant["method"]].family.shows_people
    return gate if shows_people else gate.model_copy(update={"min_similarity": None})


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _key(frozen: Frozen[SampleSettings], dataset: Path, subject: Subject) -> str:
    gate = gate_of(frozen)
    parts: dict[str, Any] = {"align": gate.align.model_dump(mode="json"), "code": gate.code}
    if gate.min_similarity is not None:
        parts["recogniser"] = weights_hash(frozen.weights["recogniser"])
        parts["embeddings"] = sha256_file(embeddings_of(frozen, dataset, subject))
    if gate.min_quality is not None:
        parts["quality"] = weights_hash(frozen.weights["quality"])
    return sha256_json(parts)


def embeddings_of(frozen: Frozen[SampleSettings], dataset: Path, subject: Subject) -> Path:
    """Embeddings of a person's photographs at the base model's resolution, or anchors."""
    if (made_up := dataset / TARGETS).is_file():
        return made_up
    return embeddings_file(dataset, subject, frozen.weights["base_model"].resolution())


def centres(
    frozen: Frozen[SampleSettings], dataset: Path, subjects: Sequence[Subject]
) -> dict[str, NDArray[np.float32]]:
    """Mean direction of each identity's photographs, by the role recogniser, of length 1.

    Of people who do not exist it is the anchor. NaN where no photograph has an embedding.

    Raises:
        StepError: embeddings are missing, or by another network.
    """
    from pipeline_steps.faces.recogniser import embedded_by

    how = embedded_by(frozen.weights["recogniser"])
    if (made_up := dataset / TARGETS).is_file():
        found = load_features(made_up, key="embeddings", made_by=how)
        anchors = dict(zip(found.files, found.features, strict=True))
        return {subject.identity: anchors[subject.identity] for subject in subjects}
    return {
        subject.identity: _centre(embeddings_of(frozen, dataset, subject), how)
        for subject in subjects
    }


def _centre(path: Path, how: Mapping[str, str]) -> NDArray[np.float32]:
    rows = load_features(path, key="embeddings", made_by=how).features
    if not len(rows) or not (mean := rows.mean(0)).any():
        return np.full(rows.shape[1], np.nan, dtype=np.float32)
    result: NDArray[np.float32] = mean / np.linalg.norm(mean)
    return result
