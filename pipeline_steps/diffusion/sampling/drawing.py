"""Drawing a cohort's images: what is there is taken, what is missing is sampled and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.diffusion.sampling.gate import Judge, Measured, reason_against
from pipeline_steps.diffusion.sampling.sample_plan import Row
from pipeline_steps.diffusion.sampling.sample_record import Drawing, Place, SampleRecord, file_of
from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import encode_png, read_image
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.study.settings.diffusion import GateSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline_steps.diffusion.sampling.sampler import ImageRequest

# Rows to sample -> batches of requests and their images, uint8 [n, 3, h, w].
Paint = Callable[[Sequence[Row]], "Iterable[tuple[list[ImageRequest], Tensor]]"]


@dataclass(frozen=True)
class Gate:
    """The gate's settings, and who measures for it; both are opened when they are needed.

    Attributes:
        settings: Thresholds and number of attempts.
        keys: Identity to the content key of how its images are measured.
        judge: Opens the judge.
    """

    settings: GateSettings
    keys: dict[str, str]
    judge: Callable[[], Judge]


class Drawings:
    """The images of one cohort.

    Args:
        out: Folder of the variant's images.
        record: What has been drawn before.
        paint: Samples rows.
        gate: Which images are usable; None: all.
        stop: Asked after every batch.
    """

    def __init__(
        self,
        out: Path,
        record: SampleRecord,
        paint: Paint,
        gate: Gate | None,
        stop: StopRequest,
    ) -> None:
        self._out = out
        self._record = record
        self._paint = paint
        self._gate = gate
        self._stop = stop
        self._judge: Judge | None = None

    def draw(self, rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
        """Draw one attempt of some images.

        Args:
            rows: Planned drawings.
            keys: Content key of each.

        Returns:
            The rows with file, sha256, measured numbers, kept and reason; rejected ones have no
            file.

        Raises:
            Interrupted: a signal asked to stop; what was reached is recorded.
        """
        done: dict[Place, Drawing] = {}
        missing: list[tuple[Row, str]] = []
        for row, key in zip(rows, keys, strict=True):
            drawing = self._known(place_of(row), key)
            if drawing is None:
                missing.append((row, key))
            else:
                done[place_of(row)] = drawing
        if missing:
            done |= self._sample(missing)
        return [self._result(row, done[place_of(row)]) for row in rows]

    def missing(self, rows: Sequence[Row], keys: Sequence[str]) -> int:
        """How many of the rows' images have never been drawn, or are lost."""
        count = 0
        for row, key in zip(rows, keys, strict=True):
            found = self._record.find(place_of(row), key)
            whole = found is not None and self._record.image(place_of(row), found) is not None
            count += not (whole or (found is not None and self._reason(found) != ""))
        return count

    def _known(self, place: Place, key: str) -> Drawing | None:
        """A drawing that needs no sampling: whole, or measured and found unusable."""
        drawing = self._record.find(place, key)
        if drawing is None:
            return None
        image = self._record.image(place, drawing)
        if self._gate is not None and drawing.judge != self._gate.keys[place[0]]:
            if image is None:
                return None
            [measured] = self._measure(place[0], read_image(image)[None])
            drawing = replace(drawing, measured=measured, judge=self._gate.keys[place[0]])
            self._record.add({place: drawing})
        return drawing if image is not None or self._reason(drawing) else None

    def _sample(self, missing: Sequence[tuple[Row, str]]) -> dict[Place, Drawing]:
        planned = {(row["identity"], row["index"]): (row, key) for row, key in missing}
        done: dict[Place, Drawing] = {}
        with ThreadPoolExecutor(max_workers=1) as writer:
            # A batch is written while the next one is sampled.
            writing: Future[dict[Place, Drawing]] | None = None
            for requests, images in self._paint([row for row, _ in missing]):
                batch = [planned[request.identity, request.index] for request in requests]
                pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
                measured = self._measure_batch([row for row, _ in batch], pixels)
                if writing is not None:
                    done |= writing.result()
                writing = writer.submit(self._write, batch, pixels, measured)
                if self._stop:
                    writing.result()
                    raise Interrupted(
                        f"{self._stop.name} after {len(done) + len(batch)} of {len(missing)} "
                        "images; they are kept, run again for the others"
                    )
            if writing is not None:
                done |= writing.result()
        return done

    def _write(
        self,
        batch: Sequence[tuple[Row, str]],
        pixels: NDArray[np.uint8],
        measured: Sequence[Measured | None],
    ) -> dict[Place, Drawing]:
        """Write the usable images of a batch, then record all of it."""
        fresh: dict[Place, Drawing] = {}
        for (row, key), image, seen in zip(batch, pixels, measured, strict=True):
            place, content = place_of(row), encode_png(image)
            judge = None if self._gate is None else self._gate.keys[place[0]]
            drawing = Drawing(key, sha256_bytes(content), seen, judge)
            if not self._reason(drawing):
                write_bytes(self._out / file_of(place), content)
            fresh[place] = drawing
        self._record.add(fresh)
        return fresh

    def _measure_batch(
        self, rows: Sequence[Row], pixels: NDArray[np.uint8]
    ) -> list[Measured | None]:
        result: list[Measured | None] = [None] * len(rows)
        if self._gate is not None:
            for identity in dict.fromkeys(row["identity"] for row in rows):
                where = [i for i, row in enumerate(rows) if row["identity"] == identity]
                for i, seen in zip(where, self._measure(identity, pixels[where]), strict=True):
                    result[i] = seen
        return result

    def _measure(self, identity: str, images: NDArray[np.uint8]) -> list[Measured]:
        if self._judge is None:
            assert self._gate is not None
            self._judge = self._gate.judge()
        return self._judge.measure(identity, images)

    def _reason(self, drawing: Drawing) -> str:
        """Why a drawing is not usable; empty where it is, or where nobody asks."""
        if self._gate is None or drawing.measured is None:
            return ""
        return reason_against(drawing.measured, self._gate.settings)

    def _result(self, row: Row, drawing: Drawing) -> Row:
        reason, seen = self._reason(drawing), drawing.measured
        counts = self._gate is not None and seen is not None
        return row | {
            "file": None if reason else file_of(place_of(row)),
            "sha256": None if reason else drawing.sha256,
            "similarity": seen.similarity if counts and seen else None,
            "quality": seen.quality if counts and seen else None,
            "kept": not reason,
            "reason": reason,
        }


def place_of(row: Row) -> Place:
    """Identity, index and attempt of a row."""
    return row["identity"], row["index"], row["attempt"]
