"""What the sample step is to make: a row per image, and the key under which it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.adapters.lora_files import FILE_NAME
from pipeline_steps.diffusion.sampling.prompts import draw_prompts
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.io.hashes import sha256_file, sha256_json
from pipeline_steps.naming import GENERATED_BY, UNTUNED, VARIANT
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import SampleSettings

Row = dict[str, Any]

COLUMNS = (
    "identity",
    "index",
    "attempt",
    "file",
    "sha256",
    *GENERATED_BY,
    *VARIANT,
    "weights_sha256",
    "weights_source",
    "similarity",
    "quality",
    "kept",
    "reason",
)
BASE_MODEL, FINE_TUNED, FOREIGN = "base model", "finetune", "foreign"  # weights_source


def plan_images(
    frozen: Frozen[SampleSettings],
    method: str,
    subject: Subject,
    weights_sha256: str,
    weights_source: str = BASE_MODEL,
) -> list[Row]:
    """Rows of the first drawings of one identity's images, without what comes of them."""
    settings = frozen.settings
    if settings.prompt_set is None:
        raise StepError("settings.prompt_set is empty: freeze the study, which fills it in")
    base_model = frozen.weights["base_model"]
    prompts = draw_prompts(
        settings.prompt_set,
        identity=subject.identity,
        count=settings.images_per_identity,
        seed=frozen.seed,
        token=None if method == UNTUNED else settings.token,
        gender=subject.gender,
    )
    return [
        {
            "identity": subject.identity,
            "index": index,
            "attempt": 0,
            "prompt": prompt,
            "negative_prompt": settings.prompt_set.negative_prompt,
            "seed": seed_for(frozen.seed, "sample", base_model.name, subject.identity, index),
            "steps": settings.steps,
            "guidance": settings.guidance,
            "scheduler": settings.scheduler,
            "base_model": base_model.name,
            "method": method,
            "prompts": settings.prompt_set.name,
            "weights_sha256": weights_sha256,
            "weights_source": weights_source,
        }
        for index, prompt in enumerate(prompts)
    ]


def redrawn(row: Row, study_seed: int) -> Row:
    """The next drawing of an image: the same prompt, another seed."""
    attempt = row["attempt"] + 1
    place = (row["base_model"], row["identity"], row["index"])
    return row | {"attempt": attempt, "seed": seed_for(study_seed, "sample", *place, attempt)}


AGAIN = "make it again with snakemake --forcerun finetune, which keeps whatever is whole"


def adapter_hash(folder: Path, token: str) -> tuple[str, str]:
    """Hash and source of an identity's weights, which have to answer to the token.

    Weights without ``training.json`` come from elsewhere; what they answer to is not known.

    Raises:
        StepError: there are none, they are broken, or they were trained with another token.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise StepError(f"fine-tuned weights {path} are missing: {AGAIN}")
    record = folder / "training.json"
    digest = sha256_file(path)
    if record.is_file():
        try:
            noted = json.loads(record.read_text(encoding="utf-8"))
            trained, whole = noted["settings"]["token"], noted["weights_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise StepError(f"{record} is broken ({error}): {AGAIN}") from error
        if whole != digest:
            raise StepError(f"{path} was cut or changed since it was trained: {AGAIN}")
        if trained != token:
            raise StepError(
                f"{folder} was fine-tuned with the token {trained!r}, sampling uses {token!r}: "
                "write the same in finetune.token and sample.token"
            )
    return digest, FINE_TUNED if record.is_file() else FOREIGN


def image_keys(frozen: Frozen[SampleSettings], rows: Sequence[Row], base_sha256: str) -> list[str]:
    """Content key of each image."""
    common = {
        "code": frozen.code,
        "base_model": base_sha256,
        "resolution": frozen.weights["base_model"].options.get("resolution"),
        "precision": frozen.settings.precision,
    }
    return [
        sha256_json(
            {
                "common": common,
                "row": {name: value for name, value in row.items() if name != "weights_source"},
            }
        )
        for row in rows
    ]
