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
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.study import read_configs


def run(*, study: Sequence[Path]) -> None:
    """Print the jobs of a study.

    Args:
        study: Study configuration (YAML); of several the later ones win, key by key.
    """
    config = read_configs(study)
    started, used = time.monotonic(), _processor_seconds()
    counts = jobs_of(make_plan(config, str(study[0])), config)
    for rule, count in counts.items():
        print(f"{rule:24}{count:6}")
    wall, used = time.monotonic() - started, _processor_seconds() - used
    print(f"{'total':24}{sum(counts.values()):6}   dry run: {wall:.1f} s, processor {used:.1f} s")


def jobs_of(plan: Plan, config: dict[str, object]) -> dict[str, int]:
    """Rule to number of jobs, by a dry run of the workflow in an empty folder.

    Args:
        plan: The study.
        config: Its configuration.

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
        result = subprocess.run(
            [program, "-n", "--quiet", "rules", *place, "--configfile", folder / "study.yaml"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        raise StepError(f"the dry run failed: {(result.stdout + result.stderr)[-2000:]}")
    table = (result.stdout + result.stderr).partition("Job stats:")[2].partition("\ntotal ")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def _processor_seconds() -> float:
    """Of this process's finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
