"""A study: everything its configuration file may say, one section per step.

The defaults are the paper's values. A configuration file states what differs from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.naming import EXTERNAL, REAL, REFERENCES
from pipeline_steps.study.settings.base import NAME_PATTERN, DataPath, Section, validated
from pipeline_steps.study.settings.diffusion import GenerationSections
from pipeline_steps.study.settings.evidence import SCORE_KINDS, EvidenceSections
from pipeline_steps.study.settings.photographs import PhotographsSections
from pipeline_steps.study.settings.recognition import RecognitionSections, benchmark_name

# Names become folders and wildcards; "-" joins them in recognition/<trained_on>.
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Compared(Section):
    """What a study compares, and on which data."""

    name: Name = Field(description="Name of the study; its results lie in results/<name>.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of every random draw.")
    identities: Literal["consented", "made_up"] = Field(
        default="consented",
        description="Whom generated images show: the people of the photographs, or people who do "
        "not exist, from the step invent. The photographs stay what images are compared with.",
    )
    base_models: tuple[Name, ...] = Field(
        default=("sd21",),
        min_length=1,
        description="Diffusion models, by their names in config/models.yaml.",
    )
    methods: tuple[str, ...] = Field(
        default=("untuned", "dreambooth", "portraitbooth", "idbooth"),
        min_length=1,
        description="Fine-tuning methods, of pipeline_steps/diffusion/methods; untuned "
        "samples the base model as it is.",
    )
    prompt_sets: tuple[Name, ...] = Field(
        default=("base", "complex"),
        min_length=1,
        description="Prompt sets, by their file names in config/prompts.",
    )
    shares: int = Field(
        default=1,
        ge=1,
        description="Jobs per variant, each with its share of the identities. Changes speed and "
        "memory, no result.",
    )
    recogniser: Name = Field(
        default="arcface_r100",
        description="Recogniser of the identity losses, by its name in config/models.yaml.",
    )
    accept_licences: tuple[str, ...] = Field(
        default=(),
        description="Licences of fetched weights that you have read and accept, by their names in "
        "config/models.yaml, or names of entries there.",
    )
    in_the_wild: DataPath = Field(
        default="data/ffhq",
        description="In-the-wild reference images: an archive (.zip, .tar), or a folder of images "
        "or of .tar shards.",
    )
    external_sets: dict[Name, DataPath] = Field(
        default={},
        description="Datasets of others, or of other methods, to hold against this study's by the "
        "same judges: their names to their paths, see docs/external-sets.md.",
    )
    training_sets: tuple[str, ...] = Field(
        default=(),
        description="What recognisers are trained on: real, <base model>/<method>/<prompts>, "
        "external/<name>, or several of them in one set, joined by +, e.g. "
        "real+sd21/idbooth/complex.",
    )
    benchmarks: tuple[DataPath, ...] = Field(
        default=(
            "data/benchmarks/lfw.bin",
            "data/benchmarks/agedb_30.bin",
            "data/benchmarks/calfw.bin",
            "data/benchmarks/cfp_fp.bin",
            "data/benchmarks/cplfw.bin",
        ),
        min_length=1,
        description="Verification benchmarks, InsightFace's .bin format; a benchmark is called by "
        "its file name.",
    )


class Study(
    EvidenceSections, RecognitionSections, GenerationSections, PhotographsSections, Compared
):
    """One study: what is compared, on which data, and how every step works."""

    @field_validator(
        "base_models",
        "methods",
        "prompt_sets",
        "training_sets",
        "benchmarks",
        "template_sets",
        mode="after",
    )
    @classmethod
    def _no_repetition(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an entry stands there twice")
        return value

    @field_validator("methods", mode="after")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if method not in METHODS:
                raise ValueError(f"{method!r} is no method; there are {', '.join(METHODS)}")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Study:
        taken = {*REFERENCES, EXTERNAL, *METHODS, *self.base_models} & self.external_sets.keys()
        if taken or EXTERNAL in self.base_models:
            name = min(taken, default=EXTERNAL)
            raise ValueError(f"external_sets: {name!r} already means something else; rename it")
        needing = [
            name
            for name in self.methods
            if METHODS[name].family.shows_people and not METHODS[name].family.embeds
        ]
        if self.made_up and needing:
            can = ", ".join(name for name, of in METHODS.items() if of.family.embeds)
            raise ValueError(
                f"methods: {needing[0]} needs photographs of the people whom it shows, and "
                f"identities: made_up has none; methods for them: {can}"
            )
        looking = [name for name in self.methods if METHODS[name].family.reads == "references"]
        if self.sample_together.groups and not looking:
            raise ValueError(
                "sample_together.groups: no method of this study looks at photographs: add "
                "facefusion to methods"
            )
        known = [REAL, *self.tuned_variants, *self.external]
        for source in [part for name in self.training_sets for part in parts_of(name)]:
            if source not in known:
                raise ValueError(
                    f"training_sets: {source!r} is none of this study's: {', '.join(known)}"
                )
        for name in self.training_sets:
            if len(set(parts_of(name))) != len(parts_of(name)) or REAL in parts_of(name)[1:]:
                raise ValueError(f"training_sets: {name!r}: name each part once, real first")
        names = [benchmark_name(path) for path in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"benchmarks: two files of one name among {', '.join(names)}")
        if self.training_sets:
            self._check_validation(names)
        shown, judges = self.figures.recogniser, self.score.identity.recognisers
        if shown not in (None, *judges):
            raise ValueError(
                f"figures.recogniser: {shown!r} is none of score.identity.recognisers, "
                f"{', '.join(judges)}, whose numbers the figures show"
            )
        if self.sample.prompt_set is not None:
            raise ValueError("sample.prompt_set: name prompt sets under prompt_sets instead")
        return self

    def _check_validation(self, names: list[str]) -> None:
        chosen, name = self.recognise.validation, self.recognise.validation_name
        if chosen in (*names, *self.benchmarks):
            return
        if not chosen.endswith(".bin"):
            raise ValueError(
                f"recognise.validation: {chosen!r} is none of the benchmarks {', '.join(names)}, "
                "and no path of a .bin file"
            )
        if name in names:
            raise ValueError(
                f"recognise.validation: {chosen!r} has the name of a benchmark; rename the file"
            )

    @property
    def made_up(self) -> bool:
        """Whether images show people who do not exist."""
        return self.identities == "made_up"

    @property
    def validation(self) -> str:
        """Path of the file that chooses recognisers' epochs."""
        for path in self.benchmarks:
            if self.recognise.validation in (path, benchmark_name(path)):
                return path
        return self.recognise.validation

    @property
    def variants(self) -> list[str]:
        """All variants as ``<base model>/<method>/<prompts>``."""
        return [
            f"{base_model}/{method}/{prompts}"
            for base_model in self.base_models
            for method in self.methods
            for prompts in self.prompt_sets
        ]

    @property
    def external(self) -> list[str]:
        """The sets that others have made, as ``external/<name>``."""
        return [f"{EXTERNAL}/{name}" for name in self.external_sets]

    @property
    def compared(self) -> list[str]:
        """All sets that are scored and audited against the photographs."""
        return [*self.variants, *self.external]

    @property
    def tuned_variants(self) -> list[str]:
        """The variants that show identities: all but the untuned ones."""
        return [v for v in self.variants if METHODS[v.split("/")[1]].family.shows_people]


def parts_of(training_set: str) -> list[str]:
    """The sources that are joined in a training set."""
    return training_set.split("+")


def read_study(config: Mapping[str, Any], where: str) -> Study:
    """The study of a parsed configuration file.

    Args:
        config: What the file says.
        where: Name of the file, for messages.

    Raises:
        StepError: unknown keys or unfit values, each named.
    """
    return validated(Study, dict(config), where)


def read_configs(paths: Sequence[Path]) -> dict[str, Any]:
    """Configuration files as the workflow merges them: later ones win, key by key.

    Raises:
        StepError: a file is missing or no YAML mapping.
    """
    return reduce(merged, (read_mapping(path, "configuration") for path in paths), {})


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key; where both have a value, the other's."""
    inner = {
        key: merged(one[key], value)
        for key, value in other.items()
        if isinstance(value, Mapping) and isinstance(one.get(key), Mapping)
    }
    return {**one, **other, **inner}


def audit_recogniser(study: Study) -> str:
    """Name of the recogniser that audits."""
    return study.audit.recogniser or study.score.identity.recognisers[-1]


def figures_recogniser(study: Study) -> str:
    """Name of the recogniser whose similarities the figures show."""
    return study.figures.recogniser or study.score.identity.recognisers[-1]


def extractors(study: Study) -> tuple[str, ...]:
    """Names of all extractors of a study."""
    names = [name for kind in SCORE_KINDS for name in study.score.extractors(kind)]
    names += [audit_recogniser(study), figures_recogniser(study), study.groups.skin_tone]
    names += [study.recogniser] if study.made_up else []
    return tuple(dict.fromkeys(names))


def trained_on(source: str) -> str:
    """Folder name of a training set: its sources' names with ``-`` in the place of ``/``."""
    return source.replace("/", "-")


def recognise_path(source: str, repetition: int) -> str:
    """Folder of one model below ``recognition`` and of its configuration below ``recognise``."""
    return f"{trained_on(source)}/seed{repetition}"
