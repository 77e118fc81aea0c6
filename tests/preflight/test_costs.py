"""Costs of a study: work, times and disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline_steps.preflight.costs import (
    STEP_TIMES,
    amounts_of,
    costs_of,
    disk,
    measured_seconds,
    read_step_times,
    units,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[2]


def plan_of(name, **changes):
    return make_plan(read_configs([ROOT / "config" / f"{name}.yaml"]) | changes, "")


def test_the_papers_work_is_counted(tmp_path):
    plan = plan_of("paper_sd21")
    amounts = amounts_of(plan, tmp_path)
    assert amounts.people == 105
    work = units(plan, amounts)
    assert work["finetune"] == {
        "finetune:stable-diffusion@512": 105 * 6400,
        "finetune_judged:stable-diffusion@512": 2 * 105 * 6400,
    }
    assert work["sample"] == {"sample:stable-diffusion@512": 4 * 2 * 105 * 21}
    assert disk(plan, amounts)["finetune"] == 3 * 105 * 829_952 * 4
    sdxl = plan_of("paper_sdxl")
    assert disk(sdxl, amounts)["finetune"] == 3 * 105 * 5_806_080 * 4
    assert units(sdxl, amounts)["finetune"]["finetune:stable-diffusion-xl@1024"] == 105 * 1000

    fused = plan_of("facefusion_sd21")
    kind = "finetune:stable-diffusion@512"  # about as long as a step of fine-tuning
    assert units(fused, amounts)["train_generator"] == {kind: 2 * 80_000}
    assert disk(fused, amounts)["train_generator"] == 24_780_800 * 2


def test_hours_follow_from_units_and_seconds(tmp_path):
    times = {"hardware": "a card", "source": "a guess"}
    times["finetune"] = {"seconds": {"stable-diffusion@512": [0.01, 0.1]}}
    times["finetune_judged"] = {"seconds": {"stable-diffusion@512": [0.02, 0.2]}}
    path = tmp_path / "times.yaml"
    path.write_text(yaml.safe_dump(times))
    costs = costs_of(plan_of("paper_sd21"), tmp_path, path)
    by_rule = {cost.rule: cost for cost in costs.rules}
    hours = 105 * 6400 * (0.01 + 2 * 0.02) / 3600
    assert by_rule["finetune"].hours == pytest.approx((hours, 10 * hours))
    assert by_rule["sample"].hours is None  # nobody knows
    assert by_rule["score"].hours == (0.0, 0.0)
    assert costs.hours == pytest.approx((hours, 10 * hours))
    assert (costs.hardware, costs.source) == ("a card", "a guess")


def test_finished_jobs_replace_estimates_and_leave_less_to_do(tmp_path):
    plan = plan_of("paper_sd21")
    for share, seconds in ((0, 100.0), (1, 300.0)):
        name = f"{share}-of-{plan.study.shares}"
        output = tmp_path / plan.results / f"loras/sd21/idbooth/shares/{name}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("{}")
        timing = tmp_path / plan.results / f"benchmarks/finetune/sd21/idbooth/{name}.tsv"
        timing.parent.mkdir(parents=True, exist_ok=True)
        timing.write_text(f"s\th:m:s\n{seconds}\t0:01:00\n")
    before, after = costs_of(plan, tmp_path / "elsewhere"), costs_of(plan, tmp_path)
    cost = next(cost for cost in after.rules if cost.rule == "finetune")
    assert (cost.jobs, cost.done, cost.measured) == (21, 2, True)
    assert cost.hours == pytest.approx((19 * 200 / 3600,) * 2)
    assert after.disk_left == pytest.approx(before.disk_left - cost.disk * 2 / 21)


def test_times_of_different_rules_are_kept_apart(tmp_path):
    for name, seconds in (("real", 1), ("wild", 2), ("sd21/idbooth/base", 3)):
        path = tmp_path / "align" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\n{seconds}\n")
    assert measured_seconds(tmp_path, "align_photographs") == 1
    assert measured_seconds(tmp_path, "align_in_the_wild") == 2
    assert measured_seconds(tmp_path, "align") == 3
    assert measured_seconds(tmp_path, "finetune") is None


def test_the_prepared_dataset_says_how_much_there_is(tmp_path):
    plan = plan_of("paper_sd21")
    table = tmp_path / plan.results / "dataset" / "identities.csv"
    table.parent.mkdir(parents=True)
    table.write_text("identity,gender,n_images,source,consent\nID_1,F,20,a,x\nID_2,M,5,a,x\n")
    amounts = amounts_of(plan, tmp_path)
    assert (amounts.people, amounts.images, amounts.basis) == (2, 25, "the prepared dataset")


def test_step_times_state_their_source_and_fit_the_real_base_models(tmp_path):
    times = read_step_times(STEP_TIMES)
    for kind in ("prior", "sample", "finetune", "finetune_judged"):
        for low, high in times[kind]["seconds"].values():
            assert 0 < low < high
        assert set(times[kind]["seconds"]) == {"stable-diffusion@512", "stable-diffusion-xl@1024"}
    with pytest.raises(StepError, match=r"none\.yaml is missing"):
        read_step_times(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(StepError, match="expected keys with values"):
        read_step_times(tmp_path / "list.yaml")


def test_external_sets_and_the_explorer_are_counted(tmp_path):
    (tmp_path / "others/n1").mkdir(parents=True)
    (tmp_path / "others/n1/0.jpg").write_bytes(b"x" * 10_000)
    (tmp_path / "others.rec").write_bytes(b"x" * 50_000)
    sets = {"folder": "others", "rec": "others.rec", "absent": "nowhere"}
    alone, plan = plan_of("paper_sd21"), plan_of("paper_sd21", external_sets=sets)
    amounts = amounts_of(plan, tmp_path)
    assert amounts.external == 6
    assert units(plan, amounts)["align_external"] == {"align": 6}
    assert amounts_of(alone, tmp_path).external == 0
    more, less = disk(plan, amounts), disk(alone, amounts_of(alone, tmp_path))
    assert {rule for rule in more if more[rule] > less[rule]} == {
        *("align_external", "features", "explore")
    }
    costs = {cost.rule: cost for cost in costs_of(plan, tmp_path).rules}
    assert costs["align_external"].jobs == 3 and costs["align_external"].hours[1] > 0
    assert costs["explore"].disk > 0 and costs["groups"].hours == (0.0, 0.0)
