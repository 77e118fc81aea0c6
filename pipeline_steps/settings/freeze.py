"""Frozen configurations: for every step one JSON with all it depends on, and nothing else.

A job reads only its own file, and the workflow reruns a job when that file's content changes.
So whatever one step does not use must not stand in its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.files.errors import StepError
from pipeline_steps.settings.base import Section, Weights
from pipeline_steps.settings.registry import pick
from pipeline_steps.settings.sample import PromptSet
from pipeline_steps.settings.score import SCORE_KINDS
from pipeline_steps.settings.study import Study

JsonObject = dict[str, Any]


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
    frozen: dict[str, JsonObject] = {}

    def add(
        step: str,
        settings: Section | JsonObject,
        *,
        variant: Mapping[str, str] | None = None,
        weights: Mapping[str, Weights] | None = None,
        path: str | None = None,
    ) -> None:
        named = dict(variant or {})
        path = path or "/".join((step, *named.values()))
        frozen[f"{path}.json"] = {
            "study": study.name,
            "step": step,
            "seed": study.seed,
            "settings": settings.model_dump(mode="json")
            if isinstance(settings, Section)
            else settings,
            "weights": {role: entry.frozen() for role, entry in (weights or {}).items()},
            "variant": named,
        }

    judge = pick(models, study.recogniser, "recogniser", "recogniser")
    add("prepare", study.prepare)
    add("embed", study.embed, weights={"recogniser": judge})
    add("align", study.align)
    for base_model in study.base_models:
        entry = pick(models, base_model, "base_models", "base_model")
        resolution = entry.options.get("resolution")
        if not isinstance(resolution, int) or resolution > study.prepare.resolution:
            raise StepError(
                f"prepare.resolution is {study.prepare.resolution}, but base model {base_model!r} "
                f"has {resolution}: prepare at that resolution at least; larger images are shrunk"
            )
        of_model = {"base_model": base_model}
        weights = {"base_model": entry}
        add("prior", study.prior, variant=of_model, weights=weights | {"recogniser": judge})
        for method in study.methods:
            of_method = of_model | {"method": method}
            if method in METHODS:
                settings_of_method = study.finetune.resolved(base_model, method)
                judged = settings_of_method.needs_faces(method)
                add(
                    "finetune",
                    settings_of_method,
                    variant=of_method,
                    weights=weights | ({"recogniser": judge} if judged else {}),
                )
            sampling = weights | _gate_weights(study, models, method)
            for name in study.prompt_sets:
                settings = study.sample.with_prompts(prompt_sets[name])
                settings = settings.finding_faces_as(study.align)
                variant = of_method | {"prompts": name}
                add("sample", settings, variant=variant, weights=sampling)
                if method in METHODS:
                    judges = weights | ({"recogniser": judge} if uses_judge(study, method) else {})
                    add("export", study.export, variant=variant, weights=judges)
    for extractor in extractors(study):
        add(
            "features",
            study.features,
            variant={"extractor": extractor},
            weights={"extractor": pick(models, extractor, "score")},
        )
    for kind in SCORE_KINDS:
        part = {kind: getattr(study.score, kind).model_dump(mode="json")}
        add("score", part, variant={"kind": kind})
    add("audit", study.audit.model_copy(update={"recogniser": audit_recogniser(study)}))
    # How many repetitions there are changes none of them.
    once = study.recognise.model_copy(update={"repetitions": 1})
    for source in study.training_sets:
        for repetition in range(study.recognise.repetitions):
            named = {"trained_on": trained_on(source), "repetition": str(repetition)}
            path = recognise_path(source, repetition)
            add("recognise", once, variant=named, path=f"recognise/{path}")
    # Tables and page say which of the judges trained the images.
    guides = any(uses_judge(study, method) for method in study.methods)
    guide = {"recogniser": judge} if guides else {}
    add("verify", study.verify)
    if study.template_sets:
        add("verify_templates", study.verify_templates)
    shown = figures_recogniser(study)
    add("figures", study.figures.model_copy(update={"recogniser": shown}))
    add("tables", study.tables, weights=guide)
    judge_of_figures = pick(models, shown, "figures.recogniser", "recogniser")
    add("report", study.report, weights=guide | {"figures": judge_of_figures})
    return frozen


def freeze_world(study: Study) -> JsonObject:
    """The frozen configuration of the rendered world, which all studies of one machine share."""
    return {
        "study": "demo_world",
        "step": "render_demo_world",
        "seed": 0,
        "settings": study.render_demo_world.model_dump(mode="json"),
        "weights": {},
        "variant": {},
    }


def uses_judge(study: Study, method: str) -> bool:
    """Whether a method's fine-tuning looks at faces, and so needs recogniser and embeddings."""
    return method in METHODS and any(
        study.finetune.resolved(base_model, method).needs_faces(method)
        for base_model in study.base_models
    )


def gates_by_identity(study: Study, method: str) -> bool:
    """Whether sampled images must resemble their identity; the untuned model knows none."""
    gate = study.sample.gate
    return gate is not None and gate.min_similarity is not None and method in METHODS


def _gate_weights(study: Study, models: Mapping[str, Weights], method: str) -> dict[str, Weights]:
    """Networks by which the gate of the sample step judges images."""
    gate, weights = study.sample.gate, {}
    if gates_by_identity(study, method):
        weights["recogniser"] = pick(models, study.recogniser, "recogniser", "recogniser")
    if gate is not None and gate.min_quality is not None:
        where = "score.quality.face_quality_extractor"
        name = study.score.quality.face_quality_extractor
        weights["quality"] = pick(models, name, where, "quality")
    return weights


def audit_recogniser(study: Study) -> str:
    """Name of the recogniser that audits."""
    return study.audit.recogniser or study.score.identity.recognisers[-1]


def figures_recogniser(study: Study) -> str:
    """Name of the recogniser whose similarities the figures show."""
    return study.figures.recogniser or study.score.identity.recognisers[-1]


def extractors(study: Study) -> tuple[str, ...]:
    """Names of all extractors of a study."""
    names = [name for kind in SCORE_KINDS for name in study.score.extractors(kind)]
    return tuple(dict.fromkeys([*names, audit_recogniser(study), figures_recogniser(study)]))


def trained_on(source: str) -> str:
    """Folder name of a training set: ``real``, ``<base model>-<method>-<prompts>``, or several +"""
    return source.replace("/", "-")


def recognise_path(source: str, repetition: int) -> str:
    """Folder of one model below ``recognition`` and of its configuration below ``recognise``."""
    return f"{trained_on(source)}/seed{repetition}"
