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

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import Subject, cohort_of, read_subjects
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.naming import UNTUNED
from pipeline_steps.runtime.command_line import step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.diffusion import SampleSettings

if TYPE_CHECKING:
    from pipeline_steps.diffusion.sampling.drawing import Gate
    from pipeline_steps.diffusion.sampling.gate import Judge
    from pipeline_steps.diffusion.sampling.sample_plan import Row
    from pipeline_steps.diffusion.training.runtime import Switch

BATCH_SIZE = {"cpu": 16, "cuda": 24}


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
    compile_network: Switch = "auto",
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
        compile_network: See ``Runtime.compile``; changes no image beyond float error.
        judge: Measures images for the gate; None: the networks of the configuration.

    Returns:
        The manifest's rows.

    Raises:
        StepError: inputs are missing or do not fit each other.
        Interrupted: a signal asked to stop; finished images are kept.
    """
    from pipeline_steps.diffusion.sampling.drawing import Drawings
    from pipeline_steps.diffusion.sampling.painter import Painter
    from pipeline_steps.diffusion.sampling.sample_plan import COLUMNS, image_keys, redrawn
    from pipeline_steps.diffusion.sampling.sample_record import SampleRecord
    from pipeline_steps.study.key import weights_hash

    _check_method(frozen, loras)
    base_sha256 = weights_hash(frozen.weights["base_model"])
    subjects = cohort_of(read_subjects(dataset), cohort, cohorts)
    rows = _plan(frozen, subjects, loras, base_sha256)
    gate = _gate(frozen, dataset, subjects, device, judge)
    batch_size = batch_size or BATCH_SIZE.get(device, 16)
    painter = Painter(frozen, loras, device, batch_size, compile_network)
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
    from pipeline_steps.diffusion.sampling.sample_plan import BASE_MODEL, adapter_hash, plan_images

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
    from pipeline_steps.diffusion.sampling.drawing import Gate
    from pipeline_steps.diffusion.sampling.gate import FaceJudge, judge_key

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
    parser = step_command_line("sample", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--loras", type=Path, help="folder of the method's weights")
    parser.add_argument("--cohort", type=int, default=0, help="number of the cohort, from 0")
    parser.add_argument("--cohorts", type=int, default=1, help="number of cohorts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the variant's images")
    parser.add_argument(
        "--batch-size", type=int, help="images sampled together; changes speed and memory only"
    )
    parser.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the network; auto (default): on a GPU; changes speed only",
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
            compile_network=arguments.compile,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
