"""The content key of one identity's fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import Subject, embeddings_file
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.key import weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings


def common_key(frozen: Frozen[FinetuneSettings], method: str, prior: Path) -> dict[str, Any]:
    """What all identities' results follow from.

    Args:
        frozen: The step's configuration.
        method: A key of ``methods.METHODS``.
        prior: Folder of the prior set.

    Raises:
        StepError: weights or the prior set are missing.
    """
    manifest = read_manifest(prior / "manifest.parquet", ["index", "sha256", "prompt", "kept"])
    kept = manifest[manifest["kept"].astype(bool)]
    common = {
        "code": frozen.code,
        "method": method,
        "seed": frozen.seed,
        "settings": frozen.settings.model_dump(mode="json"),
        "base_model": weights_hash(frozen.weights["base_model"]),
        "base_model_name": frozen.weights["base_model"].name,
        "resolution": frozen.weights["base_model"].options.get("resolution"),
        "prior": sha256_json([*kept["sha256"], *kept["prompt"]]),
    }
    if frozen.settings.needs_faces(method):
        common["recogniser"] = weights_hash(frozen.weights["recogniser"])
    if METHODS[method].identity_term is not None:
        common["prior_embeddings"] = _hash_of(prior / "embeddings.safetensors")
    return common


def subject_key(
    common: dict[str, Any],
    settings: FinetuneSettings,
    method: str,
    subject: Subject,
    dataset: Path,
) -> str:
    """Content key of one identity.

    Raises:
        StepError: the identity has no image, or no embeddings where they are needed.
    """
    if not subject.files:
        raise StepError("no usable image")
    own: dict[str, Any] = {
        "identity": subject.identity,
        "prompt": settings.instance_prompt_for(subject.gender),
        "files": list(subject.files),
        "sha256": list(subject.sha256),
    }
    if settings.needs_faces(method):
        own["embeddings"] = _hash_of(embeddings_file(dataset, subject))
    return sha256_json({"common": common, "subject": own})


def _hash_of(path: Path) -> str:
    if not path.is_file():
        raise StepError(f"{path} is missing: run the step that writes it first")
    return sha256_file(path)
