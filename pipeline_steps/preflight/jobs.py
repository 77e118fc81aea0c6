"""The jobs of a study, as the workflow plans them: one output of each stands for it.

A test holds these numbers equal to those of the workflow's own dry run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline_steps.naming import REAL, WILD
from pipeline_steps.study.plan import WORLD, Plan
from pipeline_steps.study.settings.evidence import SCORE_KINDS


def planned_jobs(plan: Plan) -> dict[str, list[str]]:
    """Rule to one output of each of its jobs, in the order in which results appear.

    Args:
        plan: the study.

    Returns:
        Paths relative to the working folder; rules without jobs are not there.
    """
    study, results = plan.study, plan.results
    tuned = [method for method in study.methods if plan.tuned(method)]
    judged = [method for method in tuned if plan.judged(method)]
    dataset = f"{results}/dataset"
    by_cohort = [(name, f"cohorts/{cohort}") for name in study.variants for cohort in plan.cohorts]
    jobs: dict[str, list[str]] = {
        "freeze": list(plan.frozen),
        "render_demo_world": [f"{WORLD}/in_the_wild.zip"] if plan.rendered else [],
        "prepare": [f"{dataset}/manifest.parquet"],
        "check_dataset": [f"{dataset}/complete.json"],
        "embed": [f"{dataset}/embeddings/index.json"] if judged else [],
        "prior": [
            f"{results}/prior/{name}/manifest.parquet" for name in study.base_models if tuned
        ],
        "finetune": [
            f"{results}/loras/{base_model}/{method}/cohorts/{cohort}.json"
            for base_model in study.base_models
            for method in tuned
            for cohort in plan.cohorts
        ],
        "sample": [f"{results}/samples/{name}/{cohort}.parquet" for name, cohort in by_cohort],
        "gather": [f"{results}/samples/{name}/manifest.parquet" for name in study.variants],
        "align_photographs": [f"{results}/aligned/{REAL}/manifest.parquet"],
        "align_in_the_wild": [f"{results}/aligned/{WILD}/manifest.parquet"],
        "align": [f"{results}/aligned/{name}/manifest.parquet" for name in study.variants],
        "features_of_reference": _of_references(plan),
        "features": [
            f"{results}/features/{name}/{plan.extractors[0]}.safetensors" for name in study.variants
        ],
        "score": [
            f"{results}/scores/{kind}/{name}.csv"
            for kind in SCORE_KINDS
            for name in study.variants
            if kind != "identity"
        ],
        "score_identity": [f"{results}/scores/identity/{name}.csv" for name in study.variants],
        "score_references": [f"{results}/scores/{kind}/reference.csv" for kind in SCORE_KINDS],
        "audit": [f"{results}/audit/{name}.csv" for name in study.variants],
        "recognise": [f"{model}/model.safetensors" for model in plan.models_trained],
        "verify": [f"{model}/verification.csv" for model in plan.models_trained],
        "verify_templates": plan.templates_verified,
        "tables": [f"{results}/tables/quality.csv"],
        "figures": [f"{results}/figures/distributions.svg"],
        "provenance": [f"{results}/provenance.json"],
        "report": [f"{results}/report.html"],
    }
    return {rule: outputs for rule, outputs in jobs.items() if outputs}


def done(outputs: Iterable[str], root: Path = Path()) -> int:
    """How many of the outputs are there; whether they are up to date, the workflow decides."""
    return sum((root / path).is_file() for path in outputs)


def _of_references(plan: Plan) -> list[str]:
    """Features of the reference sets, each file once."""
    paths: dict[str, None] = {}
    for source in (REAL, WILD):
        for kind in SCORE_KINDS:
            paths |= dict.fromkeys(plan.reference_features(source, kind))
        paths[plan.audit_features(source)] = None
    return list(paths)
