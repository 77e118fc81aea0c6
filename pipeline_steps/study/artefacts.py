"""The ledger: every kind of file that a study makes, where it lies, who makes it, and whose it is.

Paths of rules, counts of jobs, explanations, withdrawal and recomputation follow from this table;
no other place says where a result lies. A new artefact is one line here, the rule that makes it,
and the step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.naming import EXTERNAL, REFERENCES, WILD
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.source import NOT_APPLICABLE, Source


class People(Enum):
    """Whose a file is."""

    ONE = "one identity's alone"
    ROWS = "a row for every face; rows of one identity can go"
    ALL = "made from all identities together"
    NONE = "no identity had a part in it"


@dataclass(frozen=True)
class Artefact:
    """One kind of file below ``results/<study>``.

    Attributes:
        path: Template with the fields of ``FIELDS`` and others, which stand for one folder or name.
        step: Module that makes it.
        people: Whose it is.
        made_from: What it is made from, by name; fields of one name have one value in both, and a
            set's ``source`` is a variant, or stands for the photographs or the in-the-wild set; a
            ``variant`` that is scored may be an external set.
        code: Roots of the code that makes it what it is, with fields; none: all of its step.
        branches: Code that only some settings reach, see :func:`code_of`.
        only_with: Setting of the study without which there is none of it.
        what: What it is, for lists that people read.
    """

    path: str
    step: str
    people: People
    made_from: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_with: str = ""
    what: str = "computed from all identities"

    def wanted_by(self, study: Any) -> bool:
        """Whether a study, by its settings, makes any of it."""
        return not self.only_with or bool(getattr(study, self.only_with))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The template as a regular expression with a group for each field."""
        parts = re.split(r"\{(\w+)\}", self.path)
        return re.compile(
            "".join(
                re.escape(part) if place % 2 == 0 else f"(?P<{part}>{FIELDS.get(part, ANY)})"
                for place, part in enumerate(parts)
            )
        )


ANY = "[^/]+"
SHELVES = ("shares", "checkpoints", "images", "parts")  # folders among those of identities
FIELDS = {
    "file": ".+",
    "identity": rf"(?!(?:{'|'.join(SHELVES)})/)[^/.]+",
    "reference": "|".join(REFERENCES),
    "repetition": r"\d+",
    "source": f"(?:{'|'.join(REFERENCES)}|{EXTERNAL}/{ANY}|(?!{EXTERNAL}/){ANY}/{ANY}/{ANY})(?=/)",
    "variant": f"(?:{EXTERNAL}|(?!{EXTERNAL}/){ANY}/{ANY})/[^/.]+",
    "without_people": r"(?:freeze|prior|train_generator)/.+|(?:align|features)/wild.+"
    r"|render_demo_world\..+",
}
"""What a field of a template may be, where it is not any one name."""

BASE_MODEL = "diffusion.base_models.{architecture}:load"
ONE, ROWS, ALL, NONE = People
A = Artefact

# First come, first served: what is special stands above what is general.
ARTEFACTS: dict[str, Artefact] = {
    "config": A("config/{file}", "freeze", NONE),
    # photographs
    "manifest": A("dataset/manifest.parquet", "prepare", ALL, what="lists all photographs"),
    "identities": A("dataset/identities.csv", "prepare", ALL, what="lists all identities"),
    "dataset_report": A("dataset/report.json", "prepare", ALL, what="tells of all photographs"),
    "complete": A("dataset/complete.json", "check_dataset", ALL, ("dataset_report", "manifest")),
    "image": A("dataset/images/{identity}/{file}", "prepare", ONE),
    "embeddings_index": A("dataset/embeddings/index.json", "embed", ALL, ("manifest",)),
    "embeddings_shrunk": A(
        "dataset/embeddings/{identity}@{side}.safetensors", "embed", ONE, ("image",)
    ),
    "embeddings": A("dataset/embeddings/{identity}.safetensors", "embed", ONE, ("image",)),
    "embeddings_half_written": A("dataset/embeddings/.{identity}.{file}", "embed", ONE),
    "invented": A(
        *("invented/identities.csv", "invent", ALL, ("features",)),
        only_with="made_up",
        what="lists people who do not exist",
    ),
    "targets": A("invented/targets.safetensors", "invent", ALL, only_with="made_up"),
    "invented_files": A("invented/{file}", "invent", ALL, only_with="made_up"),
    # generation
    "prior": A(
        "prior/{base_model}/manifest.parquet",
        "prior",
        NONE,
        code=("prior:run", BASE_MODEL, "diffusion.sampling.plan:BaseAlone"),
    ),
    "prior_embeddings": A("prior/{base_model}/embeddings.safetensors", "prior", NONE),
    "prior_images": A("prior/{base_model}/{file}", "prior", NONE),
    "adapters": A(
        "loras/{base_model}/{method}/shares/{share}.json",
        "finetune",
        ALL,
        ("manifest", "identities", "prior", "embeddings_index"),
        code=("finetune:run", "diffusion.methods.{method}:METHOD", BASE_MODEL),
        branches={
            "faces": ("diffusion.guide:load_guide", "faces.recogniser:embedded_by"),
            "identity_term": ("diffusion.guide:identity_term",),
            "choice": (
                "diffusion.training.choice:Trials",
                "diffusion.training.choice:plot_choice",
                "diffusion.training.data:hold_out",
            ),
            "adamw8bit": ("diffusion.training.optimisers:AdamW8bit",),
        },
        what="lists the weights of all identities",
    ),
    "training_state": A(
        "loras/{base_model}/{method}/checkpoints/{of}/{identity}.{file}", "finetune", ONE
    ),
    "adapter": A(
        "loras/{base_model}/{method}/{identity}/{file}", "finetune", ONE, ("image", "prior")
    ),
    "generator": A(
        "generators/{base_model}/{method}/training.json",
        "train_generator",
        NONE,
        code=("train_generator:run", "{trained_by}", BASE_MODEL),
    ),
    "generator_files": A("generators/{base_model}/{method}/{file}", "train_generator", NONE),
    "samples_of_share": A(
        "samples/{variant}/shares/{share}.parquet",
        "sample",
        ALL,
        ("identities", "adapters", "generator", "invented", "targets"),
        code=("sample:run", "{handed}", BASE_MODEL),
        branches={
            "gate": ("diffusion.sampling.gate:Gate",),
            "identity_guidance": (
                "diffusion.sampling.guidance:leading",
                "diffusion.sampling.guidance:open_guidance",
            ),
        },
    ),
    "samples": A("samples/{variant}/manifest.parquet", "gather", ALL, ("samples_of_share",)),
    "sample": A("samples/{variant}/{identity}/{file}", "sample", ONE, ("adapter", "image")),
    "together": A(
        "together/{base_model}/{method}/manifest.parquet",
        "sample_together",
        ALL,
        ("manifest", "generator"),
        code=("sample_together:run", "{handed}", BASE_MODEL),
        what="lists images of several people",
    ),
    # evidence
    "aligned": A("aligned/{source}/manifest.parquet", "align", ALL, ("samples", "manifest")),
    "aligned_in_the_wild": A("aligned/wild/{file}", "align", NONE),
    "aligned_image": A("aligned/{source}/{identity}/{file}", "align", ONE, ("sample", "image")),
    "feature_rows": A("features/{source}/.{extractor}.safetensors", "features", ROWS),
    "features": A(
        "features/{source}/{extractor}.safetensors", "features", ALL, ("aligned", "samples")
    ),
    "reference_scores": A("scores/{kind}/reference.csv", "score", ALL, ("features",)),
    "scores": A("scores/{kind}/{variant}.csv", "score", ALL, ("features",)),
    "replicates": A("scores/{kind}/{variant}.parquet", "score", ALL, ("features",)),
    "audit": A("audit/{variant}.csv", "audit", ALL, ("features", "aligned")),
    "audit_pairs": A("audit/{variant}.pairs.csv", "audit", ALL, ("features", "aligned")),
    "audit_summary": A("audit/{variant}.summary.csv", "audit", ALL, ("features", "aligned")),
    "audit_page": A("audit/{variant}.html", "audit", ALL, what="shows identities"),
    "groups": A("groups/{source}/groups.csv", "groups", ALL, ("features", "aligned", "identities")),
    "recogniser": A(
        "recognition/{trained_on}/seed{repetition}/model.safetensors",
        "recognise",
        ALL,
        ("aligned",),
        what="a recogniser trained on all identities",
    ),
    "history": A("recognition/{trained_on}/seed{repetition}/history.csv", "recognise", ALL),
    "verification": A(
        "recognition/{trained_on}/seed{repetition}/verification.csv", "verify", ALL, ("recogniser",)
    ),
    "templates": A(
        "recognition/{trained_on}/seed{repetition}/templates.csv",
        "verify_templates",
        ALL,
        ("recogniser",),
        only_with="template_sets",
    ),
    # what people read
    "table": A(
        "tables/{table}.{ending}",
        "tables",
        ALL,
        ("scores", "reference_scores", "replicates", "verification", "audit_summary", "groups"),
    ),
    "figure": A(
        "figures/{figure}.{ending}",
        "figures",
        ALL,
        ("features", "samples", "groups", "scores", "audit_summary"),
        what="shows identities",
    ),
    "report": A(
        "report.html",
        "report",
        ALL,
        ("table", "figure", "audit_pairs", "manifest", "aligned", "provenance"),
        what="shows identities",
    ),
    "explorer": A(
        "explorer/index.html",
        "explore",
        ALL,
        ("manifest", "identities", "samples", "aligned", "features", "audit"),
        what="shows identities",
    ),
    "provenance": A("provenance.json", "provenance", ALL, ("table", "figure", "config")),
    "export": A("export/{variant}/{file}", "export", ALL, ("samples", "aligned", "table")),
    # about jobs
    "log_without_people": A("logs/{without_people}", "", NONE),
    "log": A("logs/{file}", "", ALL, what="log of a step that saw all identities"),
    "benchmark": A("benchmarks/{file}", "", NONE),
}
ARTEFACTS |= {  # records, indices, and what a killed job left half written
    f"{folder}_further": A(f"{folder}/{{file}}", "", ALL)
    for folder in (
        *("dataset", "loras", "samples", "together", "aligned", "features", "scores", "audit"),
        *("groups", "recognition", "tables", "figures", "explorer", "export"),
    )
}


def code_of(step: str, taken: Iterable[str] = (), **fields: str) -> tuple[list[str], list[str]]:
    """The code that computes a step's results: its roots, and what is not followed.

    Args:
        step: The step's module.
        taken: Names of the branches that the step's method and settings take; the roots of the
            others are not followed.
        fields: What the results are for, where the code depends on it.

    Returns:
        Both as ``study.code.code_hash`` takes them.
    """
    made = [artefact for artefact in ARTEFACTS.values() if artefact.step == step]
    if "method" in fields:  # what its family hands the sampler, and what trains its weights
        family = METHODS[fields["method"]].family
        fields |= {"handed": family.handed, "trained_by": family.trained_by}
    roots = dict.fromkeys(filter(None, (root.format(**fields) for of in made for root in of.code)))
    branches = {name: roots for of in made for name, roots in of.branches.items()}
    without = [root for name in branches.keys() - set(taken) for root in branches[name]]
    return list(roots) or [f"{step}:run"], sorted(without)


def at(results: str | Path, name: str, **fields: Any) -> str:
    """Path of an artefact; fields that are not given stay, as wildcards of the workflow.

    Args:
        results: The results folder.
        name: A key of ``ARTEFACTS``.
        fields: Values of the template's fields.
    """
    given = {field: str(value) for field, value in fields.items()}
    template = ARTEFACTS[name].path
    unknown = given.keys() - set(re.findall(r"\{(\w+)\}", template))
    if unknown:
        raise KeyError(f"artefact {name} has no field {', '.join(sorted(unknown))}: {template}")
    path = re.sub(r"\{(\w+)\}", lambda match: given.get(match[1], match[0]), template)
    return f"{Path(results).as_posix()}/{path}"


@dataclass(frozen=True)
class Entry:
    """A file of a study, as the ledger knows it.

    Attributes:
        name: Key of ``ARTEFACTS``.
        fields: Values of the template's fields.
    """

    name: str
    fields: dict[str, str]

    @property
    def artefact(self) -> Artefact:
        return ARTEFACTS[self.name]

    @property
    def people(self) -> People:
        """Whose the file is; strangers in the wild are no identities of the study."""
        of_strangers = WILD in (self.fields.get("source"), self.fields.get("reference"))
        return People.NONE if of_strangers else self.artefact.people


def entry_of(path: str) -> Entry | None:
    """What a file is, by its place; None for one that the project doesn't make.

    Args:
        path: Below the results folder, with slashes.
    """
    for name in _names_below().get(path.partition("/")[0], ()):
        match = ARTEFACTS[name].pattern.fullmatch(path)
        if match:
            return Entry(name, match.groupdict())
    return None


@cache
def _names_below() -> dict[str, list[str]]:
    """First folder to the artefacts that lie in it, since a study may have a million files."""
    found: dict[str, list[str]] = {}
    for name, artefact in ARTEFACTS.items():
        found.setdefault(artefact.path.partition("/")[0], []).append(name)
    return found


def fields_of(path: Path, *names: str) -> dict[str, str]:
    """Fields of a file of a study's results, wherever these lie.

    Args:
        path: The file.
        names: What it may be, keys of ``ARTEFACTS``.

    Raises:
        StepError: the path has another shape.
    """
    for name in names:
        for match in re.finditer(r"(?:^|/)(?=\w)", path.as_posix()):
            found = ARTEFACTS[name].pattern.fullmatch(path.as_posix()[match.end() :])
            if found:
                return found.groupdict()
    expected = " or ".join(ARTEFACTS[name].path for name in names)
    raise StepError(f"cannot tell what {path} belongs to: expected …/{expected}")


def source_of(path: Path, *names: str) -> Source:
    """The set of images whose file this is; arguments and errors as of :func:`fields_of`."""
    fields = fields_of(path, *names)
    return Source.named(fields.get("source") or fields["variant"])


def record_place(artefact: Path) -> Path:
    """Record of a file, ``<name up to the first dot>.record.json``, or of a folder's files."""
    if artefact.suffix:
        return artefact.with_name(artefact.name.split(".", 1)[0] + ".record.json")
    return artefact / "all.record.json"


def training_set_of(path: Path) -> tuple[str, Source, int]:
    """Folder name, set and repetition of a file beside a trained recogniser.

    The set of a name such as ``real``, ``<base model>-<method>-<prompts>`` or ``external-<name>``;
    of several joined by ``+`` the parts of their names are joined, too.

    Raises:
        StepError: the path has another shape.
    """
    fields = fields_of(path, "verification", "recogniser", "templates")
    name = fields["trained_on"]
    sources = [Source.named(of) for of in sets_of(name)]
    if any(of.method != NOT_APPLICABLE == of.prompts and not of.is_external for of in sources):
        raise StepError(f"cannot tell what {path} was trained on: {name!r} is no set of images")
    rows = [of.columns for of in sources]
    joined = (
        "+".join(dict.fromkeys(row[key] for row in rows if row[key] != NOT_APPLICABLE))
        for key in rows[0]
    )
    return name, Source(*(parts or NOT_APPLICABLE for parts in joined)), int(fields["repetition"])


def sets_of(trained_on: str) -> list[str]:
    """Names of the sets of images that a recogniser was trained on, from its folder's name."""
    parts = trained_on.split("+")
    return [part if part in REFERENCES else "/".join(part.rsplit("-", 2)) for part in parts]
