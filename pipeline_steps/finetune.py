"""Fine-tune the base model to each identity of a share.

In:  dataset/                            prepared images, identity table, manifest, and for methods
                                         with an identity term the embeddings;
     prior/<base model>/                 prior preservation images with their embeddings.
Out: <out>/<identity>/pytorch_lora_weights.safetensors   opens with pipe.load_lora_weights(folder);
     <out>/<identity>/training.json      settings, seed, hashes, losses;
     <out>/<identity>/choice.svg         where finetune.choice is set: what was tried at which step;
     <out>/<identity>/items.json         the key under which the identity is finished;
     <out>/shares/<k>-of-<n>.json       what the share holds.
     An identity that is finished under the same key is not trained again. One that cannot be
     trained does not stop the others; the step then fails at its end and names it.
     <out>/checkpoints/ holds the state of identities in training. SIGTERM, SIGUSR1 and Ctrl-C save
     it and end the step with exit status 75; run again, it goes on from there, as after a crash.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 3 (Eq. 8 corrected), with DreamBooth and
PortraitBooth as the methods it compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import Subject, embeddings_file, read_subjects, share_of
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings
from pipeline_steps.study.store import Store
from pipeline_steps.study.versions import made_with, versions_behind

if TYPE_CHECKING:
    from pipeline_steps.diffusion.guide import Guide
    from pipeline_steps.diffusion.training.run import Trained

STATES = "checkpoints"
RECORD = "training.json"


def run(
    frozen: Frozen[FinetuneSettings],
    *,
    dataset: Path,
    prior: Path,
    out: Path,
    share: int = 0,
    shares: int = 1,
    device: str = "cpu",
    at_once: int | None = None,
    compile: Literal["auto", "on", "off"] = "auto",
    checkpoint_minutes: float = 5.0,
    guide: Guide | None = None,
) -> dict[str, str]:
    """Fine-tune a share of the identities and write weights, records and the share's file.

    Args:
        frozen: The step's configuration, with the role base_model and, for methods with an identity
            term, recogniser; the variant says base_model and method.
        dataset: Folder of the prepared dataset.
        prior: Folder of the prior set.
        out: Folder of the method's weights.
        share: Number of the share, from 0.
        shares: Number of shares.
        device: "cpu" or "cuda".
        at_once: Most identities trained together; None: as many as pay and fit. Changes no result.
        compile: Compile the networks; auto: on a GPU. Changes no result beyond float error.
        checkpoint_minutes: Time between two savings of the state; changes no result.
        guide: Detector and recogniser; None: MTCNN and the recogniser of the configuration.

    Returns:
        Identity to its key.

    Raises:
        StepError: inputs are missing, or some identities could not be trained.
        Interrupted: a signal asked to stop; what was reached is saved.
    """
    from pipeline_steps.diffusion.training.data import Recipe, load_training
    from pipeline_steps.diffusion.training.run import Pace, SavedStates, train

    _check_method(frozen)
    subjects = share_of(read_subjects(dataset), share, shares)
    keys: dict[str, str] = {}
    failures: dict[str, str] = {}
    common = _common(frozen, prior)
    for subject in subjects:
        try:
            keys[subject.identity] = _key(frozen, common, subject, dataset)
        except StepError as error:
            failures[subject.identity] = str(error)
    pending = [
        subject
        for subject in subjects
        if subject.identity in keys and not _is_finished(out, subject.identity, keys)
    ]
    if pending:
        with stop_requested() as stop:
            data = load_training(
                frozen,
                pending,
                dataset=dataset,
                prior=prior,
                device=device,
                guide=guide,
                stop=stop,
            )
            of = [dataset / "manifest.parquet", prior / "manifest.parquet"]
            if METHODS[frozen.variant["method"]].needs_faces(frozen.settings):
                of.append(dataset / "embeddings" / "index.json")
            versions = sorted({*made_with(frozen), *versions_behind(*of)})
            recipe = Recipe(frozen.variant["method"], frozen.settings, frozen.seed)
            saved = SavedStates(out / STATES, keys)
            pace = Pace(at_once, compile, 60 * checkpoint_minutes)
            for trained in train(data, recipe, saved, pace, stop):
                identity = trained.identity
                if trained.result.finite:
                    subject = data.subjects[identity]
                    _save(frozen, subject, trained, out / identity, keys[identity], versions)
                else:
                    data.failures[identity] = "training diverged; lower finetune.learning_rate"
            failures |= data.failures
    if failures:
        reasons = "; ".join(f"{identity}: {reason}" for identity, reason in failures.items())
        raise StepError(
            f"{len(failures)} of {len(subjects)} identities were not fine-tuned ({reasons}). The "
            "others are finished and will be kept: remove or repair the named ones, and run again"
        )
    listed = {
        identity: {"key": own, "versions": versions_behind(out / identity / RECORD)}
        for identity, own in keys.items()
    }
    write_json(out / "shares" / f"{share}-of-{shares}.json", listed)
    return keys


def _check_method(frozen: Frozen[FinetuneSettings]) -> None:
    method = frozen.variant.get("method", "")
    trained = [name for name, known in METHODS.items() if known.family.trains == "adapters"]
    if method not in trained:
        raise StepError(f"variant.method is {method!r}; expected {', '.join(trained)}")


def _common(frozen: Frozen[FinetuneSettings], prior: Path) -> dict[str, Any]:
    """What all identities' keys have in common."""
    manifest = read_manifest(prior / "manifest.parquet", ["index", "sha256", "prompt", "kept"])
    kept = manifest[manifest["kept"].astype(bool)]
    parts = {
        "method": frozen.variant["method"],
        "settings": frozen.settings.model_dump(mode="json"),
        "base_model": frozen.weights["base_model"].name,  # noise is keyed by it
        "prior": sha256_json([*kept["sha256"], *kept["prompt"]]),
    }
    if METHODS[frozen.variant["method"]].identity_term is not None:
        parts["prior_embeddings"] = _hash_of(prior / "embeddings.safetensors")
    return parts


def _key(
    frozen: Frozen[FinetuneSettings], common: dict[str, Any], subject: Subject, dataset: Path
) -> str:
    """Key of one identity's weights.

    Raises:
        StepError: the identity has no image, or no embeddings where they are needed.
    """
    if not subject.files:
        raise StepError("no usable image")
    own = {
        "identity": subject.identity,
        "prompt": frozen.settings.instance_prompt_for(subject.gender),
        "images": dict(zip(subject.files, subject.sha256, strict=True)),
    }
    if METHODS[frozen.variant["method"]].needs_faces(frozen.settings):
        own["embeddings"] = _hash_of(
            embeddings_file(dataset, subject, frozen.weights["base_model"].resolution())
        )
    return key(frozen, **common, **own)


def _hash_of(path: Path) -> str:
    if not path.is_file():
        raise StepError(f"{path} is missing: run the step that writes it first")
    return sha256_file(path)


def _is_finished(out: Path, identity: str, keys: dict[str, str]) -> bool:
    found = Store(out / identity).find(identity, keys[identity])
    if found is not None:
        get_logger("finetune").info("%s is finished and kept", identity)
    return found is not None


def _save(
    frozen: Frozen[FinetuneSettings],
    subject: Subject,
    trained: Trained,
    folder: Path,
    own_key: str,
    versions: list[str],
) -> None:
    """Write an identity's weights and record, then note that they are finished."""
    from pipeline_steps.diffusion.lora import save_lora
    from pipeline_steps.diffusion.training.choice import plot_choice

    settings, result = frozen.settings, trained.result
    weights = save_lora(
        folder, result.adapter, rank=settings.rank, alpha=settings.alpha, targets=settings.targets
    )
    if trained.choice is not None and settings.choice is not None:
        least = settings.choice.min_diversity
        plot_choice(folder / "choice.svg", subject.identity, trained.choice, least)
    record = {
        "key": own_key,
        "identity": subject.identity,
        "method": frozen.variant["method"],
        "base_model": frozen.weights["base_model"].model_dump(mode="json"),
        "recogniser": frozen.weights["recogniser"].model_dump(mode="json")
        if METHODS[frozen.variant["method"]].needs_faces(settings)
        else None,
        "seed": frozen.seed,
        "settings": settings.model_dump(mode="json"),
        "instance_prompt": settings.instance_prompt_for(subject.gender),
        "images": dict(zip(subject.files, subject.sha256, strict=True)),
        "weights_sha256": sha256_file(weights),
        "losses": {
            name: [round(value, 6) for value in values] for name, values in result.losses.items()
        },
        "choice": trained.choice,
        "versions": versions,
    }
    write_json(folder / RECORD, record)
    store = Store(folder)
    store.add({subject.identity: store.item(own_key, [weights.name, RECORD])})


main = command(run, hidden=["guide"])

if __name__ == "__main__":
    raise SystemExit(run_main(main))
