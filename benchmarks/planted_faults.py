"""Does the suite find what breaks? Twenty faults, planted one at a time in a copy of the project.

    python benchmarks/planted_faults.py
    python benchmarks/planted_faults.py --tests FOLDER   # other tests, e.g. an earlier revision's

A fault is one edit below pipeline_steps; it is found where one of the tests beside it fails, all of
which pass without it (tried first). About fifteen minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".*", "results", "data", "tmp", "resources", "tests", "docs")


class Fault(NamedTuple):
    """Module below pipeline_steps, what stands there once and what in its place, and tests."""

    module: str
    before: str
    after: str
    tests: str


FAULTS = [
    Fault(*fault)
    for fault in (
        (
            "metrics/frechet.py",
            "else float(distance)",
            "else distance**0.5",
            "metrics/test_frechet.py",
        ),
        ("metrics/mmd.py", "within - 2.0 *", "within - 1.9 *", "metrics/test_mmd.py"),
        ("metrics/prdc.py", "x, 1)[0][owners]", "x, 2)[0][owners]", "metrics/test_prdc.py"),
        ("metrics/prdc.py", "k: int = 3", "k: int = 4", "metrics/test_prdc.py"),
        (
            "metrics/verification.py",
            "impostor_sd**2)",
            "genuine_sd**2)",
            "metrics/test_verification.py",
        ),
        (
            "metrics/verification.py",
            "curve.fmr <= fmr",
            "curve.fmr < fmr",
            "metrics/test_verification.py",
        ),
        (
            "recognition/margins.py",
            "target - margin\n",
            "target + margin\n",
            "recognition/test_margins.py",
        ),
        (
            "recognition/protocol.py",
            "genuine > threshold",
            "genuine < threshold",
            "recognition/test_templates.py",
        ),
        ("faces/alignment.py", ") + 0.5) / factors", ")) / factors", "faces/test_alignment.py"),
        (
            "diffusion/objectives.py",
            "train_timesteps).square()",
            "train_timesteps)",
            "diffusion/test_objectives.py",
        ),
        (
            "diffusion/objectives.py",
            "(gap + margin)",
            "(margin - gap)",
            "diffusion/test_objectives.py",
        ),
        (
            "diffusion/fused_attention.py",
            "0), value=True",
            "0), value=False",
            "diffusion/test_fused_attention.py",
        ),
        (
            "diffusion/id3.py",
            ", tokens, self.unknown)",
            ", tokens, tokens)",
            "diffusion/test_id3.py",
        ),
        (
            "diffusion/sampling/guidance.py",
            "[*circle[1:], circle[0]]",
            "circle",
            "diffusion/test_guidance.py",
        ),
        ("seeds.py", "json.dumps([seed, *keys]", "json.dumps([*keys]", "test_seeds.py"),
        (
            "io/atomic.py",
            "os.replace(temporary, target)",
            "shutil.copy(temporary, target)",
            "io/test_atomic.py",
        ),
        (
            "runtime/lease.py",
            "fcntl.LOCK_EX | fcntl.LOCK_NB",
            "fcntl.LOCK_SH | fcntl.LOCK_NB",
            "runtime/test_lease.py",
        ),
        ("study/key.py", '"seed": frozen.seed, ', "", "study/test_key.py"),
        ("study/record.py", "versions_behind(*sources)}", "[]}", "study/test_record.py"),
        (
            "study/code.py",
            'OUTSIDE = ("runtime", "study")',
            'OUTSIDE = ("runtime", "study", "metrics")',
            "study/test_code.py",
        ),
    )
]


def passes(project: Path, tests: Sequence[str]) -> bool:
    """Whether some tests of a project pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return not subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)},
        capture_output=True,
        check=False,
    ).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 where a fault is not found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", metavar="FOLDER")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in ("resources", "docs"):
            (project / name).symlink_to(ROOT / name)
        shutil.copytree(args.tests, project / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        if not passes(project, sorted({fault.tests for fault in FAULTS})):
            print("error: the tests fail without a fault", file=sys.stderr)
            return 2
        found = 0
        for fault in FAULTS:
            path = project / "pipeline_steps" / fault.module
            text = path.read_text(encoding="utf-8")
            if text.count(fault.before) != 1:
                raise SystemExit(f"error: {fault.module} has not once {fault.before!r}")
            path.write_text(text.replace(fault.before, fault.after), encoding="utf-8")
            failed = not passes(project, [fault.tests])
            path.write_text(text, encoding="utf-8")
            found += failed
            told = f"{fault.module}: {fault.before!r} -> {fault.after!r}"
            print(f"{'found' if failed else 'MISSED'}  {told}", flush=True)
    print(f"{found} of {len(FAULTS)} found")
    return int(found < len(FAULTS))


if __name__ == "__main__":
    raise SystemExit(main())
