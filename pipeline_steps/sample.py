"""Sample images of each identity of a cohort, with its fine-tuned weights or without any.

In:  dataset/identities.csv      identities and their genders; with a gate that asks for similarity,
                                 dataset/embeddings too;
     <loras>/<identity>/         fine-tuned weights, the study's own or from elsewhere; none for the
                                 untuned base model.
Out: <out>/<identity>/<index>.png               images;
     <out>/cohorts/<k>-of-<n>.parquet           a row per drawing: prompt, seed, hashes, ...; with a
                                                gate, unusable drawings are rows with kept = false
                                                and the reason, and are drawn again;
     <out>/<identity>/samples.json              keys of the finished drawings, which are kept.
     Prompts, initial noise and every step's noise are the same for all methods.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4 and supplement.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.objectives import UNTUNED
from pipeline_steps.files.dataset import Subject, cohort_of, read_subjects
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.files.lease import gpu_lease
from pipeline_steps.files.logs import get_logger, progress
from pipeline_steps.files.manifests import write_manifest
from pipeline_steps.files.signals import stop_requested
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.sample import SampleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline_steps.diffusion.base_models.base import BaseModel
    from pipeline_steps.diffusion.drawing import Gate
    from pipeline_steps.diffusion.gate import Judge
    from pipeline_steps.diffusion.sample_plan import Row
    from pipeline_steps.diffusion.sampler import ImageRequest

BATCH_SIZE = {"cpu": 16, "cuda": 24}
AT_ONCE = 16  # adapters on the network together


def run(
    frozen: Frozen[SampleSettings],
    *,
    dataset: Path,
    out: Path,
    loras: Path | None = None,
    cohort: int = 0,
    cohorts: int = 1,
    device: str = "cpu",
    batch_size: int | None = None,
    judge: Judge | None = None,
) -> list[Row]:
    """Sample a cohort and write images and the cohort's manifest.

    Args:
        frozen: The step's configuration, with the role base_model, and recogniser or quality where
            its gate asks for them; the variant says base_model, method and prompts.
        dataset: Folder of the prepared dataset.
        out: Folder of the variant's images.
        loras: Folder of the method's weights; None for the untuned base model.
        cohort: Number of the cohort, from 0.
        cohorts: Number of cohorts.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image. None: as suits the device.
        judge: Measures images for the gate; None: the networks of the configuration.

    Returns:
        The manifest's rows.

    Raises:
        StepError: inputs are missing or do not fit each other.
        Interrupted: a signal asked to stop; finished images are kept.
    """
    from pipeline_steps.diffusion.content_key import weights_hash
    from pipeline_steps.diffusion.drawing import Drawings
    from pipeline_steps.diffusion.sample_plan import COLUMNS, image_keys, redrawn
    from pipeline_steps.diffusion.sample_record import SampleRecord

    _check_method(frozen, loras)
    base_sha256 = weights_hash(frozen.weights["base_model"])
    subjects = cohort_of(read_subjects(dataset), cohort, cohorts)
    rows = _plan(frozen, subjects, loras, base_sha256)
    gate = _gate(frozen, dataset, subjects, device, judge)
    painter = Painter(frozen, loras, device, batch_size or BATCH_SIZE.get(device, 16))
    done: list[Row] = []
    with stop_requested() as stop:
        record = SampleRecord(out, [subject.identity for subject in subjects])
        drawings = Drawings(out, record, painter.paint, gate, stop)
        log, keys = get_logger("sample"), image_keys(frozen, rows, base_sha256)
        missing = drawings.missing(rows, keys)
        log.info("%d images wanted, %d of them finished", len(rows), len(rows) - missing)
        for _ in range(1 if gate is None else gate.settings.attempts):
            drawn = drawings.draw(rows, image_keys(frozen, rows, base_sha256))
            done += drawn
            rejected = {(row["identity"], row["index"]) for row in drawn if not row["kept"]}
            rows = [
                redrawn(row, frozen.seed)
                for row in rows
                if (row["identity"], row["index"]) in rejected
            ]
            if not rows:
                break
    place = {subject.identity: i for i, subject in enumerate(subjects)}
    done.sort(key=lambda row: (place[row["identity"]], row["index"], row["attempt"]))
    _report(frozen, subjects, done)
    _remove_leftovers(out, subjects, done)
    write_manifest(out / "cohorts" / f"{cohort}-of-{cohorts}.parquet", done, COLUMNS)
    return done


class Painter:
    """Samples rows; the base model is loaded when the first are asked for."""

    def __init__(
        self, frozen: Frozen[SampleSettings], loras: Path | None, device: str, batch_size: int
    ) -> None:
        self._frozen = frozen
        self._loras = loras
        self._device = device
        self._batch_size = batch_size
        self._base: BaseModel | None = None

    def paint(self, rows: Sequence[Row]) -> Iterator[tuple[list[ImageRequest], Tensor]]:
        """Batches of requests and their images, uint8 [n, 3, h, w] on the CPU."""
        from pipeline_steps.diffusion.base_models import load_base_model
        from pipeline_steps.diffusion.lora_files import load_bank
        from pipeline_steps.diffusion.sampler import sample

        settings = self._frozen.settings
        if self._base is None:
            weights = self._frozen.weights["base_model"]
            self._base = load_base_model(weights, self._device, settings.precision)
        variant = self._frozen.variant
        label = "/".join(variant.get(name, "") for name in ("base_model", "method", "prompts"))
        identities = list(dict.fromkeys(row["identity"] for row in rows))
        with progress(range(0), description=label, total=len(rows), unit="image") as bar:
            for start in range(0, len(identities), AT_ONCE):
                part = identities[start : start + AT_ONCE]
                loras = self._loras
                folders = [] if loras is None else [loras / name for name in part]
                bank = load_bank(self._base.unet, folders) if folders else None
                wanted = [row for row in rows if row["identity"] in part]
                try:
                    for requests, images in sample(
                        self._base,
                        [_request(row, part if bank is not None else None) for row in wanted],
                        steps=settings.steps,
                        guidance=settings.guidance,
                        scheduler=settings.scheduler,
                        batch_size=self._batch_size,
                        bank=bank,
                    ):
                        yield requests, images
                        bar.update(len(requests))
                finally:
                    if bank is not None:
                        bank.remove()


def _request(row: Row, identities: Sequence[str] | None) -> ImageRequest:
    from pipeline_steps.diffusion.sampler import ImageRequest

    return ImageRequest(
        identity=row["identity"],
        index=row["index"],
        prompt=row["prompt"],
        negative_prompt=row["negative_prompt"],
        seed=row["seed"],
        adapter=None if identities is None else identities.index(row["identity"]),
    )


def _check_method(frozen: Frozen[SampleSettings], loras: Path | None) -> None:
    method = frozen.variant.get("method", "")
    if method != UNTUNED and method not in METHODS:
        raise StepError(f"variant.method is {method!r}; {UNTUNED} or {', '.join(METHODS)} expected")
    if (loras is None) != (method == UNTUNED):
        raise StepError(
            f"method {method!r}: pass --loras for fine-tuned methods, and only for them"
        )


def _plan(
    frozen: Frozen[SampleSettings],
    subjects: Sequence[Subject],
    loras: Path | None,
    base_sha256: str,
) -> list[Row]:
    """First drawings of all images of a cohort."""
    from pipeline_steps.diffusion.sample_plan import BASE_MODEL, adapter_hash, plan_images

    method = frozen.variant["method"]
    rows: list[Row] = []
    for subject in subjects:
        weights = (base_sha256, BASE_MODEL)
        if loras is not None:
            weights = adapter_hash(loras / subject.identity, frozen.settings.token)
        rows += plan_images(frozen, method, subject, *weights)
    return rows


def _gate(
    frozen: Frozen[SampleSettings],
    dataset: Path,
    subjects: Sequence[Subject],
    device: str,
    judge: Judge | None,
) -> Gate | None:
    if frozen.settings.gate is None:
        return None
    from pipeline_steps.diffusion.drawing import Gate
    from pipeline_steps.diffusion.gate import FaceJudge, judge_key

    keys = {subject.identity: judge_key(frozen, dataset, subject) for subject in subjects}
    return Gate(
        frozen.settings.gate, keys, lambda: judge or FaceJudge(frozen, dataset, subjects, device)
    )


def _report(
    frozen: Frozen[SampleSettings], subjects: Sequence[Subject], rows: Sequence[Row]
) -> None:
    """Log what was left out, and who has fewer images than wanted."""
    log, wanted = get_logger("sample"), frozen.settings.images_per_identity
    for reason, count in sorted(Counter(r["reason"] for r in rows if not r["kept"]).items()):
        log.info("left out: %d x %s", count, reason)
    usable = Counter(row["identity"] for row in rows if row["kept"])
    short = [s.identity for s in subjects if usable[s.identity] < wanted]
    if short and frozen.settings.gate is not None:
        named = ", ".join(f"{name} {usable[name]}" for name in short)
        log.warning(
            "fewer than %d usable images after %d attempts: %s",
            wanted,
            frozen.settings.gate.attempts,
            named,
        )


def _remove_leftovers(out: Path, subjects: Sequence[Subject], rows: Sequence[Row]) -> None:
    """Delete images that the cohort's manifest does not name."""
    known = {out / row["file"] for row in rows if row["kept"]}
    for subject in subjects:
        for path in sorted((out / subject.identity).glob("*.png")):
            if path not in known:
                path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_steps.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="frozen configuration (JSON)")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--loras", type=Path, help="folder of the method's weights")
    parser.add_argument("--cohort", type=int, default=0, help="number of the cohort, from 0")
    parser.add_argument("--cohorts", type=int, default=1, help="number of cohorts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the variant's images")
    parser.add_argument(
        "--batch-size", type=int, help="images sampled together; changes speed and memory only"
    )
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, SampleSettings)
    with gpu_lease() as device:
        run(
            frozen,
            dataset=arguments.dataset,
            out=arguments.out,
            loras=arguments.loras,
            cohort=arguments.cohort,
            cohorts=arguments.cohorts,
            device=device,
            batch_size=arguments.batch_size,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
