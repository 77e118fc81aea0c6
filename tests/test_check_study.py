"""What is missing is listed before a study starts, each thing once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline_steps import check_study
from pipeline_steps.check_study import refuse_missing, refuse_unready
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.weights import FOLDER_VARIABLE
from pipeline_steps.preflight import data, needs
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "config" / "paper_sd21.yaml"


def paper(**changes):
    return make_plan(read_configs([PAPER]) | changes, "")


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No weights, no data, nothing in the hub's cache."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def put_data(plan, root):
    for path in plan.put_in:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")


def test_the_command_lists_everything_once_with_source_and_size_and_fails(empty_machine):
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline_steps.check_study", "--study", PAPER],
        cwd=empty_machine,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr[-2000:]
    assert not re.search(r"\| +(torch|diffusers|transformers)$", result.stderr, re.MULTILINE)
    page = result.stdout
    items = re.findall(r"^ +\d+\. (.*)\n(?:     (.*)\n)?     -> (.*)$", page, re.MULTILINE)
    assert f"Missing ({len(items)}):" in page
    assert len({what for what, _, _ in items}) == len(items)
    assert all(how for _, _, how in items)
    plan = paper()
    for path in plan.put_in:
        assert sum(what.endswith(f": {path}") for what, _, _ in items) == 1, path
    weights = [(what, facts) for what, facts, _ in items if what.startswith("weights ")]
    assert len(weights) == len(needs.missing_models(plan)) > 5
    for what, facts in weights:
        assert re.search(r"from .+; size [\d.]+ (MB|GB); licence .+", facts), what
    others = [facts for what, facts, _ in items if re.match("photographs|in-the|verif", what)]
    assert len(others) == 4 + 1 + 5
    assert all("from " in facts and "size " in facts for facts in others)


def test_nothing_is_missing_in_a_study_of_rendered_people(empty_machine):
    plan = make_plan(read_configs([ROOT / "config" / "demo.yaml"]), "")
    page, missing = check_study.page(plan, root=empty_machine)
    assert missing == []
    assert page.endswith("Nothing is missing.")


def test_two_versions_of_a_library_are_told(empty_machine):
    plan = make_plan(read_configs([ROOT / "config" / "demo.yaml"]), "")
    files = [empty_machine / plan.at("samples", variant=name) for name in plan.study.variants[:2]]
    for path, number in zip(files, ("2.7", "2.8"), strict=True):
        write_manifest(path, [{"file": "a"}], versions=[f"sample: torch {number}"])
    page, _ = check_study.page(plan, root=empty_machine)
    [line] = [line for line in page.splitlines() if "computing library" in line]
    assert all(word in line for word in ("torch 2.7", "2.8", *map(str, files)))


def test_data_that_are_there_are_not_missing(empty_machine):
    plan = paper()
    assert len(data.missing_data(plan, empty_machine)) == 11
    with pytest.raises(StepError, match=r"Missing \(11\)"):
        refuse_missing(plan, empty_machine)
    put_data(plan, empty_machine)
    assert data.missing_data(plan, empty_machine) == []
    refuse_missing(plan, empty_machine)


def test_a_folder_in_the_place_of_a_file_is_told(empty_machine):
    plan = paper()
    put_data(plan, empty_machine)
    for path in ("data/tfd/gender.csv", "data/benchmarks/lfw.bin"):
        (empty_machine / path).unlink()
        (empty_machine / path).mkdir()
    missing = data.missing_data(plan, empty_machine)
    assert [entry.what for entry in missing] == ["table of participants", "verification benchmark"]
    assert {entry.how for entry in missing} == {"this is a folder: name a file in it"}


def test_an_unpacked_archive_is_pointed_at(empty_machine):
    (empty_machine / "data/tfd/TD_RGB_A_Set2").mkdir(parents=True)
    second = data.missing_data(paper(), empty_machine)[1]
    assert "name the folder data/tfd/TD_RGB_A_Set2, which is there" in second.how


def test_accepted_licences_are_not_asked_for_again():
    asked = needs.missing_licences(paper())
    names = [re.search(r"'(.*)'", item.what)[1] for item in asked]
    assert names
    assert needs.missing_licences(paper(accept_licences=names)) == []
    assert len(needs.missing_licences(paper(accept_licences=names[1:]))) == 1


def test_too_little_disk_and_too_small_cards_are_missing(empty_machine, monkeypatch):
    assert needs.missing_disk(empty_machine, 1.0) == []
    (item,) = needs.missing_disk(empty_machine, 1e18)
    assert "1e+09 GB needed" in item.what
    plan = paper()
    monkeypatch.setattr(needs, "gpu_memories", lambda: [80e9, 8e9])
    (item,) = needs.missing_memory(plan)
    assert "10 GB (estimate), 8 GB here" in item.what
    monkeypatch.setattr(needs, "gpu_memories", lambda: [80e9])
    assert needs.missing_memory(plan) == []


def test_a_profile_needs_its_scheduler_and_no_placeholders(empty_machine, monkeypatch):
    monkeypatch.setenv("PATH", str(empty_machine))
    found = [item.what for item in needs.missing_executor(ROOT / "profiles" / "slurm")]
    assert "SLURM's sbatch" in found
    assert any("slurm_account" in what for what in found)
    own = empty_machine / "profile"
    own.mkdir()
    settings = {"executor": "slurm", "default-resources": {"slurm_account": "mine"}}
    (own / "config.yaml").write_text(yaml.safe_dump(settings))
    assert len(needs.missing_executor(own)) == 1
    (empty_machine / "sbatch").write_text("#!/bin/sh\n")
    (empty_machine / "sbatch").chmod(0o755)
    assert needs.missing_executor(own) == []
    assert needs.missing_executor(empty_machine)[0].what == "workflow profile"


def test_a_run_is_refused_for_what_its_own_jobs_lack(empty_machine):
    plan = paper()
    configurations = f"{plan.results}/config"
    refuse_unready(plan, [f"{configurations}/align.json", "data/tfd/gender.csv"], empty_machine)
    with pytest.raises(StepError) as caught:
        refuse_unready(plan, [f"{configurations}/prior/sd21.json"], empty_machine)
    message = str(caught.value)
    assert "weights sd21" in message
    assert "acceptance of the licence" in message
    assert "weights crfiqa" not in message


def test_later_files_of_a_configuration_win_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nfinetune: {rank: 4, steps: 10}\nmethods: [x, y]\n")
    (tmp_path / "b.yaml").write_text("finetune: {steps: 20}\nmethods: [z]\n")
    assert read_configs([tmp_path / "a.yaml", tmp_path / "b.yaml"]) == {
        "name": "a",
        "finetune": {"rank": 4, "steps": 20},
        "methods": ["z"],
    }
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(StepError, match=r"c\.yaml: expected keys with values"):
        read_configs([tmp_path / "c.yaml"])
    with pytest.raises(StepError, match=r"d\.yaml is missing"):
        read_configs([tmp_path / "d.yaml"])


def test_a_wrong_configuration_is_an_error_of_its_own(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("name: wrong\nprepare: {margn: 2}\n")
    with pytest.raises(StepError, match=r"unknown key 'prepare\.margn'"):
        check_study.main(["--study", str(path)])


def test_little_disk_is_a_warning_in_a_run(empty_machine, monkeypatch, capsys):
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    plan = paper()
    refuse_unready(plan, [f"{plan.results}/config/align.json"], empty_machine)
    assert "GB needed, 1 MB free" in capsys.readouterr().err


def test_numbers_that_the_settings_make_impossible_are_told_beforehand(empty_machine):
    config = read_configs([ROOT / "config" / "demo.yaml"])
    config["sample"] = config.get("sample", {}) | {"images_per_identity": 1}
    page, _ = check_study.page(make_plan(config, ""), root=empty_machine)
    assert "images_per_identity is 1, so no two generated images show one person" in page
    plan = make_plan(config, "")
    assert len(check_study.impossible_numbers(plan, 1)) == 3
    assert check_study.impossible_numbers(paper(), 20) == []
