"""Frozen configurations: for every step one JSON with all it depends on, and nothing else.

A job reads only its own file, and the workflow reruns a job when that file's content changes.
So whatever one step does not use must not stand in its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import ARTEFACTS, code_of
from pipeline_steps.study.code import code_hash, libraries_behind
from pipeline_steps.study.registry import guide_of, pick
from pipeline_steps.study.settings.base import COMPUTING, Section, validated
from pipeline_steps.study.settings.diffusion import FinetuneSettings
from pipeline_steps.study.settings.evidence import SCORE_KINDS
from pipeline_steps.study.settings.photographs import ExpectedSettings
from pipeline_steps.study.settings.sampling import PromptSet
from pipeline_steps.study.settings.study import (
    Study,
    audit_recogniser,
    extractors,
    figures_recogniser,
    recognise_path,
    trained_on,
)

JsonObject = dict[str, Any]
Entry = tuple[str, JsonObject]

# Steps whose settings differ between base models, methods, extractors, ...: a file for each.
VARIED = (
    "prior",
    "finetune",
    "train_generator",
    "sample",
    "sample_together",
    "export",
    "features",
    "score",
    "recognise",
)

# What the database should hold is asked by check_dataset alone.
UNCHECKED = ExpectedSettings(
    identities=None, images_per_identity=None, cameras=None, positions=None
)


def freeze(
    study: Study, models: Mapping[str, Weights], prompt_sets: Mapping[str, PromptSet]
) -> dict[str, JsonObject]:
    """All frozen configurations of a study.

    Args:
        study: The study.
        models: The weights registry.
        prompt_sets: The study's prompt sets by name.

    Returns:
        Path relative to ``results/<study>/config`` to the JSON object of that file.

    Raises:
        StepError: the study names weights that the registry lacks or has for another task, or
            whose resolution is above that of the prepared images.
    """
    models = _Whole(models)
    return dict(
        [
            *_of_steps(study),
            *_of_generation(study, models, prompt_sets),
            *_of_scores(study, models),
            *_of_recognition(study),
            *_of_presentation(study, models),
        ]
    )


class _Whole(dict[str, Weights]):
    """Entries of the registry with the hashes of their files, which are looked at once."""

    def __init__(self, models: Mapping[str, Weights]) -> None:
        super().__init__(models)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Weights:
        if name not in self.seen:
            self[name] = super().__getitem__(name).with_contents()
            self.seen.add(name)
        return super().__getitem__(name)


def _entry(
    study: Study,
    step: str,
    settings: Section | JsonObject,
    *,
    variant: Mapping[str, str] | None = None,
    weights: Mapping[str, Weights] | None = None,
    path: str | None = None,
) -> Entry:
    """Path and content of one frozen configuration; the path follows the variant's values."""
    named = dict(variant or {})
    path = path or "/".join((step, *named.values()))
    content = {
        "study": study.name,
        "step": step,
        "seed": study.seed,
        "settings": settings.model_dump(mode="json") if isinstance(settings, Section) else settings,
        "weights": {role: entry.frozen() for role, entry in (weights or {}).items()},
        "variant": named,
    }
    libraries = sorted(COMPUTING & libraries_behind(*code_behind(content)))
    code = code_hash(*code_behind(content, gate=False))
    return f"{path}.json", content | {"code": code, "libraries": libraries}


def code_behind(frozen: JsonObject, *, gate: bool = True) -> tuple[list[str], list[str]]:
    """The code that computes what a frozen configuration asks for, see ``artefacts.code_of``.

    Without that of the gate, which has a hash of its own: images are the same with it and without.
    """
    step, settings, fields = frozen["step"], frozen["settings"], dict(frozen["variant"])
    taken = set[str]()
    if "base_model" in frozen["weights"]:
        architecture = frozen["weights"]["base_model"]["architecture"]
        fields["architecture"] = architecture.replace("-", "_")
    if step == "finetune":
        tuning = validated(FinetuneSettings, settings, "finetune")
        taken = METHODS[fields["method"]].branches(tuning)
    if step == "sample":
        asked = ["identity_guidance", *(["gate"] if gate else [])]
        taken = {name for name in asked if settings[name] is not None}
    return code_of(step, taken, **fields)


def _of_steps(study: Study) -> Iterator[Entry]:
    """The steps that the ledger lists, each with its own section; some get more below."""
    for artefact in ARTEFACTS.values():
        section = getattr(study, artefact.step, None)
        if section is not None and artefact.step not in VARIED and artefact.wanted_by(study):
            yield _entry(study, artefact.step, section)


def _of_generation(
    study: Study, models: Mapping[str, Weights], prompt_sets: Mapping[str, PromptSet]
) -> Iterator[Entry]:
    """Face embeddings, prior sets, fine-tuning and sampling, and what is exported of it."""
    guide = {"recogniser": guide_of(study, models)}
    prepare = study.prepare.model_copy(update={"expected": UNCHECKED})
    yield _entry(study, "prepare", prepare, weights=guide)
    check = study.check_dataset.model_copy(update={"expected": study.prepare.expected})
    yield _entry(study, "check_dataset", check)
    entries = {name: pick(models, name, "base_models", "base_model") for name in study.base_models}
    prepared = study.prepare.resolution
    judging = ARTEFACTS["samples_of_share"].branches["gate"]
    sides = {*study.embed.resolutions, *(entry.resolution() for entry in entries.values())}
    shrunk = tuple(sorted(side for side in sides if side < prepared))
    embed = study.embed.model_copy(update={"resolutions": shrunk})
    yield _entry(study, "embed", embed, weights=guide)
    if study.made_up:
        yield _entry(study, "invent", study.invent, weights=guide)
    for base_model, entry in entries.items():
        if entry.resolution() > prepared:
            raise StepError(
                f"prepare.resolution is {prepared}, but base model {base_model!r} has "
                f"{entry.resolution()}: prepare at that resolution at least; larger images are "
                "shrunk"
            )
        of_model = {"base_model": base_model}
        weights = {"base_model": entry}
        yield _entry(study, "prior", study.prior, variant=of_model, weights=weights | guide)
        for method in study.methods:
            of_method = of_model | {"method": method}
            if METHODS[method].trains:
                tuning = study.finetune.resolved(base_model, method)
                guides = weights | (guide if tuning.needs_faces(method) else {})
                yield _entry(study, "finetune", tuning, variant=of_method, weights=guides)
            given = {}
            if METHODS[method].family.trains == "weights":
                given = _generator(study, models, base_model, method)
                if not given:
                    own = {"weights": {}, "images": ""}  # what they hold counts, not their place
                    generator = study.train_generator.resolved(method).model_copy(update=own)
                    guides = weights | (guide if METHODS[method].family.embeds else {})
                    yield _entry(
                        study, "train_generator", generator, variant=of_method, weights=guides
                    )
            networks = weights | given | _sample_weights(study, models, method)
            if study.sample_together.groups and METHODS[method].family.reads == "references":
                unasked = dict.fromkeys(("gate", "identity_guidance", "embeddings"))
                sampling = study.sample.model_copy(update=unasked)
                settings = study.sample_together.model_copy(update={"sample": sampling})
                yield _entry(
                    study, "sample_together", settings, variant=of_method, weights=networks
                )
            for name in study.prompt_sets:
                variant = of_method | {"prompts": name}
                sampling = study.sample.with_prompts(prompt_sets[name])
                sampling = sampling.judged_by(study.align, code_hash(judging))
                if not METHODS[method].family.shows_people:
                    nobody = {"identity_guidance": None, "negative_guidance": 0.0}
                    sampling = sampling.model_copy(update=nobody)
                others = {"references", "embeddings"} - {METHODS[method].family.reads}
                sampling = sampling.model_copy(update=dict.fromkeys(others))
                yield _entry(study, "sample", sampling, variant=variant, weights=networks)
                if METHODS[method].family.shows_people:
                    behind = weights | given | (guide if uses_guide(study, method) else {})
                    yield _entry(study, "export", study.export, variant=variant, weights=behind)


def _of_scores(study: Study, models: Mapping[str, Weights]) -> Iterator[Entry]:
    """Features, scores and audits."""
    for extractor in extractors(study):
        yield _entry(
            study,
            "features",
            study.features,
            variant={"extractor": extractor},
            weights={"extractor": pick(models, extractor, "score")},
        )
    for kind in SCORE_KINDS:
        part = {kind: getattr(study.score, kind).model_dump(mode="json")}
        yield _entry(study, "score", part, variant={"kind": kind})
    audit = study.audit.model_copy(update={"recogniser": audit_recogniser(study)})
    yield _entry(study, "audit", audit)


def _of_recognition(study: Study) -> Iterator[Entry]:
    # How many repetitions there are changes none of them.
    once = study.recognise.model_copy(update={"repetitions": 1})
    for source in study.training_sets:
        for repetition in range(study.recognise.repetitions):
            named = {"trained_on": trained_on(source), "repetition": str(repetition)}
            path = f"recognise/{recognise_path(source, repetition)}"
            yield _entry(study, "recognise", once, variant=named, path=path)


def _of_presentation(study: Study, models: Mapping[str, Weights]) -> Iterator[Entry]:
    """Figures, tables and pages; all but figures say which of the judges trained the images."""
    guides = any(uses_guide(study, one) or asks_likeness(study, one) for one in study.methods)
    guide = {"recogniser": guide_of(study, models)} if guides else {}
    shown = figures_recogniser(study)
    yield _entry(study, "figures", study.figures.model_copy(update={"recogniser": shown}))
    yield _entry(study, "tables", study.tables, weights=guide)
    yield _entry(study, "explore", study.explore, weights=guide)
    judge_of_figures = pick(models, shown, "figures.recogniser", "recogniser")
    yield _entry(study, "report", study.report, weights=guide | {"figures": judge_of_figures})


def _generator(
    study: Study, models: Mapping[str, Weights], base_model: str, method: str
) -> dict[str, Weights]:
    """Weights of a whole method that were trained before, if the study names any."""
    name = study.train_generator.resolved(method).weights.get(base_model)
    if name is None:
        return {}
    return {"generator": pick(models, name, "train_generator.weights", "generator")}


def freeze_world(study: Study) -> JsonObject:
    """The frozen configuration of the rendered world, which all studies of one machine share."""
    return {
        "study": "demo_world",
        "step": "render_demo_world",
        "seed": 0,
        "settings": study.render_demo_world.model_dump(mode="json"),
        "weights": {},
        "variant": {},
        "code": code_hash(*code_of("render_demo_world")),
    }


def uses_guide(study: Study, method: str) -> bool:
    """Whether a method's fine-tuning looks at faces, and so needs recogniser and embeddings."""
    return METHODS[method].trains and any(
        study.finetune.resolved(base_model, method).needs_faces(method)
        for base_model in study.base_models
    )


def asks_likeness(study: Study, method: str) -> bool:
    """Whether sampling asks for an identity's embedding; the untuned model knows none."""
    gate, guidance = study.sample.gate, study.sample.identity_guidance
    asked = guidance is not None or (gate is not None and gate.min_similarity is not None)
    family = METHODS[method].family
    return family.embeds or (asked and family.shows_people)


def _sample_weights(study: Study, models: Mapping[str, Weights], method: str) -> dict[str, Weights]:
    """Networks by which the sample step's gate judges images and its guidance leans them."""
    gate, weights = study.sample.gate, {}
    if asks_likeness(study, method):
        weights["recogniser"] = guide_of(study, models)
    references = study.sample.references if METHODS[method].family.reads == "references" else None
    ranked = references is not None and references.order == "quality"
    if ranked or (gate is not None and gate.min_quality is not None):
        where = "score.quality.face_quality_extractor"
        name = study.score.quality.face_quality_extractor
        weights["quality"] = pick(models, name, where, "quality")
    return weights
