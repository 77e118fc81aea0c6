"""Test a trained recogniser on verification benchmarks (the paper's Table 3).

In:  a model of the recognise step, benchmarks in InsightFace's `.bin` format.
Out: verification.csv: benchmark, role, accuracy, accuracy_sd, n_pairs, low, high. Role is
     "validation" for the benchmark that chose the model's epoch, by name or by content; such an
     accuracy is no test result. low and high: 95 % interval. Beside it
     verification.record.json: the hashes of model and benchmarks.

Source: InsightFace's verification protocol, see pipeline_steps.recognition.protocol.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.naming import VERIFICATION_COLUMNS
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import record_place, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.recognition import VerifySettings

if TYPE_CHECKING:
    from pipeline_steps.recognition.protocol import Verification


def run(
    frozen: Frozen[VerifySettings],
    *,
    model: Path,
    benchmarks: Sequence[Path],
    out: Path,
    device: str = "cpu",
) -> list[tuple[str, str, Verification]]:
    """Verify one model on each benchmark and write the table.

    Args:
        frozen: the step's configuration.
        model: model.safetensors of the recognise step.
        benchmarks: `.bin` files; a benchmark is called by its file's name without suffix.
        out: verification.csv to write.
        device: cpu or cuda.

    Returns:
        (benchmark, role, result), in the given order.

    Raises:
        StepError: an unusable model or benchmark, or two benchmarks of one name.
    """
    names = [path.stem for path in benchmarks]
    if len(set(names)) != len(names):
        raise StepError(f"two benchmarks share a name: {', '.join(names)}; rename one file")
    from pipeline_steps.recognition.backbones import load_backbone, to_device, verify_benchmark
    from pipeline_steps.recognition.benchmarks import read_bin

    log = get_logger("verify")
    backbone, architecture, metadata = load_backbone(model)
    network = to_device(backbone, device)
    results: list[tuple[str, str, Verification]] = []
    for path in benchmarks:
        images, same = read_bin(path)
        try:
            result = verify_benchmark(
                network,
                images,
                same,
                input_size=architecture.input_size,
                n_folds=frozen.settings.folds,
            )
        except ValueError as error:
            raise StepError(f"cannot verify {model} on {path}: {error}") from error
        results.append((path.stem, role_of(path, metadata), result))
        log.info("%s (%s): accuracy %.4f", *results[-1][:2], result.accuracy)
    write_text(out, verification_csv(results))
    write_record(record_place(out), frozen, [out], [model, *benchmarks])
    return results


def role_of(benchmark: Path, metadata: dict[str, str]) -> str:
    """ "validation" where the model's metadata names this benchmark or its content, else "test"."""
    chose_epoch = benchmark.stem == metadata.get("validation") or (
        sha256_file(benchmark) == metadata.get("validation_sha256")
    )
    return "validation" if chose_epoch else "test"


def verification_csv(results: Sequence[tuple[str, str, Verification]]) -> str:
    """The results as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(VERIFICATION_COLUMNS)
    for benchmark, role, result in results:
        numbers = (result.accuracy, result.accuracy_sd)
        interval = (result.low, result.high)
        writer.writerow(
            [
                benchmark,
                role,
                *(f"{value:.6f}" for value in numbers),
                result.n_pairs,
                *(f"{value:.6f}" for value in interval),
            ]
        )
    return text.getvalue()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
