"""Fine-tune the base model to each identity of a cohort.

In:  dataset/                            prepared images, identity table, manifest, and for methods
                                         with an identity term the embeddings;
     prior/<base model>/                 prior preservation images with their embeddings.
Out: <out>/<identity>/pytorch_lora_weights.safetensors   opens with pipe.load_lora_weights(folder);
     <out>/<identity>/training.json      settings, seed, hashes, losses, and the content key;
     <out>/cohorts/<k>-of-<n>.json       what the cohort holds.
     An identity whose training.json carries the same key is not trained again. One that cannot be
     trained does not stop the others; the step then fails at its end and names it.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 3 (Eq. 8 corrected), with DreamBooth and
PortraitBooth as the methods it compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.objectives import METHODS
from pipeline_steps.files.atomic import write_json
from pipeline_steps.files.dataset import (
    Subject,
    cohort_of,
    embeddings_file,
    read_embeddings,
    read_subjects,
)
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.files.hashes import sha256_file
from pipeline_steps.files.images import BadImage
from pipeline_steps.files.lease import gpu_lease
from pipeline_steps.files.logs import get_logger
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.finetune import FinetuneSettings

if TYPE_CHECKING:
    from pipeline_steps.diffusion.face_region import FaceEmbedder
    from pipeline_steps.diffusion.fleet import FineTuned
    from pipeline_steps.diffusion.latent_set import LatentSet

RECORD = "training.json"
AT_ONCE = {"cpu": 8, "cuda": 16}


def run(
    frozen: Frozen[FinetuneSettings],
    *,
    dataset: Path,
    prior: Path,
    out: Path,
    cohort: int = 0,
    cohorts: int = 1,
    device: str = "cpu",
    at_once: int | None = None,
    faces: FaceEmbedder | None = None,
) -> dict[str, str]:
    """Fine-tune a cohort and write weights, records and the cohort's file.

    Args:
        frozen: The step's configuration, with the role base_model and, for methods with an identity
            term, recogniser; the variant says base_model and method.
        dataset: Folder of the prepared dataset.
        prior: Folder of the prior set.
        out: Folder of the method's weights.
        cohort: Number of the cohort, from 0.
        cohorts: Number of cohorts.
        device: "cpu" or "cuda".
        at_once: Identities trained together; changes no result. None: as suits the device.
        faces: Detector and recogniser; None: MTCNN and the recogniser of the configuration.

    Returns:
        Identity to its content key.

    Raises:
        StepError: inputs are missing, or some identities could not be trained.
    """
    from pipeline_steps.diffusion.finetune_key import common_key, subject_key

    method = frozen.variant.get("method", "")
    if method not in METHODS:
        raise StepError(f"variant.method is {method!r}; expected {', '.join(METHODS)}")
    log = get_logger("finetune")
    subjects = cohort_of(read_subjects(dataset), cohort, cohorts)
    common = common_key(frozen, method, prior)
    keys: dict[str, str] = {}
    failures: dict[str, str] = {}
    pending: list[Subject] = []
    for subject in subjects:
        try:
            keys[subject.identity] = subject_key(common, frozen.settings, method, subject, dataset)
        except StepError as error:
            failures[subject.identity] = str(error)
            continue
        if _finished(out / subject.identity, keys[subject.identity]):
            log.info("%s is finished and kept", subject.identity)
        else:
            pending.append(subject)
    if pending:
        failures |= _train(
            frozen,
            method,
            pending,
            keys,
            dataset=dataset,
            prior=prior,
            out=out,
            device=device,
            at_once=at_once or AT_ONCE.get(device, 8),
            faces=faces,
        )
    if failures:
        reasons = "; ".join(f"{identity}: {reason}" for identity, reason in failures.items())
        raise StepError(
            f"{len(failures)} of {len(subjects)} identities were not fine-tuned ({reasons}). The "
            "others are finished and will be kept: remove or repair the named ones, and run again"
        )
    write_json(
        out / "cohorts" / f"{cohort}-of-{cohorts}.json",
        {identity: {"key": key} for identity, key in keys.items()},
    )
    return keys


def _finished(folder: Path, key: str) -> bool:
    """Whether a folder holds whole weights of that key."""
    from pipeline_steps.diffusion.lora_files import FILE_NAME

    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(
            record["key"] == key and record["weights_sha256"] == sha256_file(folder / FILE_NAME)
        )
    except (OSError, ValueError, KeyError):
        return False


def _train(
    frozen: Frozen[FinetuneSettings],
    method: str,
    pending: Sequence[Subject],
    keys: dict[str, str],
    *,
    dataset: Path,
    prior: Path,
    out: Path,
    device: str,
    at_once: int,
    faces: FaceEmbedder | None,
) -> dict[str, str]:
    """Train the identities in fleets of ``at_once``; returns those that failed, with the reason."""
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.face_region import load_faces
    from pipeline_steps.diffusion.fleet import fine_tune
    from pipeline_steps.diffusion.loss_report import LossReport
    from pipeline_steps.diffusion.training_data import encode_files, prior_latents

    settings = frozen.settings
    with_faces = METHODS[method].identity_term is not None
    base = load_base_model(frozen.weights["base_model"], device)
    if with_faces and faces is None:
        faces = load_faces(frozen.weights["recogniser"], device, settings.min_face_size or 20)
    prior_set = prior_latents(base, prior, with_embeddings=with_faces)
    # Images are encoded once, in full precision; what follows may be narrower.
    fleets = []
    failures: dict[str, str] = {}
    for start in range(0, len(pending), at_once):
        fleet: dict[str, LatentSet] = {}
        for subject in pending[start : start + at_once]:
            try:
                fleet[subject.identity] = encode_files(
                    base,
                    [dataset / file for file in subject.files],
                    settings.instance_prompt_for(subject.gender),
                    read_embeddings(embeddings_file(dataset, subject), subject.files)
                    if with_faces
                    else None,
                )
            except (StepError, BadImage) as error:
                failures[subject.identity] = str(error)
        fleets.append(fleet)
    base.to(device, settings.precision)
    by_name = {subject.identity: subject for subject in pending}
    for fleet in filter(None, fleets):
        results = fine_tune(
            base,
            method,
            fleet,
            prior_set,
            settings,
            seed=frozen.seed,
            faces=faces,
            on_step=LossReport(method, list(fleet), settings.steps),
        )
        for identity, result in results.items():
            if not result.finite:
                failures[identity] = "training diverged; lower finetune.learning_rate"
                continue
            _save(frozen, method, by_name[identity], keys[identity], result, out / identity)
    return failures


def _save(
    frozen: Frozen[FinetuneSettings],
    method: str,
    subject: Subject,
    key: str,
    result: FineTuned,
    folder: Path,
) -> None:
    """Write weights, then the record that makes them count."""
    from importlib.metadata import version

    from pipeline_steps.diffusion.lora_files import save_lora

    settings = frozen.settings
    weights = save_lora(
        folder, result.adapter, rank=settings.rank, alpha=settings.alpha, targets=settings.targets
    )
    record = {
        "key": key,
        "identity": subject.identity,
        "method": method,
        "base_model": frozen.weights["base_model"].model_dump(mode="json"),
        "recogniser": frozen.weights["recogniser"].model_dump(mode="json")
        if METHODS[method].identity_term is not None
        else None,
        "seed": frozen.seed,
        "settings": settings.model_dump(mode="json"),
        "instance_prompt": settings.instance_prompt_for(subject.gender),
        "images": dict(zip(subject.files, subject.sha256, strict=True)),
        "weights_sha256": sha256_file(weights),
        "losses": {
            name: [round(value, 6) for value in values] for name, values in result.losses.items()
        },
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    write_json(folder / RECORD, record)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_steps.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="frozen configuration (JSON)")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--prior", type=Path, required=True, help="folder of the prior set")
    parser.add_argument("--cohort", type=int, default=0, help="number of the cohort, from 0")
    parser.add_argument("--cohorts", type=int, default=1, help="number of cohorts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the method's weights")
    parser.add_argument(
        "--at-once", type=int, help="identities trained together; changes speed and memory only"
    )
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, FinetuneSettings)
    with gpu_lease() as device:
        run(
            frozen,
            dataset=arguments.dataset,
            prior=arguments.prior,
            out=arguments.out,
            cohort=arguments.cohort,
            cohorts=arguments.cohorts,
            device=device,
            at_once=arguments.at_once,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
