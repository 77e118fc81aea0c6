"""Several shares as one SLURM job, by what the profile for SLURM offers in comments."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.slurm import properties, run, write_profile

RESULTS = Path("results/demo")
SHARES = range(2)


@dataclass(frozen=True)
class Grouped:
    """A project whose people were fine-tuned and sampled again, in groups.

    Attributes:
        project: Where the workflow ran.
        jobs: What SLURM says about the jobs it got, in turn.
    """

    project: Path
    jobs: list[dict[str, str]]


@pytest.fixture(scope="module")
def grouped(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Grouped:
    folder = tmp_path_factory.mktemp("groups")
    project = folder / "project"
    shutil.copytree(finished_study, project, symlinks=True)
    shutil.rmtree(project / RESULTS / "loras")
    shutil.rmtree(project / RESULTS / "samples/demo/idbooth")
    offered = ("set-resources", "groups", "group-components")
    profile = write_profile(folder / "profile", uncommented=offered)
    parts = [RESULTS / f"samples/demo/idbooth/base/shares/{k}-of-2.parquet" for k in SHARES]
    output = run(project, profile, *map(str, parts))
    return Grouped(project, [properties(n) for n in re.findall(r"SLURM jobid (\d+)", output)])


def test_shares_run_as_one_job_with_one_card(grouped: Grouped) -> None:
    tuning, sampling = grouped.jobs
    assert tuning["TresPerJob"] == "gres:gpu:a100:1"
    assert sampling["TresPerJob"] == "gres:gpu:1"
    for rule in ("finetune/demo/idbooth", "sample/demo/idbooth/base"):
        logs = [grouped.project / RESULTS / f"logs/{rule}/{k}-of-2.log" for k in SHARES]
        first, second = (re.findall(r"GPU (\S+)", log.read_text("utf-8")) for log in logs)
        assert first == second
        assert len(first) == 1


def test_a_job_gets_the_partition_of_its_rule_and_the_time_of_its_parts(grouped: Grouped) -> None:
    tuning, sampling = grouped.jobs
    assert (tuning["Partition"], tuning["TimeLimit"]) == ("gpu", "4-00:00:00")
    assert (sampling["Partition"], sampling["TimeLimit"]) == ("test", "1-00:00:00")


def test_results_are_those_of_single_jobs(grouped: Grouped, finished_study: Path) -> None:
    weights = sorted((finished_study / RESULTS / "loras").rglob("*.safetensors"))
    images = sorted((finished_study / RESULTS / "samples/demo/idbooth").rglob("*.png"))
    assert len(weights) == 4
    assert len(images) == 16
    for path in [*weights, *images]:
        ours = grouped.project / path.relative_to(finished_study)
        assert ours.read_bytes() == path.read_bytes()
