"""Which steps run again, and why: contents decide, and what changed is said in words.

Snakemake looks at times first, and at contents only of small files. Here contents decide at every
size. The matrix of what a user can change against the steps that run again then follows from the
frozen configurations, from the code behind each step, and from the workflow's own graph of jobs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import reprlib
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.hashes import remembered_sha256
from pipeline_steps.io.weights import PROJECT_ROOT, Weights, placed
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.code import modules_behind
from pipeline_steps.study.freeze import code_behind
from pipeline_steps.study.generate import HIDDEN
from pipeline_steps.study.plan import Plan, is_rendered
from pipeline_steps.study.settings.base import Section, choices, validated
from pipeline_steps.study.settings.study import merged, read_study
from pipeline_steps.study.snapshot import KEPT, LISTINGS, noted_contents


def compare_contents(plan: Plan) -> None:
    """Let Snakemake's main process compare files of any size by content, each read once only.

    Of files that come from outside the content is that of the run's beginning, and new since this
    project noted it: a file may be replaced by an older one, or while it is being read.
    """
    from snakemake.io import _IOFile

    noted, newer = noted_contents(plan), _IOFile.is_newer

    async def is_newer(file: Any, time: float) -> bool:
        since, _ = noted.get(str(file.file), (0.0, ""))
        return since > time or bool(await newer(file, time))

    async def eligible(file: Any, threshold: int) -> bool:
        return Path(file.file).is_file()

    async def checksum(
        file: Any, threshold: int | None = None, force: bool = False, algorithm: object = None
    ) -> str | None:
        path = str(file.file)
        if not Path(path).is_file():
            return None
        return f"sha256:{noted[path][1] if path in noted else remembered_sha256(path)}"

    _IOFile.is_newer = is_newer
    _IOFile.is_checksum_eligible = eligible
    _IOFile.checksum = checksum


def tell_reasons(workflow: Any, plan: Plan) -> None:
    """At the end of a dry run say what changed since the results were made.

    Args:
        workflow: Snakemake's, in its main process.
        plan: The study.
    """

    root = Path.cwd()

    def tell() -> None:
        if workflow.dryrun and getattr(workflow, "_dag", None) is not None:
            with contextlib.chdir(root):
                lines = list(reasons(workflow.dag, workflow.persistence, plan))
            if lines:
                print("", "What changed:", *lines, sep="\n", file=sys.stderr)

    atexit.register(tell)


def reasons(dag: Any, persistence: Any, plan: Plan) -> Iterator[str]:
    """Each change, and the jobs that run again for it; jobs that merely follow are left out.

    Args:
        dag, persistence: Snakemake's graph of jobs, and its notes on earlier ones.
        plan: The study.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for job in dag.needrun_jobs(exclude_finished=False):
        if job.rule.name in ("freeze", "all") or not persistence.has_metadata(job):
            continue
        label = " ".join([job.rule.name, *map(str, job.wildcards)])
        for change in _changes_of(job, dag.reason(job), persistence, plan):
            found[change].append(label)
    for change, readers in found.items():
        jobs = [job for job in readers if job != "provenance"] or readers  # that reads everything
        yield f"  {change}"
        yield f"    {', '.join(jobs[:3])}{f' and {len(jobs) - 3} more' if jobs[3:] else ''}"


def _changes_of(job: Any, reason: Any, persistence: Any, plan: Plan) -> Iterator[str]:
    """What changed of what one job itself reads and writes."""
    for path in map(str, job.input):
        if path in plan.frozen:
            noted = persistence.input_checksums(job, path)
            digests = [str(digest).removeprefix("sha256:") for digest in noted]
            kept = KEPT / f"{digests[0]}.json"
            if len(digests) == 1 and kept.is_file():
                before = json.loads(kept.read_text(encoding="utf-8"))
                yield from differences(before, json.loads(plan.frozen[path]), before["step"])
    for file in map(str, reason.updated_input or ()):
        if file not in plan.frozen:
            listing = Path(file).parent == LISTINGS
            of = json.loads(Path(file).read_text(encoding="utf-8"))["folder"] if listing else file
            yield f"{of}: other content"
    if reason.missing_output and not reason.updated_input_run:
        yield "results were removed"
    if reason.input_changed or reason.params_changed:
        yield "other files or folders go in"
    if reason.forced:
        yield "asked for"
    if reason.incomplete_output:
        yield "was interrupted"


def differences(before: Any, now: Any, name: str) -> Iterator[str]:
    """``key: old -> new`` of all that differs between two JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = name if key == "settings" else f"{name}.{key}"
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        if name.endswith(".code"):
            yield f"code of {name.removesuffix('.code')}"
        else:
            yield f"{name}: {reprlib.repr(before)} -> {reprlib.repr(now)}"


Graph = dict[str, tuple[str, tuple[str, ...]]]


def job_graph(plan: Plan, config: Mapping[str, Any]) -> Graph:
    """All jobs of a study, by a dry run of the workflow on empty stand-ins for its data.

    Args:
        plan: The study.
        config: Its configuration.

    Returns:
        Number of a job to its rule, or the frozen configuration that it writes, and to the numbers
        of the jobs that read what it makes.

    Raises:
        StepError: the dry run failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in plan.put_in:
            if not is_rendered(path) and not Path(path).is_absolute():
                write_text(folder / path, "")
        write_text(folder / "study.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        program = Path(sys.executable).with_name("snakemake")
        place: list[str | Path] = [
            *("--snakefile", PROJECT_ROOT / "Snakefile"),
            *("--directory", folder),
        ]
        result = subprocess.run(
            [program, "--dag", *place, "--configfile", folder / "study.yaml"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise StepError(f"the dry run failed: {(result.stdout + result.stderr)[-2000:]}")
    labels = dict(re.findall(r'(\d+)\[label = "(.*?)"', result.stdout))
    readers: dict[str, list[str]] = defaultdict(list)
    for one, other in re.findall(r"(\d+) -> (\d+)", result.stdout):
        readers[one].append(other)
    names = {
        number: label.partition("frozen: ")[2] or label.partition("\\n")[0]
        for number, label in labels.items()
    }
    return {number: (name, tuple(readers[number])) for number, name in names.items()}


def run_again(graph: Graph, changed: Iterable[str]) -> list[str]:
    """Rules of the jobs that run again when some rules or frozen configurations are others."""
    wanted = set(changed)
    waiting = [number for number, (name, _) in graph.items() if name in wanted]
    seen: set[str] = set()
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            waiting += graph[number][1]
    rules = dict.fromkeys(name for name, _ in graph.values() if not name.endswith(".json"))
    again = {graph[number][0] for number in seen}
    return [rule for rule in rules if rule in again and rule != "all"]


def matrix(plan: Plan, config: Mapping[str, Any]) -> dict[str, list[str] | None]:
    """What a user can change, to the rules of the jobs that run again.

    Args:
        plan: The study.
        config: Its configuration.

    Returns:
        None where the change asks for other jobs or files.

    Raises:
        StepError: the workflow's dry run failed.
    """
    graph, study = job_graph(plan, config), plan.study

    def differing(other: Plan, *rules: str) -> list[str]:
        changed = [path for path, text in plan.frozen.items() if other.frozen[path] != text]
        return run_again(graph, [*changed, *rules])

    rows: dict[str, list[str] | None] = {}
    for key, other in _other_studies(plan, type(study), config):
        same = (other.jobs, other.put_in) == (plan.jobs, plan.put_in)
        rows[f"setting {key}"] = differing(other) if same else None
    reading, behind = defaultdict(set), defaultdict(set)
    for path, text in plan.frozen.items():
        frozen = json.loads(text)
        for entry in frozen["weights"].values():
            for part in validated(Weights, placed(entry), path).with_components():
                reading[part.name].add(path)
        for module in modules_behind(*code_behind(frozen)):
            behind[module].add(path)
    rows |= {f"weights {name}": run_again(graph, reading[name]) for name in sorted(reading)}
    for what, paths, rule in (
        ("photographs", plan.photographs, "prepare"),
        ("images in the wild", [study.in_the_wild], "align_in_the_wild"),
        ("external sets", [*study.external_sets.values()], "align_external"),
        ("benchmarks", study.benchmarks, "verify"),
        ("the validation's pairs", [study.validation], "recognise"),
        ("sets of templates", study.template_sets, "verify_templates"),
    ):
        if paths:
            rows[f"content of {what}"] = run_again(graph, [rule, "provenance"])
    rows |= {f"code {module}": run_again(graph, behind[module]) for module in sorted(behind)}
    others = {
        name: entry.model_copy(update={"licence": "other"}) for name, entry in plan.models.items()
    }
    for name, prompt_set in plan.prompt_sets.items():
        word = {name: prompt_set.model_copy(update={"template": f"{prompt_set.template} x"})}
        rows[f"a word of prompt set {name}"] = differing(
            Plan(study, plan.models, plan.prompt_sets | word)
        )
    rows["licence texts"] = differing(Plan(study, others, plan.prompt_sets), "provenance")
    return rows | {what: [] for what in WITHOUT_EFFECT}


WITHOUT_EFFECT = (
    "comments, docstrings, annotations and texts of messages",
    "code runtime, study",
    "versions of Python and of libraries",
    "times of files of any size",
    "place of the project's folder",
    "cores, cards, memory, profile",
)


def _other_studies(
    plan: Plan, model: type[Section], config: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Plan]]:
    """Each setting with a study in which it alone has another value, as far as one is found."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in HIDDEN:
            continue
        value: Any = plan.study
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, Section):
            yield from _other_studies(plan, type(value), config, f"{key}.")
            continue
        for other in _other_values(value, [*choices(field.annotation), *plan.models]):
            changed: dict[str, Any] = {name: other}
            for part in reversed(prefix.split(".")[:-1]):
                changed = {part: changed}
            try:
                study = read_study(merged(config, changed), key)
                tried = Plan(study, plan.models, plan.prompt_sets)
                if study != plan.study and tried.frozen:
                    yield key, tried
                    break
            except (StepError, ValueError, KeyError):
                continue


def _other_values(value: Any, words: Sequence[Any]) -> list[Any]:
    """Values that a setting may have instead, the nearest first."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value - 1, value * 2, value * 0.9, value * 1.1]
    if isinstance(value, str):
        return [*words, f"{value}x", f"x{value}"]
    if isinstance(value, dict):
        return [{}, {"x": "x"}, {"x": 1}]
    if isinstance(value, (tuple, list)):
        *start, last = value or ("x",)
        others = [[*start, other] for other in _other_values(last, words)] if value else []
        return [*others, start, [*value, "x"]]
    return [*words, 1, 0.5, 2, "x", {}, [1, 1]]


def as_text(rows: Mapping[str, Sequence[str] | None]) -> str:
    """The matrix for people: a row for each change, a column for each rule."""
    rules = list(dict.fromkeys(rule for of in rows.values() for rule in of or ()))
    width = max(map(len, rows)) + 1
    lines = [f"{number:2} {rule}" for number, rule in enumerate(rules, start=1)]
    lines += ["", " " * width + " ".join(f"{number:2}" for number in range(1, len(rules) + 1))]
    for row, again in rows.items():
        marks = " ".join(" x" if rule in (again or ()) else " ." for rule in rules)
        lines.append(f"{row:{width}}{'other jobs or files' if again is None else marks}")
    return "\n".join(lines)
