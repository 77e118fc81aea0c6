"""The plan's own count of jobs against the workflow's dry run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.reruns import job_graph
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[2]
CHANGES = [{}, {"methods": ["untuned"], "training_sets": ["real"], "template_sets": ["data/ijb"]}]


@pytest.mark.parametrize("changes", CHANGES)
def test_jobs_are_those_of_the_workflow(changes):
    config = read_configs([ROOT / "config" / "paper_sd21.yaml"]) | changes
    plan = make_plan(config, "")
    names = [name for name, _ in job_graph(plan, config).values()]
    counts = Counter("freeze" if name in plan.frozen else name for name in names)
    assert counts.pop("all") == 1
    assert {rule: len(outputs) for rule, outputs in plan.jobs.items()} == counts


def test_the_whole_paper_has_all_its_variants():
    plan = make_plan(read_configs([ROOT / "config" / "paper.yaml"]), "")
    jobs = {rule: len(outputs) for rule, outputs in plan.jobs.items()}
    assert jobs["gather"] == 2 * 4 * 3
    assert jobs["finetune"] == 2 * 3 * plan.study.shares
    assert jobs["sample"] == jobs["gather"] * plan.study.shares
    assert jobs["recognise"] == 1 + 2 * 3 * 3
    outputs = [path for of_rule in plan.jobs.values() for path in of_rule]
    assert len(set(outputs)) == len(outputs)
