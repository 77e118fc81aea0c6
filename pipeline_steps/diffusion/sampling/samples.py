"""The samples of one share of people: what is there is taken, what is missing is made and measured.

A finished sample stands in the store beside the images of its identity, under the key of all that
it follows from, so a process that is killed at any moment loses the batch it is at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, Switch, compiled_predict, to_arrays
from pipeline_steps.diffusion.sampling.guidance import AWAY, IdentityGuidance
from pipeline_steps.diffusion.sampling.plan import Handed, Row
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import encode_png, read_image
from pipeline_steps.naming import VARIANT
from pipeline_steps.runtime.errors import Interrupted, StepError
from pipeline_steps.runtime.logs import progress
from pipeline_steps.runtime.signals import StopRequest
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import PriorSettings
from pipeline_steps.study.settings.sampling import SampleSettings
from pipeline_steps.study.store import Item, Store

BLANK = "one colour"  # reason against an image, whether anybody checks images or not
MOST_BLANK = 8  # so many of them, and more than every tenth, end the step

ASKED = ("identity", "index", "prompt", "negative_prompt", "seed")  # columns of a request

Keyed = tuple[Row, str]  # a planned sample and its key
Facts = dict[str, Any]  # what was measured of an image, as JSON


class Checks(Protocol):
    """Which samples are usable; measured and decided apart, so a threshold makes no image anew."""

    @property
    def keys(self) -> Mapping[str, str]:
        """Identity to the key of how its images are measured."""

    @property
    def shown(self) -> Sequence[str]:
        """Names of the facts that are columns of the rows."""

    def measure(self, identity: str, images: NDArray[np.uint8]) -> list[Facts]:
        """Measure images uint8 [n, h, w, 3] that shall show an identity."""

    def reason_against(self, facts: Facts) -> str:
        """Why an image is not usable; empty where it is."""


class Painter:
    """Makes images of planned rows; the base model is loaded when the first are asked for.

    Args:
        frozen: Configuration of a step that samples.
        handed: What the method's family hands the sampler.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image.
        compile: See ``Runtime.compile``.
        likeness: Opens whom the images shall resemble; None: nobody is asked.
    """

    def __init__(
        self,
        frozen: Frozen[SampleSettings] | Frozen[PriorSettings],
        handed: Handed,
        device: str,
        batch_size: int,
        compile: Switch,
        likeness: Callable[[], IdentityGuidance] | None = None,
    ) -> None:
        self._frozen = frozen
        self._handed = handed
        self._device = device
        self._batch_size = batch_size
        self._compile = compile
        self._base: BaseModel | None = None
        self._likeness = None if likeness is None else cache(likeness)

    @property
    def step(self) -> str:
        """Name of the step, which is that of its section of the configuration."""
        return self._frozen.step

    def paint(self, rows: Sequence[Row]) -> Iterator[tuple[list[ImageRequest], Tensor]]:
        """Batches of requests and their images, uint8 [n, 3, h, w] on the CPU."""
        settings, variant = self._frozen.settings, self._frozen.variant
        if self._base is None:
            weights = self._frozen.weights["base_model"]
            self._base = load_base_model(weights, self._device, settings.precision)
        label = "/".join(variant[name] for name in VARIANT if name in variant)
        negative = settings.negative_guidance if isinstance(settings, SampleSettings) else 0.0
        how = Sampling(
            settings.steps, settings.guidance, settings.scheduler, self._batch_size, negative
        )
        identities = list(dict.fromkeys(row["identity"] for row in rows))
        at_once = self._handed.at_once[torch.device(self._device).type]
        with progress(range(0), description=label, total=len(rows), unit="image") as bar:
            for start in range(0, len(identities), at_once):
                part = identities[start : start + at_once]
                wanted = [row for row in rows if row["identity"] in part]
                others = (row[AWAY] for row in wanted if AWAY in row)
                people = list(dict.fromkeys([*part, *others]))
                with self._handed.on(self._base, people) as bank:
                    places = {} if bank is None else {name: k for k, name in enumerate(people)}
                    asked = [_request(row, places) for row in wanted]
                    switch = self._compile if bank is None or bank.compiles else "off"
                    predict = compiled_predict(self._base, switch)
                    likeness = None if self._likeness is None else self._likeness()
                    for requests, images in sample(
                        self._base, asked, how, bank=bank, predict=predict, likeness=likeness
                    ):
                        yield requests, images
                        bar.update(len(requests))


def _request(row: Row, places: Mapping[str, int]) -> ImageRequest:
    """A planned sample as the sampler is asked for it, and whom it is led away from."""
    plain = ImageRequest(**{name: row[name] for name in ASKED}, adapter=places.get(row["identity"]))
    if (other := row.get(AWAY)) is None:
        return plain
    return replace(plain, away=replace(plain, adapter=places.get(other), of=other))


@dataclass
class Samples:
    """The samples of some identities.

    Attributes:
        out: Folder of the variant's images.
        stores: Identity to its finished samples.
        painter: Makes images.
        checks: Which images are usable; None: all.
        stop: Asked after every batch.
    """

    out: Path
    stores: Mapping[str, Store]
    painter: Painter
    checks: Checks | None
    stop: StopRequest

    def finish(
        self,
        rows: Sequence[Row],
        keys_of: Callable[[Sequence[Row]], list[str]],
        *,
        attempts: int,
        again: Callable[[Row], Row],
    ) -> list[Row]:
        """Make attempts at all images until each is usable, or the attempts are used up.

        Args:
            rows: Planned first attempts.
            keys_of: Keys of planned samples.
            attempts: Most of them.
            again: A planned sample -> the next attempt at its image.

        Returns:
            The rows of all attempts, see :meth:`make`.

        Raises:
            StepError: the images show nothing.
            Interrupted: see :meth:`make`.
        """
        done: list[Row] = []
        for _ in range(attempts):
            made = self.make(rows, keys_of(rows))
            done += made
            rows = [
                again(row) for row, result in zip(rows, made, strict=True) if not result["kept"]
            ]
            if not rows:
                break
        blank = sum(row["reason"] == BLANK for row in done)
        self._refuse_blank(blank, len(done), least=min(MOST_BLANK, len(done)))
        return done

    def make(self, rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
        """Make one attempt at some images.

        Args:
            rows: Planned samples, one for each image.
            keys: Key of each.

        Returns:
            The rows with file, sha256, measured numbers, kept and reason; rejected ones have no
            file.

        Raises:
            Interrupted: a signal asked to stop; what was reached is kept.
        """
        known = [self._known(row, key) for row, key in zip(rows, keys, strict=True)]
        keyed = zip(rows, keys, known, strict=True)
        missing = [(row, key) for row, key, item in keyed if item is None]
        made = iter(self._make(missing))
        return [
            self._result(row, next(made) if item is None else item)
            for row, item in zip(rows, known, strict=True)
        ]

    def versions(self, rows: Sequence[Row]) -> set[str]:
        """Notes on the libraries that some attempts were made with."""
        named = ((self.stores[row["identity"]], _name(row)) for row in rows)
        return {note for store, name in named for note in store.versions([name])}

    def count_missing(self, rows: Sequence[Row], keys: Sequence[str]) -> int:
        """How many of the images have never been made, or are lost."""
        known = (self._found(row, key) for row, key in zip(rows, keys, strict=True))
        return sum(item is None or not (whole or self._reason(item)) for item, whole in known)

    def _found(self, row: Row, key: str) -> tuple[Item | None, bool]:
        """What is noted of a sample, and whether its image is there as it was made."""
        store = self.stores[row["identity"]]
        item = store.find(_name(row), key, whole=False)
        return item, item is not None and store.is_whole(item)

    def _known(self, row: Row, key: str) -> Item | None:
        """A sample that need not be made: whole, or measured and found unusable."""
        (item, whole), identity = self._found(row, key), row["identity"]
        if item is None:
            return None
        if BLANK in item.facts:
            return item
        if self.checks is not None and item.facts["measured_by"] != self.checks.keys[identity]:
            if not whole:
                return None
            [seen] = self.checks.measure(identity, read_image(self.out / _file(row))[None])
            item = replace(item, facts=self._facts(identity, seen))
            self.stores[identity].add({_name(row): item})
        return item if whole or self._reason(item) else None

    def _make(self, missing: Sequence[Keyed]) -> list[Item]:
        """Make and keep samples, in their order."""
        if not missing:
            return []
        planned = {(row["identity"], row["index"]): (row, key) for row, key in missing}
        made: dict[tuple[str, int], Item] = {}
        blank = reached = 0
        with ThreadPoolExecutor(max_workers=1) as writer:
            # A batch is written while the next one is sampled.
            writing: Future[None] | None = None
            for requests, images in self.painter.paint([row for row, _ in missing]):
                batch = [planned[request.identity, request.index] for request in requests]
                pixels = to_arrays(images)
                blank += int(_of_one_colour(pixels).sum())
                reached += len(pixels)
                self._refuse_blank(blank, reached)
                seen = self._measure([row["identity"] for row, _ in batch], pixels)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, batch, pixels, seen, made)
                if self.stop:
                    writing.result()
                    raise Interrupted(
                        f"{self.stop.name} after {len(made)} of {len(missing)} images; they are "
                        "kept, run again for the others"
                    )
            if writing is not None:
                writing.result()
        return [made[place] for place in planned]

    def _measure(self, identities: Sequence[str], pixels: NDArray[np.uint8]) -> list[Facts | None]:
        result: list[Facts | None] = [None] * len(identities)
        if self.checks is None:
            return result
        for identity in dict.fromkeys(identities):
            where = [i for i, name in enumerate(identities) if name == identity]
            for i, seen in zip(where, self.checks.measure(identity, pixels[where]), strict=True):
                result[i] = seen
        return result

    def _write(
        self,
        batch: Sequence[Keyed],
        pixels: NDArray[np.uint8],
        seen: Sequence[Facts | None],
        made: dict[tuple[str, int], Item],
    ) -> None:
        """Write the usable images of a batch, then note all of it."""
        fresh: dict[str, dict[str, Item]] = {}
        blank = _of_one_colour(pixels)
        for (row, key), image, measured, empty in zip(batch, pixels, seen, blank, strict=True):
            content = encode_png(image)
            files = {_file(row).name: sha256_bytes(content)}
            facts = self._facts(row["identity"], measured) | ({BLANK: True} if empty else {})
            item = Item(key, files, facts)
            if not self._reason(item):
                write_bytes(self.out / _file(row), content)
            fresh.setdefault(row["identity"], {})[_name(row)] = item
            made[row["identity"], row["index"]] = item
        for identity, items in fresh.items():
            self.stores[identity].add(items)

    def _facts(self, identity: str, measured: Facts | None) -> Facts:
        by = None if self.checks is None else self.checks.keys[identity]
        return {"measured": measured, "measured_by": by}

    def _reason(self, item: Item) -> str:
        """Why a sample is not usable; empty where it is, or where it shows something and nobody
        asks.
        """
        if BLANK in item.facts:
            return BLANK
        if self.checks is None or item.facts["measured"] is None:
            return ""
        return self.checks.reason_against(item.facts["measured"])

    def _refuse_blank(self, blank: int, reached: int, least: int = MOST_BLANK) -> None:
        """Stop where images show nothing.

        Raises:
            StepError: at least so many of those that were reached are of one colour, and more than
                every tenth.
        """
        if blank >= least and 10 * blank > reached:
            step = self.painter.step
            raise StepError(
                f"{blank} of {reached} images are of one colour, as numbers that overflow (NaN) "
                f"give: set {step}.precision: fp32, another {step}.scheduler or fewer {step}.steps;"
                " an autoencoder that needs fp32 may have a repaired version (docs/weights.md)"
            )

    def _result(self, row: Row, item: Item) -> Row:
        reason, [digest] = self._reason(item), item.files.values()
        facts = item.facts["measured"] or {}
        shown = {name: facts.get(name) for name in (self.checks.shown if self.checks else ())}
        file = {"file": _file(row).as_posix(), "sha256": digest}
        kept = dict.fromkeys(file) if reason else file
        return row | shown | kept | {"kept": not reason, "reason": reason}


def _of_one_colour(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of some images [n, h, w, 3] hold one colour alone, bool [n]."""
    blank: NDArray[np.bool_] = (pixels == pixels[:, :1, :1]).all(axis=(1, 2, 3))
    return blank


def _name(row: Row) -> str:
    return f"{row['index']}.{row['attempt']}"


def _file(row: Row) -> Path:
    """A sample's image below the variant's folder; one for all attempts."""
    return Path(row["identity"], f"{row['index']}.png")
