"""What the workflow needs to know of a study: names, paths, code and frozen configurations.

Rules ask this module instead of the configuration, so that they hold no logic of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import json_text
from pipeline_steps.io.weights import PROJECT_ROOT, Weights
from pipeline_steps.naming import REAL, UNTUNED, WILD
from pipeline_steps.study.freeze import freeze, freeze_world, gates_by_identity, uses_judge
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.diffusion import PromptSet, read_prompt_set
from pipeline_steps.study.settings.evidence import SCORE_KINDS
from pipeline_steps.study.settings.study import (
    Study,
    audit_recogniser,
    extractors,
    figures_recogniser,
    parts_of,
    read_study,
    recognise_path,
    trained_on,
)

WORLD = "data/demo_world"


@dataclass(frozen=True)
class Plan:
    """A study with everything its configuration refers to.

    Attributes:
        study: The study.
        models: The weights registry.
        prompt_sets: The study's prompt sets by name.
    """

    study: Study
    models: dict[str, Weights]
    prompt_sets: dict[str, PromptSet]

    @property
    def results(self) -> str:
        """Folder of everything the study makes."""
        return f"results/{self.study.name}"

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Path of every frozen configuration to its content, canonical JSON."""
        files = freeze(self.study, self.models, self.prompt_sets)
        paths = {f"{self.results}/config/{path}": json_text(obj) for path, obj in files.items()}
        if self.rendered:
            paths[f"{WORLD}/render_demo_world.json"] = json_text(freeze_world(self.study))
        return paths

    @property
    def rendered(self) -> bool:
        """Whether the study uses data of the rendered world."""
        return any(path.startswith(f"{WORLD}/") for path in self.put_in)

    @property
    def sources(self) -> list[str]:
        """All sets of images: real, wild, and every variant."""
        return [REAL, WILD, *self.study.variants]

    @property
    def manifests(self) -> list[str]:
        """Manifests that tell which images were left out and why."""
        aligned = [f"{self.results}/aligned/{source}/manifest.parquet" for source in self.sources]
        return [f"{self.results}/dataset/manifest.parquet", *aligned]

    @property
    def cohorts(self) -> list[str]:
        """Names of the cohorts, ``<k>-of-<n>``."""
        return [f"{k}-of-{self.study.cohorts}" for k in range(self.study.cohorts)]

    @property
    def extractors(self) -> tuple[str, ...]:
        """All extractors of the study."""
        return extractors(self.study)

    @property
    def photographs(self) -> list[str]:
        """Archives and folders of photographs, and the gender table where there is one."""
        prepare = self.study.prepare
        return [*prepare.sources, *([prepare.gender_table] if prepare.gender_table else [])]

    @property
    def withdrawn(self) -> list[str]:
        """The table of people who have withdrawn, once there is one."""
        return [path for path in (self.study.prepare.withdrawn_table,) if Path(path).is_file()]

    @property
    def put_in(self) -> list[str]:
        """All files and folders that come from outside."""
        return [
            *self.photographs,
            self.study.in_the_wild,
            *self.verified,
            *self.study.template_sets,
        ]

    def lora_flag(self, base_model: str, method: str) -> str:
        """The sample step's flag for fine-tuned weights; empty for the untuned model."""
        if not self.tuned(method):
            return ""
        return f"--loras {self.results}/loras/{base_model}/{method}"

    def aligned(self, training_set: str) -> list[str]:
        """Manifests of the aligned images of a training set, by its folder name."""
        sets = {trained_on(name): parts_of(name) for name in self.study.training_sets}
        return [f"{self.results}/aligned/{part}/manifest.parquet" for part in sets[training_set]]

    def reference_features(self, source: str, kind: str) -> list[str]:
        """Features of a reference set; identity has no use for people seen once."""
        return [] if (source, kind) == (WILD, "identity") else self.features(source, kind)

    def features(self, source: str, kind: str) -> list[str]:
        """Feature files of a set of images that one kind of score needs."""
        names = self.study.score.extractors(kind)
        return [f"{self.results}/features/{source}/{name}.safetensors" for name in names]

    def judge_features(self, source: str) -> str:
        """Embeddings of a set of images by the recogniser whose similarities the figures show."""
        return f"{self.results}/features/{source}/{figures_recogniser(self.study)}.safetensors"

    def audit_features(self, source: str) -> str:
        """Embeddings of a set of images by the recogniser that audits."""
        return f"{self.results}/features/{source}/{audit_recogniser(self.study)}.safetensors"

    @property
    def audits(self) -> list[str]:
        """Counts and verdicts of every variant's audit."""
        return [f"{self.results}/audit/{name}.summary.csv" for name in self.study.variants]

    @property
    def audit_pairs(self) -> list[str]:
        """Image pairs of every variant's audit."""
        return [f"{self.results}/audit/{name}.pairs.csv" for name in self.study.variants]

    @property
    def scores(self) -> list[str]:
        """All score tables: the reference sets' own and every variant's, of every kind."""
        return [
            f"{self.results}/scores/{kind}/{name}.csv"
            for kind in SCORE_KINDS
            for name in ("reference", *self.study.variants)
        ]

    @property
    def replicates(self) -> list[str]:
        """Bootstrap replicates of every variant's error rates."""
        return [f"{self.results}/scores/identity/{name}.parquet" for name in self.study.variants]

    @property
    def models_trained(self) -> list[str]:
        """Folders of all recognisers that the study trains."""
        return [
            f"{self.results}/recognition/{recognise_path(source, repetition)}"
            for source in self.study.training_sets
            for repetition in range(self.study.recognise.repetitions)
        ]

    @property
    def verified(self) -> list[str]:
        """All that recognisers are verified on: the benchmarks, and what chose the epoch."""
        chose = [self.study.validation] if self.study.training_sets else []
        return list(dict.fromkeys([*self.study.benchmarks, *chose]))

    @property
    def templates_verified(self) -> list[str]:
        """Tables of all recognisers on the template sets; none where there are no such sets."""
        models = self.models_trained if self.study.template_sets else []
        return [f"{model}/templates.csv" for model in models]

    @staticmethod
    def tuned(method: str) -> bool:
        """Whether a method has fine-tuned weights."""
        return method != UNTUNED

    def gated(self, method: str) -> bool:
        """Whether sampling needs the embeddings of the photographs."""
        return gates_by_identity(self.study, method)

    def judged(self, method: str) -> bool:
        """Whether a method's fine-tuning needs face embeddings."""
        return uses_judge(self.study, method)


def project_file(path: str) -> str:
    """Path of one of the project's files from the working folder, so that both can move."""
    return os.path.normpath(os.path.join(os.path.relpath(PROJECT_ROOT), path))


def make_plan(config: Mapping[str, Any], where: str) -> Plan:
    """Read all that a configuration refers to.

    Args:
        config: The parsed configuration.
        where: Its file's name, for messages.

    Raises:
        StepError: unknown keys, unfit values, or a name that stands for nothing.
    """
    study = read_study(config, where)
    folder = PROJECT_ROOT / "config"
    prompt_sets = {
        name: read_prompt_set(folder / "prompts" / f"{name}.yaml") for name in study.prompt_sets
    }
    plan = Plan(study, read_models(folder / "models.yaml"), prompt_sets)
    _ = plan.frozen  # names of weights are checked here, before any job starts
    return plan
