"""Test a trained recogniser on verification benchmarks (the paper's Table 3).

In:  a model of the recognise step, benchmarks in InsightFace's `.bin` format.
Out: verification.csv: benchmark, role, accuracy, accuracy_sd, n_pairs, low, high, reasons (of
     empty cells). Role is
     "validation" for the benchmark that chose the model's epoch, by name or by content; such an
     accuracy is no test result. low and high: 95 % interval. Beside it
     verification.record.json: the hashes of model and benchmarks.

Source: InsightFace's verification protocol, see pipeline_steps.recognition.protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import header_of
from pipeline_steps.naming import REASONS, VERIFICATION_COLUMNS
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.recognition import VerifySettings

DIGITS = 6  # of accuracies


def run(
    frozen: Frozen[VerifySettings],
    *,
    model: Path,
    benchmarks: Sequence[Path],
    out: Path,
    device: str = "cpu",
) -> None:
    """Verify one model on each benchmark and write the table.

    Args:
        frozen: the step's configuration.
        model: model.safetensors of the recognise step.
        benchmarks: `.bin` files; a benchmark is called by its file's name without suffix.
        out: verification.csv to write.
        device: cpu or cuda.

    Raises:
        StepError: an unusable model or benchmark, or two benchmarks of one name.
    """
    names = [path.stem for path in benchmarks]
    if len(set(names)) != len(names):
        raise StepError(f"two benchmarks share a name: {', '.join(names)}; rename one file")
    from pipeline_steps.recognition.backbones import load_backbone, to_device, verify_benchmark
    from pipeline_steps.recognition.benchmarks import read_bin
    from pipeline_steps.recognition.dataset import NothingToTrain

    try:
        backbone, built_as, metadata = load_backbone(model)
    except NothingToTrain as error:
        roles = {path.stem: _role(path, header_of(model)) for path in benchmarks}
        empty = [{"benchmark": n, "role": r, REASONS: str(error)} for n, r in roles.items()]
        _write(frozen, out, empty, [model, *benchmarks])
        return
    network = to_device(backbone, device)
    rows: list[dict[str, object]] = []
    for path in benchmarks:
        images, same = read_bin(path)
        try:
            side, folds = built_as.input_size, frozen.settings.folds
            result = verify_benchmark(network, images, same, input_size=side, n_folds=folds)
        except ValueError as error:
            raise StepError(f"cannot verify {model} on {path}: {error}") from error
        role = _role(path, metadata)
        get_logger("verify").info("%s (%s): accuracy %.4f", path.stem, role, result.accuracy)
        numbers = {name: round(value, DIGITS) for name, value in vars(result).items()}
        rows.append({"benchmark": path.stem, "role": role, **numbers})
    _write(frozen, out, rows, [model, *benchmarks])


def _write(
    frozen: Frozen[VerifySettings],
    out: Path,
    rows: Sequence[Mapping[str, object]],
    inputs: Sequence[Path],
) -> None:
    write_csv(out, rows, VERIFICATION_COLUMNS)
    write_record(record_place(out), frozen, [out], inputs)


def _role(benchmark: Path, metadata: dict[str, str]) -> str:
    """ "validation" where the model's metadata names this benchmark or its content, else "test"."""
    chose_epoch = benchmark.stem == metadata.get("validation") or (
        sha256_file(benchmark) == metadata.get("validation_sha256")
    )
    return "validation" if chose_epoch else "test"


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
