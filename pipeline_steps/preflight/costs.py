"""What a study still costs: GPU-hours and disk, rule by rule, and where the numbers come from."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.preflight.amounts import amounts_of, disk, units
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan

STEP_TIMES = Path(__file__).with_name("step_times.yaml")
ON_A_CARD = frozenset(
    {"prepare", "embed", "prior", "finetune", "sample", "recognise", "verify", "features"}
    | {"verify_templates"}
    | {"features_of_reference", "align", "align_photographs", "align_in_the_wild"}
)

# Where the workflow notes the times of a rule's jobs, below benchmarks/, if not under its own name.
BENCHMARKS = {
    "align_photographs": ("align/real.tsv",),
    "align_in_the_wild": ("align/wild.tsv",),
    "align": ("align/*/*/*.tsv",),
    "features_of_reference": ("features/real/*.tsv", "features/wild/*.tsv"),
    "features": ("features/*/*/*.tsv",),
    "score_identity": ("score/identity/*/*/*.tsv",),
    "score_references": ("score/*/reference.tsv",),
    "score": ("score/quality/*/*/*.tsv", "score/pose/*/*/*.tsv"),
}


@dataclass(frozen=True)
class Cost:
    """What one rule still costs.

    Attributes:
        rule: its name.
        jobs, done: all jobs, and those whose results are there.
        hours: GPU-hours left, low and high; None where nobody knows, zeros without a GPU.
        measured: whether the hours follow from this study's finished jobs.
        disk: bytes of the results of all jobs.
    """

    rule: str
    jobs: int
    done: int
    hours: tuple[float, float] | None
    measured: bool
    disk: float

    @property
    def disk_left(self) -> float:
        """Bytes that are still to be written."""
        return self.disk * (self.jobs - self.done) / self.jobs


@dataclass(frozen=True)
class Costs:
    """Costs of a study.

    Attributes:
        rules: one by one, in the order of the workflow.
        people: identities of the study.
        basis: where the counts come from.
        hardware, source: of the step times.
    """

    rules: tuple[Cost, ...]
    people: int
    basis: str
    hardware: str
    source: str

    @property
    def jobs(self) -> int:
        """All jobs, with the last one, which has no work."""
        return sum(cost.jobs for cost in self.rules) + 1

    @property
    def disk_left(self) -> float:
        """Bytes that are still to be written."""
        return sum(cost.disk_left for cost in self.rules)

    @property
    def hours(self) -> tuple[float, float]:
        """GPU-hours left, low and high, of the rules of which they are known."""
        known = [cost.hours for cost in self.rules if cost.hours is not None]
        return sum(low for low, _ in known), sum(high for _, high in known)


def costs_of(plan: Plan, root: Path = Path(), step_times: Path = STEP_TIMES) -> Costs:
    """Costs of a study.

    Args:
        plan: the study.
        root: the working folder.
        step_times: seconds per unit of work, as the file of this package.

    Raises:
        StepError: the step times cannot be read.
    """
    times = read_step_times(step_times)
    amounts = amounts_of(plan, root)
    work, bytes_of = units(plan, amounts), disk(plan, amounts)
    rows = []
    for rule, outputs in plan.jobs.items():
        finished = sum((root / path).is_file() for path in outputs)
        left = len(outputs) - finished
        mean = measured_seconds(root / plan.results / "benchmarks", rule)
        hours: tuple[float, float] | None = (0.0, 0.0)
        if rule in ON_A_CARD and left:
            if mean is not None:
                hours = (left * mean / 3600, left * mean / 3600)
            else:
                hours = _estimated(work.get(rule, {}), times, left / len(outputs))
        known = mean is not None and rule in ON_A_CARD
        rows.append(
            Cost(rule, len(outputs), finished, hours, known, float(bytes_of.get(rule, 0.0)))
        )
    return Costs(
        tuple(rows), amounts.people, amounts.basis, str(times["hardware"]), str(times["source"])
    )


def read_step_times(path: Path) -> dict[str, Any]:
    """Seconds per unit of work.

    Raises:
        StepError: the file is missing or no such table.
    """
    times = read_mapping(path, "step times")
    if not {"hardware", "source"} <= set(times):
        raise StepError(f"step times {path}: expected hardware, source, and seconds per step")
    return times


def measured_seconds(benchmarks: Path, rule: str) -> float | None:
    """Mean wall seconds of a rule's finished jobs; None where there are none."""
    patterns = BENCHMARKS.get(rule, (f"{rule}.tsv", f"{rule}/**/*.tsv"))
    seconds = []
    for pattern in patterns:
        for path in benchmarks.glob(pattern):
            with path.open(newline="", encoding="utf-8") as stream:
                seconds += [float(row["s"]) for row in csv.DictReader(stream, delimiter="\t")]
    return sum(seconds) / len(seconds) if seconds else None


def _estimated(
    work: Mapping[str, float], times: Mapping[str, Any], share: float
) -> tuple[float, float] | None:
    """Hours of a share of the work; None where the seconds of a kind are not known."""
    low = high = 0.0
    for kind, amount in work.items():
        name, _, model = kind.partition(":")
        seconds = times.get(name, {}).get("seconds")
        if model and isinstance(seconds, Mapping):
            seconds = seconds.get(model)
        if not isinstance(seconds, list):
            return None
        low += amount * share * float(seconds[0]) / 3600
        high += amount * share * float(seconds[1]) / 3600
    return (low, high) if work else (0.0, 0.0)
