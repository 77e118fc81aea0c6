"""The workflow's graph, by dry runs of the real Snakefile in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.images import write_png
from pipeline_steps.study.plan import make_plan
from tests.workflow.small_study import bare_environment, quick

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A Snakemake run in a folder that is not the project's."""
    program = Path(sys.executable).with_name("snakemake")
    place = ["--snakefile", ROOT / "Snakefile", "--directory", folder]
    return subprocess.run(
        [program, *place, "--cores", "2", *arguments],
        cwd=ROOT,
        env=bare_environment() | quick(),
        capture_output=True,
        text=True,
        check=False,
    )


def snakemake(folder: Path, *arguments: str | Path) -> str:
    """Output of a run that has to succeed."""
    result = run(folder, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def job_counts(output: str) -> dict[str, int]:
    """Rule to number of jobs, from the table of a dry run; empty when nothing is to be done."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def write_config(path: Path, **changes: Any) -> Path:
    """The demo's configuration with two methods and one prompt set, and with dotted changes."""
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    config |= {
        "methods": ["untuned", "dreambooth", "idbooth"],
        "prompt_sets": ["base"],
        "training_sets": ["real", "demo/idbooth/base"],
        "shares": 2,
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        part = config
        for name in parents:
            part = part[name]
        part[last] = value
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_demo_needs_these_jobs_and_writes_nothing_in_a_dry_run(tmp_path: Path) -> None:
    counts = job_counts(snakemake(tmp_path, "-n"))
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    shares, trained = config["shares"], len(config["training_sets"])
    repetitions = config["recognise"]["repetitions"]
    tuned = sum(METHODS[method].trains for method in config["methods"])
    variants = len(config["methods"]) * len(config["prompt_sets"])
    assert counts.pop("freeze") > 20
    assert counts.pop("features_of_reference") > 5
    assert counts == {
        "render_demo_world": 1,
        "prepare": 1,
        "check_dataset": 1,
        "embed": 1,
        "prior": 1,
        "finetune": tuned * shares,
        "sample": variants * shares,
        "gather": variants,
        "align_photographs": 1,
        "align_in_the_wild": 1,
        "align": variants,
        "features": variants,
        "score": 2 * variants,
        "score_identity": variants,
        "score_references": 3,
        "audit": variants,
        "groups": 1 + variants,
        "recognise": trained * repetitions,
        "verify": trained * repetitions,
        "tables": 1,
        "figures": 1,
        "provenance": 1,
        "report": 1,
        "explore": 1,
        "all": 1,
    }
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every output of a small study stands."""
    folder = tmp_path_factory.mktemp("study")
    config = write_config(folder / "config.yaml")
    for name, text in make_plan(yaml.safe_load(config.read_text()), "").frozen.items():
        write_text(folder / name, text)
    for line in snakemake(folder, "--configfile", config, "--summary").splitlines():
        if "\tmissing\t" in line:
            write_text(folder / line.split("\t")[0], "finished")
    snakemake(folder, "--configfile", config, "--touch")
    return folder


def test_finished_is_finished(finished: Path) -> None:
    output = snakemake(finished, "--configfile", finished / "config.yaml", "-n")
    assert "Nothing to be done" in output


def test_a_change_reruns_what_depends_on_it_and_nothing_else(finished: Path) -> None:
    changes = {
        "finetune__margin": 0.5,  # ID-Booth only: one method of two, in two shares
        "score__pose__extractor": "landmark_pose",  # as it was
        "recognise__repetitions": 2,  # the models of the first repetition stay
        "figures__dpi": 99,
    }
    config = write_config(finished / "changed.yaml", **changes)
    counts = job_counts(snakemake(finished, "--configfile", config, "-n"))
    assert counts == {
        "freeze": 2 + 2,
        "finetune": 2,
        "sample": 2,
        "gather": 1,
        "align": 1,
        "features": 1,
        "score": 2,
        "score_identity": 1,
        "audit": 1,
        "groups": 1,
        "recognise": 1 + 2,
        "verify": 1 + 2,
        "tables": 1,
        "figures": 1,
        "provenance": 1,
        "report": 1,
        "explore": 1,
        "all": 1,
    }


@pytest.fixture(scope="module")
def of_folders(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The finished study with folders as sources and large files, and its configuration."""
    folder = tmp_path_factory.mktemp("folders") / "study"
    shutil.copytree(finished, folder)
    for name in ("photos/ID_1/0.jpg", "photos/ID_2/0.jpg", "wild/deep/0.png", "ijb/images/0.png"):
        write_png(folder / name, np.zeros((64, 64, 3), np.uint8))
    write_text(folder / "ijb/templates.csv", "template,media,file\n1,1,0.png\n")
    write_text(folder / "ijb/pairs.csv", "template_a,template_b,same\n1,1,1\n")
    sources = {"prepare__sources": ["photos"], "in_the_wild": "wild", "template_sets": ["ijb"]}
    config = write_config(folder / "folders.yaml", **sources)
    write_text(folder / LARGE, "large" * 300_000)
    for target in ("recognition/real/seed0", "recognition/demo-idbooth-base/seed0"):
        write_text(folder / f"results/demo/{target}/templates.csv", "finished")
    for name, text in make_plan(yaml.safe_load(config.read_text()), "").frozen.items():
        write_text(folder / name, text)
    snakemake(folder, "--configfile", config, "--touch")
    return folder, config


LARGE = "results/demo/features/real/demo_quality.safetensors"
PREPARED = {"prepare", "check_dataset", "embed", "finetune", "sample", "align_photographs"}
JUDGED = {"align_in_the_wild", "features_of_reference", "score", "score_references", "audit"}


OTHER_CONTENTS = [
    (["photos/ID_1/1.jpg"], PREPARED, {"align_in_the_wild", "prior"}),
    (["wild/deep/0.png"], JUDGED, PREPARED | {"verify_templates"}),
    (["ijb/images/0.png", LARGE], {"verify_templates", "score"}, {*PREPARED, "verify", "features"}),
]


def test_times_run_nothing_again_whatever_the_size_of_the_file(
    of_folders: tuple[Path, Path],
) -> None:
    folder, config = of_folders
    for path in (folder / name for name in ("photos", "wild", "ijb", "results")):
        for file in filter(Path.is_file, path.rglob("*")):
            os.utime(file)
    assert "Nothing to be done" in snakemake(folder, "--configfile", config, "-n")


@pytest.mark.parametrize(("changed", "again", "not_again"), OTHER_CONTENTS)
def test_other_contents_run_again_whatever_their_size_and_however_deep_they_lie(
    of_folders: tuple[Path, Path], changed: list[str], again: set[str], not_again: set[str]
) -> None:
    folder, config = of_folders
    before = {name: (folder / name).read_bytes() for name in changed if (folder / name).is_file()}
    for name in changed:
        (folder / name).write_bytes(before.get(name, b"new")[::-1])  # of equal size
    output = snakemake(folder, "--configfile", config, "-n")
    planned = job_counts(output).keys()
    assert again <= planned
    assert not not_again & planned
    for name in changed:
        assert f"{name if name == LARGE else name.split('/')[0]}: other content" in output
        (folder / name).write_bytes(before[name]) if name in before else (folder / name).unlink()


MISSPELT = {
    "in_the_wild": "data/demo_world/in_the_wlid.zip",
    "benchmarks": ["data/benchmarks/fwl.bin"],
    "prepare__sources": ["data/demo_world/photos"],
    "prepare__gender_table": "data/demo_world/tfd/genders.csv",
    "template_sets": ["data/ibj"],
}


@pytest.mark.parametrize(("key", "dry"), [(key, ["-n"]) for key in MISSPELT] + [("benchmarks", [])])
def test_an_input_that_is_not_there_ends_a_finished_study_with_a_list(
    finished: Path, key: str, dry: list[str]
) -> None:
    config = write_config(finished / "misspelt.yaml", **{key: MISSPELT[key]})
    result = run(finished, "--configfile", config, *dry)
    told = result.stdout + result.stderr
    assert result.returncode != 0
    name = MISSPELT[key] if isinstance(MISSPELT[key], str) else MISSPELT[key][0]
    assert re.search(rf"cannot start\. Missing \(\d\):\n +1\. .*: {name}\n", told)
    assert "MissingInput" not in told


def test_a_dry_run_says_which_settings_changed(finished: Path) -> None:
    config = write_config(finished / "told.yaml", finetune__margin=0.5, figures__dpi=99)
    told = snakemake(finished, "--configfile", config, "-n").partition("What changed:")[2]
    assert re.search(r"finetune\.margin: 1\.0 -> 0\.5\n    finetune demo idbooth . 2", told)
    assert re.search(r"figures\.dpi: \d+ -> 99\n    figures\n", told)
    assert told.count("->") == 2


def test_frozen_files_are_rewritten_only_when_their_content_changes(finished: Path) -> None:
    config = write_config(finished / "first.yaml", tables__intervals=True)
    target = "results/demo/config/tables.json"
    other = finished / "results" / "demo" / "config" / "align.json"
    before = other.stat().st_mtime_ns
    snakemake(finished, target, "--configfile", config)
    assert '"intervals": true' in (finished / target).read_text()
    assert other.stat().st_mtime_ns == before
    written = (finished / target).stat().st_mtime_ns
    output = snakemake(finished, target, "--configfile", config)
    assert "Nothing to be done" in output
    assert (finished / target).stat().st_mtime_ns == written


def test_a_mistake_in_the_configuration_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", finetune__rnak=4)
    result = run(tmp_path, "--configfile", config, "-n")
    assert result.returncode != 0
    told = result.stdout + result.stderr
    assert "unknown key 'finetune.rnak'; did you mean 'rank'?" in told
    assert 'File "' not in told  # no traceback


def test_a_mixed_training_set_and_template_sets_become_jobs(tmp_path: Path) -> None:
    (tmp_path / "data" / "ijb").mkdir(parents=True)
    config = write_config(
        tmp_path / "config.yaml",
        training_sets=["real+demo/idbooth/base"],
        template_sets=["data/ijb"],
        recognise__repetitions=2,
    )
    output = snakemake(tmp_path, "-n", "-p", "--configfile", config)
    counts = job_counts(output)
    assert (counts["recognise"], counts["verify"], counts["verify_templates"]) == (2, 2, 2)
    aligned = "results/demo/aligned/real results/demo/aligned/demo/idbooth/base --validation"
    assert output.count(f"--aligned {aligned}") == 2
    assert "recognition/real+demo-idbooth-base/seed1/templates.csv" in output


def test_images_of_made_up_people_are_made_from_their_anchors(tmp_path: Path) -> None:
    config = ROOT / "config" / "demo_made_up.yaml"
    nodes = snakemake(tmp_path, "--configfile", config, "--filegraph").split("shape=none")
    (sample,) = (node for node in nodes if '"18">sample<' in node)
    assert "invented/targets.safetensors" in sample


HOSTILE = "-a b'c\"d;touch x&&$(touch x)`touch x`|*?[e](f)~#%!\\\\<>e\u0301\U0001f600 "


def test_no_shell_sees_a_path_of_the_settings_unquoted(tmp_path: Path) -> None:
    for name in ("wild", "others", "ijb", "photos"):
        (tmp_path / f"{HOSTILE}{name}").mkdir()
    for name in ("photos.zip", "people.csv", "withdrawn.csv", "lfw.bin", "val.bin"):
        (tmp_path / f"{HOSTILE}{name}").write_text("")
    changes = {
        "prepare__sources": [f"{HOSTILE}photos", f"{HOSTILE}photos.zip"],
        "prepare__gender_table": f"{HOSTILE}people.csv",
        "prepare__withdrawn": f"{HOSTILE}withdrawn.csv",
        "in_the_wild": f"{HOSTILE}wild",
        "external_sets": {"others": f"{HOSTILE}others"},
        "template_sets": [f"{HOSTILE}ijb"],
        "benchmarks": [f"{HOSTILE}lfw.bin"],
        "recognise__validation": f"{HOSTILE}val.bin",
        "groups__by": ["age"],
    }
    config = write_config(tmp_path / "config.yaml", **changes)
    output = snakemake(tmp_path, "-n", "-p", "--configfile", config)
    commands = re.findall(r"^Shell command: (?:exec )?(python -m .*?) &> ", output, re.MULTILINE)
    assert len(commands) > 50
    # A real shell takes the commands apart, with a `python` that tells its arguments.
    script = ["python() { printf '%s\\n' \"$@\"; }", *commands]
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = {word for word in told.stdout.splitlines() if HOSTILE[:3] in word}
    assert seen == set(make_plan(yaml.safe_load(config.read_text()), "").put_in) | {
        f"./{HOSTILE}withdrawn.csv"
    }
    assert not (tmp_path / "x").exists()


def test_the_workflows_report_gathers_tables_figures_and_pages_with_captions(
    finished: Path,
) -> None:
    report = finished / "report.zip"
    snakemake(finished, "--configfile", finished / "config.yaml", "--report", report)
    with zipfile.ZipFile(report) as archive:
        names = [Path(name).name for name in archive.namelist()]
        page = "".join(
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".html")
        )
    expected = [f"{table}.csv" for table in ("quality", "identity", "recognition", "audit")]
    expected += [f"{figure}.svg" for figure in ("distributions", "samples", "pose", "attributes")]
    assert set(expected) <= set(names)
    assert names.count("report.html") >= 1
    assert names.count("base.html") == 3  # one audit per variant
    for caption in ("identity audit", "Tables of the study", "Figures of the study"):
        assert caption in page.replace("Identity audit of", "identity audit of")
