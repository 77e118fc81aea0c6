"""Train a face-recognition model on aligned images (the paper's Table 3).

In:  one or several aligned sources (--aligned, repeated: the consented photographs, a synthetic
     set, or both as in the augmentation study), and the benchmark that chooses the epoch
     (--validation).
Out: model.safetensors (backbone of the best epoch; its metadata tells architecture, classes and
     the validation benchmark) and history.csv (epoch, learning_rate, loss, validation_accuracy,
     best). While it trains, its state lies in .training/ beside them, written after every epoch,
     every five minutes and on SIGTERM; the same command goes on from there, with the same result.

Source: Tomasevic et al., "ID-Booth", FG 2025: CosFace, SGD, learning rate lowered on a plateau of
the validation accuracy, early stop.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.runtime.command_line import add_paths, step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.recognition import RecogniseSettings

if TYPE_CHECKING:
    from pipeline_steps.recognition.backbones import Architecture
    from pipeline_steps.recognition.dataset import TrainingSet
    from pipeline_steps.recognition.training import Epoch, Recipe

HISTORY_COLUMNS = ("epoch", "learning_rate", "loss", "validation_accuracy", "best")


def run(
    frozen: Frozen[RecogniseSettings],
    *,
    aligned: Sequence[Path],
    validation: Path,
    out: Path,
    device: str = "cpu",
) -> list[Epoch]:
    """Train one model and write it.

    Args:
        frozen: the step's configuration; variant["repetition"] (0 when absent) tells repetitions
            apart. Equal repetitions start from equal weights whatever they are trained on.
        aligned: folders with manifest.parquet and 112 x 112 images.
        validation: `.bin` file that settings.validation names.
        out: folder for model.safetensors and history.csv.
        device: cpu or cuda.

    Returns:
        the history.

    Raises:
        StepError: another validation benchmark than configured, or an unusable training set.
        Interrupted: a signal asked to stop; the state is saved.
    """
    settings = frozen.settings
    if validation.stem != settings.validation_name:
        raise StepError(
            f"--validation is {validation.name}, but the configuration's validation benchmark is "
            f"{settings.validation!r}: pass that one or change the configuration"
        )
    import torch

    from pipeline_steps.io.checkpoint import Checkpoints
    from pipeline_steps.recognition.backbones import save_backbone, to_device, verify_benchmark
    from pipeline_steps.recognition.benchmarks import read_bin
    from pipeline_steps.recognition.dataset import load_training_set
    from pipeline_steps.recognition.margins import MarginHead
    from pipeline_steps.recognition.training import train

    images, same = read_bin(validation)
    training_set = load_training_set(aligned, merge_sources=settings.merge_sources)
    n_images, n_classes = len(training_set.images), len(training_set.identities)
    get_logger("recognise").info("training on %d images of %d identities", n_images, n_classes)
    built_as = architecture_of(settings)

    def validate(network: torch.nn.Module) -> float:
        return verify_benchmark(network, images, same, input_size=settings.input_size).accuracy

    repetition = _repetition(frozen)
    checkpoints = Checkpoints(out, _content_key(frozen, training_set, validation, device))
    cards = [0] if device == "cuda" else []
    with stop_requested() as stop, torch.random.fork_rng(devices=cards):
        # Weights draw from the global generators.
        torch.manual_seed(seed_for(frozen.seed, "recognise", repetition, "weights"))
        network = to_device(built_as.build(), device)
        head = MarginHead(
            settings.embedding_dim,
            n_classes,
            loss=settings.loss,
            scale=settings.scale,
            margin=settings.margin,
        ).to(device)
        try:
            history = train(
                network,
                head,
                training_set.images,
                training_set.labels,
                recipe_of(settings),
                validate=validate,
                seed=seed_for(frozen.seed, "recognise", repetition, "order"),
                checkpoints=checkpoints,
                stop=lambda: stop,
                on_epoch=partial(_report, validation.stem),
            )
        except FloatingPointError as error:
            checkpoints.clear()
            raise StepError(
                f"training on {', '.join(map(str, aligned))} diverged ({error}); lower "
                "recognise.learning_rate_per_512"
            ) from error
    told = _metadata(frozen, training_set, aligned, validation)
    save_backbone(out / "model.safetensors", network, built_as, told)
    write_text(out / "history.csv", history_csv(history))
    checkpoints.clear()
    return history


def architecture_of(settings: RecogniseSettings) -> Architecture:
    """The backbone that settings describe."""
    from pipeline_steps.recognition.backbones import architecture

    return architecture(
        settings.backbone,
        layers=settings.layers,
        widths=settings.widths,
        embedding_dim=settings.embedding_dim,
        input_size=settings.input_size,
        dropout=settings.dropout,
    )


def recipe_of(settings: RecogniseSettings) -> Recipe:
    """The training recipe that settings describe."""
    from pipeline_steps.recognition.training import Recipe, Schedule

    augment = None
    if settings.augmentation == "randaugment":
        from pipeline_steps.recognition.augmentation import randaugment  # imports torchvision

        augment = randaugment(settings.randaugment_operations, settings.randaugment_magnitude)
    return Recipe(
        schedule=Schedule(
            kind=settings.schedule,
            epochs=settings.epochs,
            factor=settings.plateau_factor,
            plateau_patience=settings.plateau_patience,
            stop_patience=settings.stop_patience,
            milestones=settings.milestones,
            first_validated_epoch=settings.first_validated_epoch,
        ),
        input_size=settings.input_size,
        batch_size=settings.batch_size,
        learning_rate_per_512=settings.learning_rate_per_512,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        flip=settings.flip,
        augment=augment,
        bfloat16=settings.precision == "bfloat16",
    )


def _metadata(
    frozen: Frozen[RecogniseSettings],
    training_set: TrainingSet,
    aligned: Sequence[Path],
    validation: Path,
) -> dict[str, str]:
    """What the model's file tells of its training."""
    return {
        "identities": json.dumps(training_set.identities),
        "n_images": str(len(training_set.images)),
        "seed": str(frozen.seed),
        "settings": frozen.settings.model_dump_json(),
        "trained_on": json.dumps([path.name for path in aligned]),
        "repetition": str(_repetition(frozen)),
        "validation": validation.stem,
        "validation_sha256": sha256_file(validation),
    }


def _content_key(
    frozen: Frozen[RecogniseSettings], training_set: TrainingSet, validation: Path, device: str
) -> str:
    """Key of all that the training's state follows from."""
    return sha256_json(
        {
            "code": frozen.code,
            "settings": frozen.settings.model_dump(mode="json"),
            "seed": frozen.seed,
            "repetition": _repetition(frozen),
            "training_set": training_set.sha256(),
            "validation": sha256_file(validation),
            "device": device,
        }
    )


def _report(benchmark: str, epoch: Epoch) -> None:
    validated = "" if epoch.accuracy is None else f", {benchmark} {epoch.accuracy:.4f}"
    best = " (best)" if epoch.best else ""
    get_logger("recognise").info(
        "epoch %d: loss %.3f, learning rate %.2g%s",
        epoch.epoch,
        epoch.loss,
        epoch.learning_rate,
        validated + best,
    )


def history_csv(history: Sequence[Epoch]) -> str:
    """The history as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY_COLUMNS)
    for epoch in history:
        writer.writerow(
            [
                epoch.epoch,
                f"{epoch.learning_rate:.8g}",
                f"{epoch.loss:.6g}",
                "" if epoch.accuracy is None else f"{epoch.accuracy:.6f}",
                int(epoch.best),
            ]
        )
    return text.getvalue()


def _repetition(frozen: Frozen[RecogniseSettings]) -> int:
    text = frozen.variant.get("repetition", "0")
    if not text.isdecimal():
        raise StepError(f"variant.repetition is {text!r}; expected 0, 1, 2, ...")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("recognise", __doc__)
    add_paths(
        parser,
        "--aligned",
        "folders of aligned images with manifest.parquet; several are joined",
        required=True,
        metavar="FOLDER",
    )
    parser.add_argument(
        "--validation", type=Path, required=True, help="benchmark (.bin) that chooses the epoch"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, RecogniseSettings)
    with gpu_lease() as device:
        run(
            frozen,
            aligned=arguments.aligned,
            validation=arguments.validation,
            out=arguments.out,
            device=device,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
