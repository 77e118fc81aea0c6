from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_steps.io.atomic import write_text
from pipeline_steps.study.plan import Plan, make_plan, project_file
from pipeline_steps.study.snapshot import (
    MARKERS,
    SNAPSHOT_VARIABLE,
    open_plan,
    plan_text,
    read_plan,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    return loaded


@pytest.fixture
def plan(config: dict[str, Any]) -> Plan:
    return make_plan(config, "demo.yaml")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Set and deleted, so that what a test sets is undone.
    monkeypatch.setenv(SNAPSHOT_VARIABLE, "")
    monkeypatch.delenv(SNAPSHOT_VARIABLE)
    return tmp_path


def test_a_snapshot_holds_the_whole_plan(plan: Plan) -> None:
    assert read_plan(plan_text(plan)) == plan
    assert read_plan(plan_text(plan)).frozen == plan.frozen


def test_jobs_follow_the_plan_of_the_main_process_whatever_the_file_says_now(
    config: dict[str, Any],
) -> None:
    started = open_plan(config, [ROOT / "config" / "demo.yaml"], main=True)
    config["finetune"]["learning_rate"] = 999.0
    config["methods"] = ["untuned"]
    config["training_sets"] = ["real"]
    assert open_plan(config, ["demo.yaml"], main=False) == started
    assert open_plan({"nonsense": 1}, ["demo.yaml"], main=False) == started


def test_another_main_process_changes_nothing_under_running_jobs(config: dict[str, Any]) -> None:
    started = open_plan(config, [], main=True)
    snapshot = Path(os.environ[SNAPSHOT_VARIABLE])
    before = snapshot.read_bytes()
    config["seed"] = 5
    assert open_plan(config, [], main=True).study.seed == 5
    assert os.environ[SNAPSHOT_VARIABLE] != str(snapshot)
    assert snapshot.read_bytes() == before
    assert read_plan(snapshot.read_text()) == started


def test_frozen_paths_lie_in_the_study_and_hold_json(plan: Plan) -> None:
    world = "data/demo_world/render_demo_world.json"
    for path, text in plan.frozen.items():
        assert path.startswith("results/demo/config/") or path == world
        assert json.loads(text)["step"] in path


def test_a_study_of_photographs_freezes_nothing_of_the_rendered_world() -> None:
    real = make_plan({"name": "real", "prepare": {}}, "")
    assert not real.rendered
    assert all(path.startswith("results/real/config/") for path in real.frozen)


def test_paths_of_the_project_are_relative_to_the_working_folder(working_folder: Path) -> None:
    path = project_file("pipeline_steps/seeds.py")
    assert not Path(path).is_absolute()
    assert (working_folder / path).resolve() == ROOT / "pipeline_steps" / "seeds.py"
    os.chdir(ROOT)
    assert project_file("pipeline_steps/seeds.py") == "pipeline_steps/seeds.py"


def test_identity_scores_need_no_features_of_people_seen_once(plan: Plan) -> None:
    assert plan.features("wild", "identity") == []
    assert plan.features("wild", "pose") == ["results/demo/features/wild/landmark_pose.safetensors"]


def test_every_recogniser_that_judges_gets_its_features(config: dict[str, Any]) -> None:
    config["score"]["identity"]["recognisers"] = ["demo_recogniser", "arcface_r100"]
    plan = make_plan(config, "two.yaml")
    variant = plan.study.variants[0]
    for source in ("real", variant):
        names = [Path(path).stem for path in plan.features(source, "identity")]
        assert names == ["demo_recogniser", "arcface_r100"]
    assert {"demo_recogniser", "arcface_r100"} <= set(plan.extractors)
    for name in ("demo_recogniser", "arcface_r100"):
        assert f"{plan.results}/config/features/{name}.json" in plan.frozen


def test_lists_of_a_study(plan: Plan) -> None:
    n_variants = len(plan.study.variants)
    assert len(plan.scores) == 3 * (n_variants + 1)
    assert len(plan.sources) == n_variants + 2
    assert plan.shares[0] == f"0-of-{plan.study.shares}"
    assert plan.aligned("real") == ["results/demo/aligned/real/manifest.parquet"]
    assert plan.lora_flag("demo", "untuned") == []
    assert plan.lora_flag("demo", "idbooth") == ["--loras", "results/demo/loras/demo/idbooth"]
    assert set(plan.put_in) >= {plan.study.in_the_wild, *plan.study.benchmarks}


def test_sets_of_others_are_compared_and_may_train(config: dict[str, Any]) -> None:
    alone = make_plan(config, "")
    changes = {"external_sets": {"vface": "data/vface"}, "training_sets": ["external/vface"]}
    plan = make_plan({**config, **changes}, "")
    assert plan.jobs["align_external"] == ["results/demo/aligned/external/vface/manifest.parquet"]
    assert plan.aligned("external-vface") == plan.jobs["align_external"]
    assert plan.shown("external/vface") == plan.jobs["align_external"][0]
    for rule in ("audit", "score_identity", "groups"):
        assert len(plan.jobs[rule]) == len(alone.jobs[rule]) + 1
    for rule in ("align", "sample", "gather", "features"):
        assert plan.jobs[rule] == alone.jobs[rule]
    assert "data/vface" in plan.put_in and "external/vface" in plan.sources
    assert "results/demo/scores/identity/external/vface.csv" in plan.scores


def test_a_training_set_may_join_several_sources(config: dict[str, Any]) -> None:
    mixed = "real+demo/idbooth/base"
    plan = make_plan({**config, "training_sets": ["real", mixed]}, "")
    assert plan.aligned("real+demo-idbooth-base") == [
        "results/demo/aligned/real/manifest.parquet",
        "results/demo/aligned/demo/idbooth/base/manifest.parquet",
    ]
    assert "results/demo/recognition/real+demo-idbooth-base/seed0" in [
        str(Path(path).parent) for path in plan.jobs["recognise"]
    ]
    frozen = plan.frozen["results/demo/config/recognise/real+demo-idbooth-base/seed0.json"]
    assert json.loads(frozen)["variant"]["trained_on"] == "real+demo-idbooth-base"


@pytest.mark.parametrize(
    ("validation", "path"),
    [
        ("lfw", "data/benchmarks/lfw.bin"),
        ("data/benchmarks/lfw.bin", "data/benchmarks/lfw.bin"),
        ("elsewhere/vgg2_fp.bin", "elsewhere/vgg2_fp.bin"),
    ],
)
def test_validation_is_one_of_the_benchmarks_or_a_set_of_its_own(
    config: dict[str, Any], validation: str, path: str
) -> None:
    config["benchmarks"] = ["data/benchmarks/lfw.bin", "data/benchmarks/cfp_fp.bin"]
    config["recognise"]["validation"] = validation
    plan = make_plan(config, "")
    assert plan.study.validation == path
    assert plan.verified == list(dict.fromkeys([*config["benchmarks"], path]))
    assert path in plan.put_in


def test_markers_are_new_exactly_where_frozen_content_has_to_change(config: dict[str, Any]) -> None:
    plan = open_plan(config, [], main=True)
    for path, text in plan.frozen.items():
        write_text(path, text)
    open_plan(config, [], main=True)
    ages = {path: (MARKERS / path).stat().st_mtime for path in plan.frozen}
    assert all(age < Path(path).stat().st_mtime for path, age in ages.items())
    config["score"]["quality"]["k"] = 4
    changed = open_plan(config, [], main=True)
    newer = [
        path
        for path in changed.frozen
        if (MARKERS / path).stat().st_mtime >= Path(path).stat().st_mtime
    ]
    assert newer == ["results/demo/config/score/quality.json"]
