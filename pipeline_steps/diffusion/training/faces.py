"""What ID3 trains on: of each image its latents, its face's embedding and box, and attributes.

Made once, in files of a thousand images, so that a stopped job goes on and memory stays flat:
latents are read from the files as steps ask for them. Images without a face are left out.

Attributes that a JSON file of the image's name tells (age in years, pitch, yaw and roll in degrees)
are taken from there. Else the pose is that of the detected landmarks, and the age is not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel, to_signed
from pipeline_steps.diffusion.guide import FaceGuide
from pipeline_steps.diffusion.id3 import ATTRIBUTES
from pipeline_steps.diffusion.training.generator import Pictures
from pipeline_steps.faces.pose import head_pose
from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import StopRequest

PART, BATCH = 1000, 16  # images of a file, and of a pass


class KnownFaces:
    """The images of a source that show a face.

    Args:
        base: Base model, whose latents they are.
        pictures: The source.
        guide: Finds and embeds faces.
        folder: For the files.
        key: Of what they follow from, the images and the networks.
        stop: Asked after every file.

    Attributes:
        places: Of the images in the source, int64 [n].
        embeddings: float32 [n, d] on the CPU.
        boxes: Pixels of the base model's images, float32 [n, 4].
        attributes: float32 [n, 4], NaN where not known.

    Raises:
        StepError: no image shows a face, or a JSON file is none.
        Interrupted: somebody asked to stop; whole files are kept.
    """

    def __init__(
        self,
        base: BaseModel,
        pictures: Pictures,
        guide: FaceGuide,
        folder: Path,
        key: str,
        stop: StopRequest,
    ) -> None:
        self._base, self._pictures, self._guide = base, pictures, guide
        count, parts = len(pictures.images), []
        for start in range(0, count, PART):
            file = Checkpoint(folder / f"faces-{start:07d}.safetensors", key)
            if file.load() is None:
                file.save(self._part(range(start, min(start + PART, count))))
                get_logger("train_generator").info("%d of %d", min(start + PART, count), count)
                if stop:
                    raise Interrupted(f"{stop.name}: faces are kept; run again to go on")
            parts.append(safe_open(file.path, framework="pt"))

        def joined(name: str) -> Tensor:
            return torch.cat([part.get_tensor(name) for part in parts])

        self.places, self.attributes = joined("places"), joined("attributes")
        self.embeddings, self.boxes = joined("embeddings"), joined("boxes")
        if not len(self.places):
            raise StepError("no training image shows a face: correct train_generator.images")
        lengths = [len(part.get_tensor("places")) for part in parts]
        self._where = [(part, k) for part, n in zip(parts, lengths, strict=True) for k in range(n)]
        self._row_of = {int(place): row for row, place in enumerate(self.places)}

    def __len__(self) -> int:
        return len(self.places)

    def of_person(self, row: int) -> list[int]:
        """All images of the person whom an image shows, by row."""
        place = int(self.places[row])
        others = {place, *self._pictures.others[place]}
        return sorted(self._row_of[other] for other in others if other in self._row_of)

    def latents(self, at: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of some images, on the base's device."""
        rows = [self._where[k] for k in at]
        mean, std = (
            torch.cat([part.get_slice(name)[k : k + 1] for part, k in rows])
            for name in ("mean", "std")
        )
        return mean.float().to(self._base.device), std.float().to(self._base.device)

    def _part(self, places: range) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        for start in range(places.start, places.stop, BATCH):
            parts.append(self._known(range(start, min(start + BATCH, places.stop))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def _known(self, places: range) -> dict[str, Tensor]:
        side = self._base.resolution
        pixels = np.stack([np.asarray(self._pictures.read(place, side)) for place in places])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._base.device)
        found = self._guide.faces(images)
        rows = [k for k, face in enumerate(found) if face is not None]
        # An image without a face is embedded all over, for the shapes' sake, and dropped.
        whole = np.array([0, 0, side, side], dtype=np.float32)
        boxes = np.stack([whole if face is None else face.box for face in found])
        marks = np.stack(
            [np.full((5, 2), np.nan) if face is None else face.landmarks for face in found]
        )
        signed, places_of = to_signed(images), torch.tensor(list(places))
        mean, std = self._base.encode_images(signed)
        poses = dict(
            zip(("pitch", "yaw", "roll"), head_pose(marks.astype(np.float64), side).T, strict=True)
        )
        told = [self._told(place) for place in places]
        facts = [
            [
                told[k].get(name, float(poses[name][k]) if name in poses else np.nan)
                for name in ATTRIBUTES
            ]
            for k in range(len(places))
        ]
        columns = {
            "places": places_of,
            "embeddings": self._guide.embed(
                signed, torch.from_numpy(boxes).to(signed.device)
            ).float(),
            "boxes": torch.from_numpy(boxes).float(),
            "attributes": torch.tensor(facts, dtype=torch.float32),
            "mean": mean.half(),
            "std": std.half(),
        }
        return {name: column.cpu()[rows] for name, column in columns.items()}

    def _told(self, place: int) -> dict[str, float]:
        entry = self._pictures.facts[place] if self._pictures.facts else None
        if entry is None:
            return {}
        try:
            told: dict[str, Any] = json.loads(entry.read())
            return {name: float(told[name]) for name in ATTRIBUTES if told.get(name) is not None}
        except (ValueError, TypeError, AttributeError) as error:
            raise StepError(f"{entry.path} holds no attributes: {error}") from error
