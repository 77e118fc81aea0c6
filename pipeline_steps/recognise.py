"""Train a face-recognition model on aligned images (the paper's Table 3).

In:  one or several aligned sources (--aligned: the consented photographs, a synthetic set, or both
     as in the augmentation study), and the benchmark that chooses the epoch (--validation).
Out: model.safetensors (backbone of the best epoch; its metadata tells architecture, classes and
     the validation benchmark) and history.csv (epoch, learning_rate, loss, validation_accuracy,
     best). Of a set that no recogniser can be trained on, an empty model whose metadata says why.
     While it trains, its state is written after every epoch, every five minutes and on SIGTERM; the
     same command goes on from there, with the same result. State and finished model are kept under
     their key in .kept/ beside the results, so that nothing is trained twice.

Source: Tomasevic et al., "ID-Booth", FG 2025: CosFace, SGD, learning rate lowered on a plateau of
the validation accuracy, early stop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.recognition import RecogniseSettings
from pipeline_steps.study.store import Store, link
from pipeline_steps.study.versions import made_with, versions_behind

if TYPE_CHECKING:
    from pipeline_steps.recognition.training import Epoch

KEPT, STATE = ".kept", "unfinished.safetensors"
MODEL, HISTORY = "model.safetensors", "history.csv"
HISTORY_COLUMNS = ("epoch", "learning_rate", "loss", "validation_accuracy", "best")

log = get_logger("recognise")


def run(
    frozen: Frozen[RecogniseSettings],
    *,
    aligned: Sequence[Path],
    validation: Path,
    out: Path,
    device: str = "cpu",
) -> None:
    """Train one model and write it.

    Args:
        frozen: The step's configuration; variant["repetition"] (0 when absent) tells repetitions
            apart. Equal repetitions start from equal weights whatever they are trained on.
        aligned: Folders of aligned images with manifest.parquet; several are joined.
        validation: Benchmark (.bin) that chooses the epoch, the one that the settings name.
        out: Folder of model and history.
        device: cpu or cuda.

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
    import pandas as pd
    import torch

    from pipeline_steps.recognition.backbones import (
        UNTRAINED,
        Architecture,
        save_backbone,
        to_device,
        verify_benchmark,
    )
    from pipeline_steps.recognition.benchmarks import read_bin
    from pipeline_steps.recognition.dataset import NothingToTrain, load_training_set
    from pipeline_steps.recognition.margins import MarginHead
    from pipeline_steps.recognition.training import train

    repetition = _repetition(frozen)
    told = {
        "settings": settings.model_dump_json(),
        "trained_on": json.dumps([path.name for path in aligned]),
        "repetition": str(repetition),
        "validation": validation.stem,
        "validation_sha256": sha256_file(validation),
    }
    try:
        training_set = load_training_set(
            aligned, merge_sources=settings.merge_sources, beside=out.parent
        )
    except NothingToTrain as error:
        log.warning("not trained: %s", error)
        save_tensors(out / MODEL, {}, told | {UNTRAINED: str(error)})
        write_csv(out / HISTORY, [], HISTORY_COLUMNS)
        return
    made_under = key(frozen, **told, training_set=training_set.sha256())
    kept = Store(out / KEPT)
    if kept.find("recogniser", made_under):
        log.info("this recogniser was trained before, from the same images")
        _hand_out(out)
        return
    n_images, n_classes = len(training_set.images), len(training_set.identities)
    log.info("training on %d images of %d identities", n_images, n_classes)
    images, same = read_bin(validation)

    def validate(network: torch.nn.Module) -> float:
        return verify_benchmark(network, images, same, input_size=settings.input_size).accuracy

    checkpoint = Checkpoint(out / KEPT / STATE, made_under)
    built_as = Architecture.of(settings)
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
                settings,
                validate=validate,
                seed=seed_for(frozen.seed, "recognise", repetition, "order"),
                checkpoint=checkpoint,
                stop=lambda: stop,
                on_epoch=lambda epoch: log.info("%s", _line(epoch, validation.stem)),
            )
        except FloatingPointError as error:
            checkpoint.clear()
            raise StepError(
                f"training on {', '.join(map(str, aligned))} diverged ({error}); lower "
                "recognise.learning_rate_per_512"
            ) from error
    behind = versions_behind(*(folder / "manifest.parquet" for folder in aligned))
    told |= {
        "identities": json.dumps(training_set.identities),
        "n_images": str(n_images),
        "seed": str(frozen.seed),
        "versions": json.dumps(sorted({*made_with(frozen), *behind})),
    }
    save_backbone(kept.folder / MODEL, network, built_as, told)
    table = pd.DataFrame(map(astuple, history), columns=list(HISTORY_COLUMNS))
    write_csv(kept.folder / HISTORY, table.astype({"best": int}), HISTORY_COLUMNS)
    kept.add({"recogniser": kept.item(made_under, [MODEL, HISTORY])})
    _hand_out(out)
    checkpoint.clear()


def _hand_out(out: Path) -> None:
    for name in (MODEL, HISTORY):
        link(out / KEPT / name, out / name)


def _line(epoch: Epoch, benchmark: str) -> str:
    validated = "" if epoch.accuracy is None else f", {benchmark} {epoch.accuracy:.4f}"
    told = f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, learning rate {epoch.learning_rate:.2g}"
    return told + validated + (" (best)" if epoch.best else "")


def _repetition(frozen: Frozen[RecogniseSettings]) -> int:
    text = frozen.variant.get("repetition", "0")
    if not text.isdecimal():
        raise StepError(f"variant.repetition is {text!r}; expected 0, 1, 2, ...")
    return int(text)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
