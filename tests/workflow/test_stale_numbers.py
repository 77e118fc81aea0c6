"""No number outlives what it was made from.

One thing of each kind is changed in a finished study, which then runs again; at the end all its
tables have to equal those of a study made from nothing with all the changes. Changes come in the
order of the workflow, and those of one stage together: what a change failed to make anew is then
never made anew for another one's sake, and stays to be found. That the hunt finds something is
shown by a dependency that is forgotten on purpose.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.workflow.small_study import CONFIG, snakemake, start, write_config

SMALLER = {
    "methods": ["idbooth"],
    "shares": 1,
    "score.quality.replicates": 5,
    "score.identity.replicates": 5,
}
WEIGHTS = "resources/demo_world"
WORLD = "data/demo_world"


def edited(path: str, before: str, after: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        text = (study / path).read_text("utf-8")
        assert text.count(before) == 1, f"{path}: {before!r}"
        (study / path).write_text(text.replace(before, after), "utf-8")

    return change


def setting(key: str, value: Any) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        config = yaml.safe_load((study / CONFIG).read_text("utf-8"))
        *parents, last = key.split(".")
        part = config
        for name in parents:
            part = part[name]
        assert part[last] != value
        part[last] = value
        (study / CONFIG).write_text(yaml.safe_dump(config), "utf-8")

    return change


def rewritten(archive: str, change: Callable[[dict[str, bytes]], None]) -> Callable[[Path], None]:
    """A change of an archive's files, name to bytes."""

    def of(study: Path) -> None:
        with zipfile.ZipFile(study / archive) as opened:
            files = {name: opened.read(name) for name in opened.namelist()}
        change(files)
        with zipfile.ZipFile(study / archive, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)

    return of


def darken_a_photograph(files: dict[str, bytes]) -> None:
    name = next(name for name in files if name.endswith("_1_4.jpg"))
    stream = io.BytesIO()
    Image.open(io.BytesIO(files[name])).point(lambda value: value * 0.7).save(stream, "JPEG")
    files[name] = stream.getvalue()


def remove_an_image(files: dict[str, bytes]) -> None:
    del files[max(name for name in files if not name.endswith("/"))]


def replaced_benchmark(study: Path) -> None:
    folder = study / WORLD / "benchmarks"
    shutil.copyfile(folder / "age_gap.bin", folder / "plain.bin")


def replaced_weights(entry: str) -> Callable[[Path], None]:
    """A change of an unpinned entry's tensors, in place."""

    def change(study: Path) -> None:
        path = study / WEIGHTS / entry / "model.safetensors"
        tensors = load_file(path)
        moved = {k: v * 1.02 if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(moved, path)

    return change


def without_pins(*entries: str) -> Callable[[Path], None]:
    def change(study: Path) -> None:
        path = study / "config" / "models.yaml"
        models = yaml.safe_load(path.read_text("utf-8"))
        for entry in entries:
            models[entry]["sha256"] = {}
        path.write_text(yaml.safe_dump(models), "utf-8")

    return change


# Stages, each of kind to change.
STAGES: dict[str, dict[str, Callable[[Path], None]]] = {
    "photographs": {
        "a photograph in an archive": rewritten(
            f"{WORLD}/tfd/TD_RGB_A_Set1.zip", darken_a_photograph
        ),
        "an image less in the wild": rewritten(f"{WORLD}/in_the_wild.zip", remove_an_image),
        "a benchmark's file": replaced_benchmark,
        # Of the images, not of single faces: those are aligned in benchmarks, too, and the
        # photographs, rendered anew with them, would be as before.
        "the code of the alignment": edited(
            "pipeline_steps/identities/aligning.py",
            "png = encode_png(face)",
            "png = encode_png(face // 2 * 2)",
        ),
    },
    "training": {
        "a setting of the training": setting("finetune.learning_rate", 0.002),
        "the code of an objective": edited(
            "pipeline_steps/diffusion/objectives.py",
            "return (gap + margin).clamp(min=0.0)",
            "return (gap + margin).clamp(min=0.0) * 2.0",
        ),
    },
    "sampling": {
        "a word of a prompt": edited("config/prompts/base.yaml", "close-up", "near"),
        "a setting of the sampling": setting("sample.guidance", 3.0),
    },
    "judging": {
        "the code of an extractor": edited(
            "pipeline_steps/faces/pose.py",
            "return np.degrees(parameters[:, :3])",
            "return np.degrees(parameters[:, :3]) + 5.0",
        ),
        "a judge's weights": replaced_weights("recogniser_b"),
        "an extractor's weights": replaced_weights("attributes"),
        "a setting of the recogniser": setting("recognise.margin", 0.2),
    },
    "evidence": {
        "the code of a metric": edited(
            "pipeline_steps/metrics/frechet.py",
            "return 0.0 if distance <= CANCELLED * traces else float(distance)",
            "return float(distance) + 1.0",
        ),
        "a setting of a score": setting("score.quality.k", 2),
        "a setting of the audit": setting("audit.fmr", 0.01),
        "the code of a protocol": edited(
            "pipeline_steps/recognition/protocol.py",
            "return embeddings / norms",
            "return np.abs(embeddings) / norms",
        ),
        "a label": setting("tables.labels", {"real": "Photographs"}),
    },
}


def study_in(finished_study: Path, folder: Path, *, made: bool) -> Path:
    """The finished study with weights that may be changed; only its photographs, unless made."""
    left_out = () if made else ("results", ".snakemake")
    shutil.copytree(finished_study, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    resources = folder / "resources"
    source = resources.resolve()
    resources.unlink()
    shutil.copytree(source, resources, ignore=shutil.ignore_patterns("pretraining"))
    without_pins("demo_recogniser_b", "demo_attributes", "demo_prompts")(folder)
    write_config(folder, SMALLER)
    for path in folder.glob("results/demo/*/*/demo/untuned"):
        shutil.rmtree(path)  # of a method that the smaller study has not
    return folder


def numbers(study: Path) -> dict[str, bytes]:
    """Path to content of all tables and scores."""
    results = study / "results" / "demo"
    paths = [*(results / "tables").rglob("*"), *(results / "scores").rglob("*.csv")]
    return {
        path.relative_to(results).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and path.suffix in {".csv", ".md", ".tex"}
    }


@pytest.mark.slow
def test_after_changes_of_every_kind_all_tables_equal_those_of_a_study_from_nothing(
    finished_study: Path, tmp_path: Path
) -> None:
    study = study_in(finished_study, tmp_path / "changed", made=True)
    told = numbers(study)
    for stage, changes in STAGES.items():
        for change in changes.values():
            change(study)
        snakemake(study, "tables")
        before, told = told, numbers(study)
        assert told != before, f"{stage}: no number changed"

    anew = study_in(finished_study, tmp_path / "anew", made=False)
    for changes in STAGES.values():
        for change in changes.values():
            change(anew)
    snakemake(anew, "tables")
    assert stale(told, numbers(anew)) == []


def stale(told: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Files whose numbers are not those that they should be, and files that are not in both."""
    return sorted(
        name for name in told.keys() | expected.keys() if told.get(name) != expected.get(name)
    )


QUALITY = "scores/quality/demo/idbooth/base.csv"


@pytest.mark.slow
def test_the_hunt_finds_what_a_forgotten_dependency_leaves_stale(
    finished_study: Path, tmp_path: Path
) -> None:
    forget = edited("pipeline_steps/study/code.py", '"study")', '"study", "metrics")')
    change = STAGES["evidence"]["the code of a metric"]
    told = []
    for name, steps in ("changed", [[forget], [change]]), ("anew", [[forget, change]]):
        study = Path(shutil.copytree(finished_study, tmp_path / name, symlinks=True))
        for changes in steps:
            for one in changes:
                one(study)
            snakemake(study, f"results/demo/{QUALITY}")
        told.append(numbers(study))
    assert stale(*told) == [QUALITY]


@pytest.mark.slow
def test_an_upgrade_runs_nothing_again_and_what_mixes_two_versions_comes_into_no_table(
    finished_study: Path, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(finished_study, tmp_path / "study", symlinks=True))
    tables = "results/demo/tables/quality.csv"
    before = numbers(study)
    upgrade = edited(
        "pipeline_steps/study/versions.py",
        "cache(version)",
        "cache(lambda name: f'{version(name)}.later')",
    )
    upgrade(study)
    assert "Nothing to be done" in snakemake(study, "-n")
    (study / "results/demo" / QUALITY).unlink()
    job = start(study, f"results/demo/{QUALITY}", tables)
    job.communicate()
    assert job.returncode != 0
    told = (study / "results/demo/logs/tables.log").read_text("utf-8")
    assert re.search(r"two versions of \w+ in score .* and .*\.later \(score; behind ", told)
    setting("tables.allow_mixed_versions", True)(study)
    snakemake(study, tables)
    assert stale(numbers(study), before) == []
