"""The base of every settings model, the weights registry's entry, and the frozen step settings."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipeline_steps.files.errors import StepError
from pipeline_steps.settings.problems import describe


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class Weights(Section):
    """One entry of the weights registry, ``config/models.yaml``."""

    name: str = Field(description="Name by which a study refers to the entry.")
    task: str = Field(description="What the weights do: base_model, recogniser, features, ...")
    architecture: str = Field(description="Code that reads them, e.g. stable-diffusion, iresnet.")
    source: str = Field(
        description="Local path (relative to the project's root), hub:<owner>/<name>, or https URL."
    )
    revision: str | None = Field(default=None, description="Revision of a hub source.")
    mirrors: tuple[str, ...] = Field(
        default=(),
        description="Further sources of the same files, tried in this order where the first has "
        "none: hub:<owner>/<name> or https URLs.",
    )
    files: tuple[str, ...] = Field(
        default=(),
        description="Files that are needed, relative to the entry's folder; of an archive (.zip), "
        "what to take out of it.",
    )
    sha256: dict[str, str] = Field(
        default_factory=dict,
        description="File (relative to the folder, or the file's name) to SHA-256; empty: not "
        "pinned yet.",
    )
    size: int | None = Field(
        default=None, ge=0, description="Bytes to download, about; null where nobody says."
    )
    licence: str = Field(description="Licence of the weights.")
    commercial_use: bool = Field(description="Whether that licence allows commercial use.")
    purpose: str = Field(default="", description="What a study uses the weights for.")
    page: str | None = Field(
        default=None,
        description="Web page of the weights: licence text, and the place to fetch them by hand.",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="What the architecture needs to know, e.g. layer counts."
    )
    components: dict[str, Weights] = Field(
        default_factory=dict,
        description="Parts that other entries replace, e.g. {vae: sdxl_vae_fp16_fix}; in the file "
        "by name, here the entries themselves.",
    )

    def frozen(self) -> dict[str, Any]:
        """What a step has to know of the entry: all but what downloads and readers need."""
        hidden = {"mirrors", "size", "purpose", "page", "components"}
        parts = {part: entry.frozen() for part, entry in self.components.items()}
        return self.model_dump(mode="json", exclude=hidden) | {"components": parts}

    def with_components(self) -> list[Weights]:
        """The entry and the entries of its parts."""
        return [
            self,
            *(part for entry in self.components.values() for part in entry.with_components()),
        ]


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Frozen(Generic[S]):
    """All the configuration one step reads.

    Attributes:
        study: Name of the study.
        step: Name of the step.
        seed: The study seed, in [0, 2**63).
        settings: The step's own settings.
        weights: Role ("base_model", "recogniser", "extractor") to registry entry.
        variant: What this file is for, e.g. base_model, method, prompts, trained_on, repetition.
    """

    study: str
    step: str
    seed: int
    settings: S
    weights: dict[str, Weights] = field(default_factory=dict)
    variant: dict[str, str] = field(default_factory=dict)


def load_frozen(path: str | os.PathLike[str], settings_class: type[S]) -> Frozen[S]:
    """Read a frozen step configuration.

    Args:
        path: A JSON file with the keys study, step, seed, settings, weights and variant.
        settings_class: The step's settings model.

    Raises:
        StepError: the file is missing, is no such JSON, or has unknown or unfit settings.
    """
    try:
        raw: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StepError(f"configuration {path} is missing: pass the file under --config") from error
    except (OSError, ValueError) as error:
        raise StepError(
            f"configuration {path} is not JSON ({error}): run snakemake, which writes it again"
        ) from error
    expected = {"study", "step", "seed", "settings", "weights", "variant"}
    if not isinstance(raw, dict) or set(raw) != expected:
        found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise StepError(f"configuration {path} has {found}, expected {sorted(expected)}")
    return Frozen(
        study=str(raw["study"]),
        step=str(raw["step"]),
        seed=int(raw["seed"]),
        settings=validated(settings_class, raw["settings"], f"{path}: settings"),
        weights={
            role: validated(Weights, entry, f"{path}: weights.{role}")
            for role, entry in raw["weights"].items()
        },
        variant={str(key): str(value) for key, value in raw["variant"].items()},
    )


def validated(model: type[S], value: Any, where: str) -> S:
    """``model`` made from plain data.

    Raises:
        StepError: naming each wrong key with what is wrong about it, and ``where`` it stands.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise StepError(f"{where}: {describe(error, model)}") from error
