"""Count a study's jobs by a dry run of the real workflow, without any of its data.

In:  a study's configuration.
Out: on standard output the workflow's own table of jobs, and the time that the dry run took.
     Data are stood in for by empty files in a temporary folder, which is removed.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.weights import PROJECT_ROOT
from pipeline_steps.preflight.needs import missing_data
from pipeline_steps.runtime.command_line import add_study, command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main
from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.study import read_configs


def run(plan: Plan, config: dict[str, object]) -> tuple[dict[str, int], tuple[float, float]]:
    """Dry-run a study's workflow in an empty folder.

    Args:
        plan: the study.
        config: its configuration.

    Returns:
        Rule to number of jobs, and the seconds of wall and of processor time that it took.

    Raises:
        StepError: the dry run failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for item in missing_data(plan, folder):
            write_text(folder / item.where, "")
        write_text(folder / "study.yaml", yaml.safe_dump(config, sort_keys=False))
        program = Path(sys.executable).with_name("snakemake")
        place: list[str | Path] = [
            *("--snakefile", PROJECT_ROOT / "Snakefile"),
            *("--directory", folder),
        ]
        started, used = time.monotonic(), processor_seconds()
        result = subprocess.run(
            [program, "-n", "--quiet", "rules", *place, "--configfile", folder / "study.yaml"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - started, processor_seconds() - used
    if result.returncode != 0:
        raise StepError(f"the dry run failed: {(result.stdout + result.stderr)[-2000:]}")
    return job_counts(result.stdout + result.stderr), seconds


def processor_seconds() -> float:
    """Processor time of this process's finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def job_counts(output: str) -> dict[str, int]:
    """Rule to number of jobs, from the table of a dry run; empty when nothing is to be done."""
    table = output.partition("Job stats:")[2].partition("\ntotal ")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("preflight.dry_run", __doc__)
    add_study(parser, required=True)
    arguments = parser.parse_args(argv)
    config = read_configs(arguments.study)
    counts, seconds = run(make_plan(config, str(arguments.study[0])), config)
    for rule, count in counts.items():
        print(f"{rule:24}{count:6}")
    wall, used = seconds
    print(f"{'total':24}{sum(counts.values()):6}   dry run: {wall:.1f} s, processor {used:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
