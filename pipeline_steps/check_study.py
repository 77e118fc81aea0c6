"""Say what a study needs, what it will cost, and what of it is missing, before it starts.

In:  a study's configuration; the working folder with its data, weights and earlier results.
Out: on standard output a table of all jobs with what is done, GPU-hours and disk; then everything
     that is missing, once, with source, size, licence and how to get it.
     The exit status is 0 where the study can start, 1 where something is missing, 2 where the
     configuration is wrong.

Nothing is downloaded or written, and no network is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from pipeline_steps.io.tables import aligned_columns
from pipeline_steps.preflight.costs import STEP_TIMES, Cost, Costs, costs_of
from pipeline_steps.preflight.data import Missing, missing_data, unfit_data
from pipeline_steps.preflight.needs import (
    gpu_memories,
    missing_disk,
    missing_licences,
    missing_models,
    missing_of,
    size_text,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import ExitStatus, command, run_main
from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.study import read_configs
from pipeline_steps.study.snapshot import listed
from pipeline_steps.study.versions import told, versions_behind


def run(
    *, study: Sequence[Path], profile: Path | None = None, step_times: Path = STEP_TIMES
) -> ExitStatus:
    """Check a study and say what was found.

    Args:
        study: Study configuration (YAML); of several the later ones win, key by key.
        profile: Workflow profile that it will run with, for a cluster.
        step_times: Seconds per unit of work (YAML).

    Raises:
        StepError: the configuration is wrong, or the step times cannot be read.
    """
    plan = make_plan(read_configs(study), ", ".join(map(str, study)))
    text, missing = page(plan, profile=profile, step_times=step_times)
    print(text, flush=True)
    return ExitStatus(bool(missing))


def page(
    plan: Plan,
    *,
    root: Path = Path(),
    profile: Path | None = None,
    step_times: Path = STEP_TIMES,
) -> tuple[str, list[Missing]]:
    """The page for the user, and what is missing in the working folder ``root``."""
    costs = costs_of(plan, root, step_times)
    missing = missing_of(plan, root=root, disk_left=costs.disk_left, profile=profile)
    executor = f"the profile {profile}" if profile else local_executor()
    made = [root / path for of in plan.jobs.values() for path in of if (root / path).is_file()]
    mixed = told({path: versions_behind(path) for path in made if path.suffix != ".html"})
    lines = [headline(plan, costs), "", *table(costs), "", *remarks(costs), executor]
    lines += [f"Cells will be empty: {line}." for line in impossible_numbers(plan, costs.people)]
    lines += [*filter(None, [mixed]), ""]
    return "\n".join(lines + listing(missing)), missing


def refuse_unready(plan: Plan, inputs: Iterable[str], root: Path = Path()) -> None:
    """Stop a run whose jobs would miss weights or a licence, or read data that are unfit; warn of
    little disk space.

    Args:
        plan: the study.
        inputs: files that the jobs to be run read; their configurations among them name weights.
        root: the working folder.

    Raises:
        StepError: naming each missing thing and how to get it.
    """
    read = set(map(str, inputs))
    configurations = read & plan.frozen.keys()
    names = {
        entry["name"]
        for path in configurations
        for entry in yaml.safe_load(plan.frozen[path])["weights"].values()
    }
    needed = [whole for name in names for whole in plan.models[name].with_components()]
    wanted = {entry.name for entry in needed}
    lacking = [item for item in missing_models(plan) if item.what.split()[1] in wanted]
    lacking += missing_licences(plan, needed)
    lacking += unfit_data(plan, root, [path for path in plan.put_in if listed(path) in read])
    # Disk is estimated, and for the whole study: a reason to look, none to refuse.
    for item in missing_disk(root, costs_of(plan, root).disk_left):
        print(f"warning: {item.what} (estimate for the whole study)", file=sys.stderr)
    if lacking:
        raise StepError(f"study {plan.study.name} cannot start. " + "\n".join(listing(lacking)))


def refuse_missing(plan: Plan, root: Path = Path()) -> None:
    """Stop a workflow, finished or not, whose study names data that are not there.

    Raises:
        StepError: naming each missing thing and how to get it.
    """
    lacking = missing_data(plan, root)
    if lacking:
        raise StepError(f"study {plan.study.name} cannot start. " + "\n".join(listing(lacking)))


def tell_empty_cells(plan: Plan) -> None:
    """At the end of a run: which rows of the study's tables lack numbers, and why."""
    from pipeline_steps.evidence.tables.kinds import empty_cells

    table = Path(plan.at("table", table="audit", ending="csv"))
    try:
        lines = empty_cells(table.parent) if table.is_file() else []
    except StepError as error:  # the study is finished all the same
        lines = [str(error)]
    if lines:
        print("warning: some cells of the tables are empty:", *lines, sep="\n  ", file=sys.stderr)


def headline(plan: Plan, costs: Costs) -> str:
    """What is studied."""
    study = plan.study
    return (
        f"Study {study.name}: {costs.people} people ({costs.basis}), "
        f"{' and '.join(study.base_models)}, {len(study.methods)} methods, "
        f"{len(study.prompt_sets)} prompt sets, {costs.jobs} jobs"
    )


def table(costs: Costs) -> list[str]:
    """A row for each step, and their sum."""
    rows = [("step", "jobs", "done", "GPU-hours left", "disk")]
    rows += [_row(cost) for cost in costs.rules]
    done = sum(cost.done for cost in costs.rules)
    disk = size_text(sum(cost.disk for cost in costs.rules))
    rows.append(("all", str(costs.jobs), str(done), _hours(costs.hours), disk))
    return aligned_columns(rows, right=True)


def _row(cost: Cost) -> tuple[str, str, str, str, str]:
    hours = _hours(cost.hours) + (" *" if cost.measured and cost.hours != (0, 0) else "")
    disk = size_text(cost.disk) if cost.disk else ""
    return cost.rule, str(cost.jobs), str(cost.done), hours, disk


def _hours(hours: tuple[float, float] | None) -> str:
    if hours is None:
        return "not known"
    low, high = (f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in hours)
    if hours[1] == 0:
        return ""
    return low if low == high else f"{low} to {high}"


def remarks(costs: Costs) -> list[str]:
    """Where the numbers come from."""
    lines = [f"GPU-hours: on {costs.hardware}; {costs.source}."]
    if any(cost.measured for cost in costs.rules):
        lines.append("*: mean of this study's finished jobs, on the hardware they ran on.")
    return [*lines, "Disk: estimated from counts and typical sizes, when everything is done."]


def impossible_numbers(plan: Plan, people: int) -> list[str]:
    """What no set of the study can have, by the settings."""
    each, k = plan.study.sample.images_per_identity, plan.study.score.quality.k
    found = {
        "sample.images_per_identity is 1, so no two generated images show one person: error rates "
        "versus synthetic, spreads and Vendi scores per identity": each == 1,
        f"{people * each} images of a set are too few for score.quality.k = {k}: precision, recall,"
        " density, coverage": people * each <= k,
        "one person makes no impostor pair: error rates, audit, recognisers": people == 1,
    }
    return [line for line, so in found.items() if so]


def local_executor() -> str:
    """What would run the study on this machine."""
    cards = gpu_memories()
    if not cards:
        return "Executor: this machine, without a GPU; real base models need one."
    sizes = ", ".join(size_text(size) for size in cards)
    return f"Executor: this machine, {len(cards)} GPU(s) with {sizes}."


def listing(missing: Sequence[Missing]) -> list[str]:
    """What is missing, each thing once."""
    if not missing:
        return ["Nothing is missing."]
    lines = [f"Missing ({len(missing)}):"]
    for number, item in enumerate(missing, start=1):
        lines.append(f"{number:3}. {item.what}: {item.where}")
        facts = (("from", item.source), ("size", item.size), ("licence", item.licence))
        told = "; ".join(f"{name} {value}" for name, value in facts if value)
        lines += [f"     {text}" for text in (told, f"-> {item.how}") if text]
    return lines


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
