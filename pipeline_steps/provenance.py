"""Write down what a study's results came from, and what they cost.

In:  the study's frozen configurations (--configs), the folder of the files in which the workflow
     noted each job's time and memory (--benchmarks), that of the jobs' logs (--logs), the names of
     which the study's jobs are (--names), and the files that were put in: archives, folders,
     benchmark sets (--sources).
Out: provenance.json with
     code       git revision and whether files were changed since; None outside a repository
     versions   Python, and every installed package
     hardware   processor, cores and memory of the machine that wrote this file
     machines   the machines and GPUs that jobs ran on, with the number of jobs of each step
     config     every frozen configuration with its SHA-256
     weights    per registry entry: source, revision, licence, SHA-256 of every file found
     sources    SHA-256 of files; of folders that of their files' names and contents
     steps      jobs, wall seconds, processor seconds, seconds with a GPU and largest memory per
                step

Times are those that the workflow measured around each job. A job that found its results finished
measured only that; so the sum of reruns may be less than what a study from scratch takes. Processor
seconds and memory are the larger of what the workflow measured and what the job told of itself: the
one knows nothing of a fork of another process, the other of children that nobody waited for.
"""

from __future__ import annotations

import csv
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import folder_listing, remembered_sha256, sha256_json
from pipeline_steps.io.weights import PROJECT_ROOT, Weights, content_hashes, placed
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import JobLog, get_logger, this_machine
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import validated

NUMBERS = {"wall_seconds": "s", "processor_seconds": "cpu_time", "memory_mib": "max_rss"}


def run(
    *,
    configs: Sequence[Path],
    benchmarks: Path,
    logs: Path,
    sources: Sequence[Path],
    out: Path,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect everything and write it.

    Args:
        configs: Frozen configurations.
        benchmarks: Folder of the workflow's benchmark files.
        logs: Folder of the jobs' logs, laid out as the benchmark files are.
        sources: Files and folders that were put in.
        out: JSON file to write.
        names: Those in the paths of the study's jobs; notes of others, of methods or shares that it
            has no longer, count as nothing. Empty: all jobs count.

    Returns:
        What was written.

    Raises:
        StepError: a configuration or a source is missing, or configurations are of two studies.
    """
    frozen = frozen_configs(configs)
    content = {
        "study": study_name(frozen),
        "code": git_state(PROJECT_ROOT),
        "versions": versions(),
        "hardware": this_machine(),
        "machines": machines(benchmarks, logs, names),
        "config": frozen,
        "weights": weights(frozen),
        "sources": {str(path): source_hash(path) for path in sources},
        "steps": steps(benchmarks, logs, names),
    }
    write_json(out, content)
    get_logger("provenance").info("%d configurations: %s", len(frozen), out)
    return content


def frozen_configs(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Path of every frozen configuration to its hash and content."""
    found = {}
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise StepError(f"configuration {path} cannot be read: {error}") from error
        found[str(path)] = {"sha256": sha256_json(content), "content": content}
    return found


def study_name(configs: dict[str, dict[str, Any]]) -> str:
    """The one study that the configurations are of; the rendered world belongs to any."""
    contents = [config["content"] for config in configs.values()]
    names = {item["study"] for item in contents if item["step"] != "render_demo_world"}
    if len(names) != 1:
        raise StepError(f"configurations of {sorted(names)}; pass those of one study")
    return str(names.pop())


def weights(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per registry entry in use, components included: source, licence and hashes of its files."""
    entries: dict[str, Weights] = {}
    for path, config in configs.items():
        for role, raw in config["content"]["weights"].items():
            whole = validated(Weights, placed(raw), f"{path}: weights.{role}")
            for entry in whole.with_components():
                entries.setdefault(entry.name, entry)
    return {
        name: {
            "source": entry.source,
            "revision": entry.revision,
            "licence": entry.licence,
            "commercial_use": entry.commercial_use,
            "sha256": _hashes(entry),
        }
        for name, entry in entries.items()
    }


def source_hash(path: Path) -> dict[str, Any]:
    """SHA-256 of a file, or of the names and contents of a folder's files, with the size in bytes.

    Raises:
        StepError: nothing is there.
    """
    if path.is_file():
        return {"kind": "file", "bytes": path.stat().st_size, "sha256": remembered_sha256(path)}
    if not path.is_dir():
        raise StepError(f"source {path} is missing")
    return {"kind": "folder", **folder_listing(path)}


def jobs(
    benchmarks: Path, logs: Path, names: Sequence[str] = ()
) -> Iterator[tuple[str, Path, JobLog]]:
    """Step, benchmark file and log of each job; see `run` for names.

    A benchmark file lies at ``<step>.tsv`` or ``<step>/<variant>.tsv``, the log of the same job at
    the same place in its own folder.
    """
    for path in sorted(benchmarks.rglob("*.tsv")):
        name = path.relative_to(benchmarks)
        if names and not {Path(part).stem for part in name.parts} <= {*names}:
            continue
        log = JobLog.read(logs / name.with_suffix(".log"))
        yield name.parts[0].removesuffix(".tsv"), path, log


def machines(benchmarks: Path, logs: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The different machines and GPUs that jobs told in their logs, with jobs per step."""
    found: dict[str, dict[str, Any]] = {}
    for step, _, log in jobs(benchmarks, logs, names):
        if (machine := log.machine) is not None:
            entry = found.setdefault(sha256_json(machine), machine | {"jobs": {}})
            entry["jobs"][step] = entry["jobs"].get(step, 0) + 1
    return [found[key] for key in sorted(found)]


def steps(benchmarks: Path, logs: Path, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Jobs, summed times and largest memory per step, from benchmark files and logs.

    Unmeasured values ("NA", "-") count as nothing. A job has one GPU, or none.
    """
    found: dict[str, dict[str, float]] = {}
    for step, path, log in jobs(benchmarks, logs, names):
        none = {"jobs": 0, **dict.fromkeys(NUMBERS, 0.0), "gpu_seconds": 0.0}
        entry = found.setdefault(step, none)
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                entry["jobs"] += 1
                for name, column in NUMBERS.items():
                    value = max(_number(row.get(column)), log.used.get(name, 0.0))
                    if name == "memory_mib":
                        entry[name] = max(entry[name], value)
                    else:
                        entry[name] = round(entry[name] + value, 2)
                if log.machine is not None and log.machine["gpu"]:
                    seconds = entry["gpu_seconds"] + _number(row.get("s"))
                    entry["gpu_seconds"] = round(seconds, 2)
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Revision of the repository a folder is in, and whether tracked files differ from it."""
    program = shutil.which("git")
    if program is None:
        return None
    command = [program, "-C", str(folder)]
    revision = subprocess.run(
        [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if revision.returncode != 0:
        return None
    changed = subprocess.run(
        [*command, "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    files = [line[3:] for line in changed.stdout.splitlines()]
    return {"revision": revision.stdout.strip(), "changed_files": files}


def versions() -> dict[str, str]:
    """Python and every installed package."""
    packages = {item.metadata["Name"]: item.version for item in distributions()}
    return {"python": platform.python_version()} | dict(sorted(packages.items()))


def _hashes(entry: Weights) -> dict[str, str]:
    """Hashes of an entry's files as they lie here; the pinned ones where none lie here."""
    try:
        return content_hashes(entry)
    except StepError:
        return dict(entry.sha256)


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
