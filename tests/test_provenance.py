from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline_steps import provenance
from pipeline_steps.io.atomic import write_json, write_text
from pipeline_steps.io.hashes import sha256_bytes, sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import JobLog, tell_machine, tell_usage, this_machine
from pipeline_steps.runtime.run_lock import VARIABLE

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def config(folder: Path, name: str, study: str = "s", **weights: Any) -> Path:
    path = folder / f"{name}.json"
    content = {"study": study, "step": name, "seed": 0, "settings": {}, "variant": {}}
    write_json(path, content | {"weights": weights})
    return path


def entry(source: Path, name: str = "net") -> dict[str, Any]:
    return {
        "name": name,
        "task": "recogniser",
        "architecture": "iresnet",
        "source": str(source),
        "licence": "MIT",
        "commercial_use": True,
    }


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"weights")
    archive = tmp_path / "set1.zip"
    archive.write_bytes(b"abc")
    benchmarks = tmp_path / "benchmarks"
    for share, numbers in (("0", "10.5\t0:00:10\t700"), ("1", "20.25\t0:00:20\t900.5")):
        row = f"{numbers}\t-\t-\t-\t-\t-\t95.0\t9.5\n"
        write_text(benchmarks / "finetune" / "demo" / f"{share}.tsv", HEADER + row)
    write_text(benchmarks / "prepare.tsv", HEADER + "1.5\t0:00:01\tNA\t-\t-\t-\t-\t-\tNA\tNA\n")
    logs = tmp_path / "logs"
    machine = {"processor": "P", "cores": 4}
    for share, gpu in (("0", "2026-01-01 00:00:00 INFO lease computes on NVIDIA X\n"), ("1", "")):
        text = f"machine: {json.dumps(machine)}\n{gpu}"
        write_text(logs / "finetune" / "demo" / f"{share}.log", text)
    provenance.run(
        logs=logs,
        configs=[
            config(tmp_path, "prepare"),
            config(
                tmp_path,
                "embed",
                recogniser=entry(weights) | {"components": {"part": entry(weights, "part")}},
            ),
            config(tmp_path, "render_demo_world", study="demo_world"),
        ],
        benchmarks=benchmarks,
        sources=[archive],
        out=tmp_path / "provenance.json",
    )
    content: dict[str, Any] = json.loads((tmp_path / "provenance.json").read_text())
    return content


def test_times_are_summed_and_memory_is_the_largest(written: dict[str, Any]) -> None:
    assert written["steps"]["finetune"] == {
        "jobs": 2,
        "wall_seconds": 30.75,
        "processor_seconds": 19.0,
        "memory_mib": 900.5,
        "gpu_seconds": 10.5,
    }
    assert written["steps"]["prepare"]["wall_seconds"] == 1.5
    assert written["steps"]["prepare"]["memory_mib"] == 0.0


def test_machines_are_told_job_by_job(written: dict[str, Any]) -> None:
    machine = {"processor": "P", "cores": 4, "jobs": {"finetune": 1}}
    told = sorted(written["machines"], key=lambda entry: str(entry["gpu"]))
    assert told == [machine | {"gpu": "NVIDIA X"}, machine | {"gpu": None}]


def test_a_job_of_a_workflow_tells_its_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tell_machine()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(VARIABLE, "token:")
    tell_machine()
    log = tmp_path / "job.log"
    log.write_text(f"a line before\n{capsys.readouterr().err}a line after\n")
    assert JobLog.read(log).machine == this_machine() | {"gpu": None}
    assert JobLog.read(tmp_path / "absent.log") == JobLog(None, {})


def test_jobs_that_the_study_has_no_longer_count_as_nothing(tmp_path: Path) -> None:
    for name in ("finetune/demo/idbooth/0-of-2", "finetune/demo/idbooth/0-of-1", "invent"):
        write_text(tmp_path / f"{name}.tsv", HEADER + "1.5\t0:00:01\t14.8\t-\t-\t-\t-\t-\t0\t1\n")
    names = ["finetune", "demo", "idbooth", "0-of-2", "1-of-2"]
    found = provenance.steps(tmp_path, tmp_path / "logs", names)
    assert {step: numbers["jobs"] for step, numbers in found.items()} == {"finetune": 1}
    assert provenance.steps(tmp_path, tmp_path / "logs").keys() == {"finetune", "invent"}


def test_what_a_fork_used_counts_though_its_caller_measured_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "token:")
    tell_usage()
    told = capsys.readouterr().err
    write_text(tmp_path / "logs" / "embed.log", f"a line before\n{told}")
    row = "12.5\t0:00:12\t14.8\t-\t-\t-\t-\t-\t0.0\t0.01\n"
    write_text(tmp_path / "benchmarks" / "embed.tsv", HEADER + row)
    found = provenance.steps(tmp_path / "benchmarks", tmp_path / "logs")["embed"]
    used = JobLog.read(tmp_path / "logs" / "embed.log").used
    assert found["processor_seconds"] == used["processor_seconds"] > 0.01  # this process's own
    assert found["memory_mib"] == used["memory_mib"] > 14.8
    assert found["wall_seconds"] == 12.5


def test_inputs_and_weights_are_named_by_hash(written: dict[str, Any]) -> None:
    (source,) = written["sources"].values()
    assert source == {"kind": "file", "bytes": 3, "sha256": sha256_bytes(b"abc")}
    assert written["weights"]["net"]["sha256"] == {
        "net.safetensors": sha256_bytes(b"weights"),
        "part:net.safetensors": sha256_bytes(b"weights"),
    }
    assert written["weights"]["net"]["licence"] == "MIT"
    assert written["weights"]["part"]["licence"] == "MIT"


def test_study_versions_and_hardware_are_there(written: dict[str, Any]) -> None:
    assert written["study"] == "s"
    assert written["versions"]["snakemake"]
    assert written["hardware"]["cores"] >= 1
    assert written["hardware"]["memory_mib"] > 100
    assert len(written["config"]) == 3


def test_a_folder_is_told_apart_by_its_listing(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    write_text(folder / "ID_1" / "a.jpg", "a")
    before = provenance.source_hash(folder)
    assert (before["kind"], before["files"], before["bytes"]) == ("folder", 1, 1)
    assert provenance.source_hash(folder) == before
    write_text(folder / "ID_2" / "a.jpg", "a")
    assert provenance.source_hash(folder)["sha256"] != before["sha256"]


def test_git_state_tells_revision_and_changes(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "code.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True)
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert len(state["revision"]) == 40
    assert state["changed_files"] == []
    (tmp_path / "code.py").write_text("2")
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert state["changed_files"] == ["code.py"]


def test_mixed_studies_missing_sources_and_configurations_are_errors(tmp_path: Path) -> None:
    mixed = [config(tmp_path, "a", study="one"), config(tmp_path, "b", study="two")]
    with pytest.raises(StepError, match="one study"):
        provenance.run(
            configs=mixed, benchmarks=tmp_path, logs=tmp_path, sources=[], out=tmp_path / "p"
        )
    with pytest.raises(StepError, match=r"absent\.zip is missing"):
        provenance.source_hash(tmp_path / "absent.zip")
    with pytest.raises(StepError, match="cannot be read"):
        provenance.frozen_configs([tmp_path / "absent.json"])


def test_command_line(tmp_path: Path) -> None:
    source = tmp_path / "bench.bin"
    source.write_bytes(b"1")
    flags = ["--configs", str(config(tmp_path, "prepare")), "--benchmarks", str(tmp_path)]
    flags += ["--logs", str(tmp_path)]
    out = tmp_path / "provenance.json"
    assert provenance.main([*flags, "--sources", str(source), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["sources"][str(source)]["sha256"] == sha256_file(source)
