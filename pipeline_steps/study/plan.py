"""What the workflow needs to know of a study: names, paths, code and frozen configurations.

Rules ask this module instead of the configuration, so that they hold no logic of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.atomic import json_text
from pipeline_steps.io.weights import PROJECT_ROOT, Weights
from pipeline_steps.naming import REAL, WILD
from pipeline_steps.study.artefacts import ARTEFACTS, at, entry_of
from pipeline_steps.study.freeze import asks_likeness, freeze, freeze_world, uses_guide
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.evidence import SCORE_KINDS
from pipeline_steps.study.settings.sampling import PromptSet, read_prompt_set
from pipeline_steps.study.settings.study import (
    Study,
    audit_recogniser,
    extractors,
    figures_recogniser,
    parts_of,
    read_study,
    trained_on,
)

WORLD = "data/demo_world"
RENDERED = {
    "photographs": [f"{WORLD}/tfd/TD_RGB_A_Set{number}.zip" for number in range(1, 5)],
    "gender": [f"{WORLD}/tfd/gender.csv"],
    "in_the_wild": [f"{WORLD}/in_the_wild.zip"],
    "benchmarks": [
        f"{WORLD}/benchmarks/{name}.bin"
        for name in ("plain", "cross_age", "cross_pose", "frontal_profile", "age_gap", "validation")
    ],
}
"""What the rule that renders the embedded world makes."""


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
        paths = {self.at("config", file=path): json_text(obj) for path, obj in files.items()}
        if self.rendered:
            paths[f"{WORLD}/render_demo_world.json"] = json_text(freeze_world(self.study))
        return paths

    @property
    def rendered(self) -> bool:
        """Whether the study uses data of the rendered world."""
        return any(map(is_rendered, self.put_in))

    def at(self, artefact: str, **fields: Any) -> str:
        """Path of one of the study's artefacts, see :func:`artefacts.at`."""
        return at(self.results, artefact, **fields)

    def config(self, name: str) -> str:
        """Path of a frozen configuration, by the step's name and what it is for."""
        return self.at("config", file=f"{name}.json")

    def all(self, artefact: str, **fields: Iterable[Any]) -> list[str]:
        """Paths of an artefact for all combinations of some fields' values."""
        return [
            self.at(artefact, **dict(zip(fields, values, strict=True)))
            for values in product(*fields.values())
        ]

    @property
    def sources(self) -> list[str]:
        """All sets of images: real, wild, every variant, and those that others have made."""
        return [REAL, WILD, *self.study.compared]

    @property
    def explored(self) -> list[str]:
        """Sets of images that the explorer shows: all but those of strangers."""
        return [source for source in self.sources if source != WILD]

    @property
    def manifests(self) -> list[str]:
        """Manifests that tell which images were left out and why."""
        return [self.at("manifest"), *self.all("aligned", source=self.sources)]

    @property
    def shares(self) -> list[str]:
        """Names of the shares, ``<k>-of-<n>``."""
        return [f"{k}-of-{self.study.shares}" for k in range(self.study.shares)]

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
            *self.study.external_sets.values(),
            *self.generator_images,
            *self.verified,
            *self.study.template_sets,
            *self.study.sample_together.mask_files,
        ]

    def lora_flag(self, base_model: str, method: str) -> list[str]:
        """The sample step's flag for weights of the study's own; none for the untuned model."""
        of = {"base_model": base_model, "method": method}
        if self.tuned(method):
            return ["--loras", Path(self.at("adapters", **of)).parents[1].as_posix()]
        own = Path(self.at("generator", **of)).parent
        return ["--loras", own.as_posix()] if self.generates(**of) else []

    def generates(self, base_model: str, method: str) -> bool:
        """Whether the study trains a method's one set of weights for a base model itself."""
        given = self.study.train_generator.resolved(method).weights
        return METHODS[method].family.trains == "weights" and base_model not in given

    @property
    def generator_images(self) -> list[str]:
        """Images that the study trains weights of whole methods on."""
        of = self.study.train_generator
        pairs = product(self.study.base_models, self.study.methods)
        return list(dict.fromkeys(of.resolved(m).images for b, m in pairs if self.generates(b, m)))

    @property
    def people(self) -> str:
        """The table of those whom generated images show; beside it lies what is known of them."""
        return self.at("invented" if self.study.made_up else "identities")

    def targets_of(self, variant: str) -> list[str]:
        """The sample's own directions, which its images are compared with, if it has any."""
        made_up = self.study.made_up and variant in self.study.tuned_variants
        return [self.at("targets")] if made_up else []

    @property
    def together(self) -> list[str]:
        """Manifests of images of several people."""
        looking = [m for m in self.study.methods if METHODS[m].family.reads == "references"]
        method = looking if self.study.sample_together.groups else []
        return self.all("together", base_model=self.study.base_models, method=method)

    @property
    def generators(self) -> list[str]:
        """Records of what the study trains once for a base model."""
        return [
            self.at("generator", base_model=base_model, method=method)
            for base_model, method in product(self.study.base_models, self.study.methods)
            if self.generates(base_model, method)
        ]

    def aligned(self, training_set: str) -> list[str]:
        """Manifests of the aligned images of a training set, by its folder name."""
        sets = {trained_on(name): parts_of(name) for name in self.study.training_sets}
        return self.all("aligned", source=sets[training_set])

    def features(self, source: str, kind: str) -> list[str]:
        """Feature files that one kind of score needs of a set; identity has no use for people
        who are seen once."""
        if (source, kind) == (WILD, "identity"):
            return []
        names = self.study.score.extractors(kind, prompted=source in self.study.variants)
        return self.all("features", source=[source], extractor=names)

    def shown(self, source: str) -> str:
        """Manifest of the images of a set that figures show."""
        artefact = {"aligned": {"source": source}, "samples": {"variant": source}}
        name = "aligned" if source in self.study.external else "samples"
        return self.at(name, **artefact[name])

    def explored_features(self, source: str) -> list[str]:
        """Feature files that the explorer shows of a set: judges, quality of faces, pose."""
        score = self.study.score
        names = (*score.identity.recognisers, score.quality.face_quality_extractor)
        return self.all("features", source=[source], extractor=[*names, score.pose.extractor])

    def judge_features(self, source: str) -> str:
        """Embeddings of a set of images by the recogniser whose similarities the figures show."""
        return self.at("features", source=source, extractor=figures_recogniser(self.study))

    def audit_features(self, source: str) -> str:
        """Embeddings of a set of images by the recogniser that audits."""
        return self.at("features", source=source, extractor=audit_recogniser(self.study))

    @property
    def audits(self) -> list[str]:
        """Counts and verdicts of the audit of every set that is compared."""
        return self.all("audit_summary", variant=self.study.compared)

    @property
    def audit_pairs(self) -> list[str]:
        """Image pairs of the audit of every set that is compared."""
        return self.all("audit_pairs", variant=self.study.compared)

    @property
    def grouped(self) -> list[str]:
        """Sets of images that may show consenting people; of a set of strangers nothing is said."""
        return [REAL, *self.study.compared]

    @property
    def described(self) -> list[str]:
        """The participants' table, where groups share what a further column of it says."""
        further = {*self.study.groups.by} - {"gender", "skin_tone"}
        table = self.study.prepare.gender_table
        return [table] if further and table else []

    def groups_features(self, source: str) -> list[str]:
        """Features of a set for groups of people: by all judges, face quality, and skin tone."""
        score = self.study.score
        names = [*score.identity.recognisers, score.quality.face_quality_extractor]
        return self.all(
            "features", source=[source], extractor=[*names, self.study.groups.skin_tone]
        )

    @property
    def scores(self) -> list[str]:
        """All score tables: the reference sets' own and those of every set compared with them."""
        return [
            path
            for kind in SCORE_KINDS
            for path in (
                self.at("reference_scores", kind=kind),
                *self.all("scores", kind=[kind], variant=self.study.compared),
            )
        ]

    @property
    def replicates(self) -> list[str]:
        """Bootstrap replicates of the error rates of every set that is compared."""
        return self.all("replicates", kind=["identity"], variant=self.study.compared)

    def of_recognisers(self, artefact: str) -> list[str]:
        """One artefact of each recogniser that the study trains."""
        return self.all(
            artefact,
            trained_on=map(trained_on, self.study.training_sets),
            repetition=range(self.study.recognise.repetitions),
        )

    @property
    def verified(self) -> list[str]:
        """All that recognisers are verified on: the benchmarks, and what chose the epoch."""
        chose = [self.study.validation] if self.study.training_sets else []
        return list(dict.fromkeys([*self.study.benchmarks, *chose]))

    @staticmethod
    def tuned(method: str) -> bool:
        """Whether a method has fine-tuned weights."""
        return METHODS[method].trains

    def compared(self, method: str) -> bool:
        """Whether sampling needs the embeddings of the photographs."""
        return asks_likeness(self.study, method) and not self.study.made_up

    def guided(self, method: str) -> bool:
        """Whether a method's fine-tuning needs face embeddings."""
        return uses_guide(self.study, method)

    @cached_property
    def jobs(self) -> dict[str, list[str]]:
        """Rule to one output of each of its jobs, in the order in which results appear.

        The first artefact of a step in the ledger stands for its jobs, one for each combination of
        its fields' values, where the rules do not divide the work in another way. A test holds this
        equal to the workflow's own dry run. Rules without jobs are not there.
        """
        study = self.study
        tuned = list(filter(self.tuned, study.methods))
        values: dict[str, Sequence[Any]] = {
            "base_model": study.base_models if tuned else (),
            "method": tuned,
            "variant": study.compared,
            "share": self.shares,
            "kind": SCORE_KINDS,
            "trained_on": [trained_on(name) for name in study.training_sets],
            "repetition": range(study.recognise.repetitions),
        }
        found: dict[str, list[str]] = {
            "freeze": list(self.frozen),
            "render_demo_world": [f"{WORLD}/in_the_wild.zip"] if self.rendered else [],
        }
        for name, artefact in ARTEFACTS.items():
            if artefact.step in found or artefact.step in ("", "export"):
                continue
            fields = artefact.pattern.groupindex
            if artefact.wanted_by(study) and fields.keys() <= values.keys():
                found[artefact.step] = self.all(name, **{of: values[of] for of in fields})
        if not any(self.guided(method) or self.compared(method) for method in study.methods):
            found["embed"] = []
        identity = self.all("scores", kind=["identity"], variant=study.compared)
        of_references = [
            path
            for source in (REAL, WILD, *study.external)
            for path in (
                *(path for kind in SCORE_KINDS for path in self.features(source, kind)),
                self.audit_features(source),
                *(self.groups_features(source) if source == REAL else ()),
            )
        ]
        every = self.all("scores", kind=SCORE_KINDS, variant=study.compared)
        found |= {
            "align_photographs": [self.at("aligned", source=REAL)],
            "align_in_the_wild": [self.at("aligned", source=WILD)],
            "align_external": self.all("aligned", source=study.external),
            "align": self.all("aligned", source=study.variants),
            "train_generator": self.generators,
            "sample": self.all("samples_of_share", variant=study.variants, share=self.shares),
            "gather": self.all("samples", variant=study.variants),
            "sample_together": self.together,
            "features_of_reference": list(dict.fromkeys(of_references)),
            "features": self.all("features", source=study.variants, extractor=self.extractors[:1]),
            "score_references": found["score"],
            "score_identity": identity,
            "score": [path for path in every if path not in identity],
            "groups": self.all("groups", source=self.grouped),
            "tables": [self.at("table", table="quality", ending="csv")],
            "figures": [self.at("figure", figure="distributions", ending="svg")],
        }
        order = list(dict.fromkeys(artefact.step for artefact in ARTEFACTS.values()))

        def place(rule: str) -> int:
            steps = [step for step in order if step and rule.startswith(step)]
            return order.index(max(steps, key=len)) if steps else 0

        return {rule: found[rule] for rule in sorted(found, key=place) if found[rule]}

    @property
    def names(self) -> list[str]:
        """Every name in the paths of what the study's jobs make, and the jobs' rules.

        A note of a job with another name in its path is of a job that the study has no longer.
        """
        outputs = (Path(path) for paths in self.jobs.values() for path in paths)
        return sorted({Path(part).stem for path in outputs for part in path.parts} | {*self.jobs})

    @property
    def targets(self) -> list[str]:
        """What a study is finished with: outputs of its jobs that nothing else is made from."""
        used = {ARTEFACTS[name].step for of in ARTEFACTS.values() for name in of.made_from}
        outputs = [path for of in self.jobs.values() for path in of]
        below = {path: entry_of(path.removeprefix(f"{self.results}/")) for path in outputs}
        return [path for path, entry in below.items() if entry and entry.artefact.step not in used]


def is_rendered(path: str) -> bool:
    """Whether a file is one of the rendered world's."""
    return any(path in paths for paths in RENDERED.values())


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
    prompt_sets = {n: read_prompt_set(folder / f"prompts/{n}.yaml") for n in study.prompt_sets}
    plan = Plan(study, read_models(folder / "models.yaml"), prompt_sets)
    _ = plan.frozen  # names of weights are checked here, before any job starts
    return plan
