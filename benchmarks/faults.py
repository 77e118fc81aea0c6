"""Kill a study at random moments, give the same command again, and compare with an undisturbed run.

    python benchmarks/faults.py --kills 100

Real processes and real signals on a small study of the embedded world. Each trial starts where the
photographs are prepared, and is killed every few seconds until the study is finished all the same:
the whole process group, Snakemake alone, one step alone (SIGKILL), or Snakemake or a step asked to
end (SIGTERM). After every kill each result that is there has to be whole, that is, the undisturbed
run's; at the end all of them have to be there. No command but the study's own is ever given.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_steps.io.hashes import sha256_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "workflow"))
from small_study import CONFIG, make_project, snakemake

TINY = {
    "methods": ["idbooth"],
    "finetune.steps": 6,
    "sample.images_per_identity": 2,
    "sample.steps": 4,
    "recognise.epochs": 1,
}
RESULTS = Path("results/demo")
SAMPLES = f"{RESULTS}/samples/demo/idbooth/base/manifest.parquet"
# What a trial makes anew; photographs, references and the prior set stay.
REMADE = (
    *("loras", "samples", "aligned/demo", "features/demo", "scores", "audit", "recognition"),
    *("tables", "figures", "provenance.json", "report.html"),
)
# Times and dates, and what lives only while a step works.
NOT_COMPARED = ("logs", "benchmarks", "checkpoints")
DATED = ("provenance.json", "report.html")
GROWING = ("items.json",)  # an entry for each finished image
KINDS = ("group", "snakemake", "step", "ask snakemake", "ask step")


@dataclass
class Trial:
    """A study that was killed until it was finished.

    Attributes:
        kills: What was killed, in order.
        runs: How often the command was given.
        not_whole: Results that were there after a kill and differed from the undisturbed ones.
        stuck: Output of runs that ended by themselves because something was locked.
        equal: Whether all results are the undisturbed ones.
        missing: Results that differ or are absent at the end.
    """

    kills: list[str] = field(default_factory=list)
    runs: int = 0
    not_whole: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    equal: bool = False
    missing: list[str] = field(default_factory=list)


class Study:
    """A finished, undisturbed study and any number of disturbed copies.

    Args:
        finished: Folder of the project with the finished study.
        folder: Where copies are made.
        remade: Paths below the results that a copy starts without.
        targets: Of the command; none: the whole study.
    """

    def __init__(
        self,
        finished: Path,
        folder: Path,
        *,
        remade: Sequence[str] = REMADE,
        targets: Sequence[str] = (),
    ) -> None:
        self.finished = finished
        self.folder = folder
        self.remade = remade
        self.targets = list(targets)
        self.reference = contents(finished)

    def disturb(
        self,
        seed: int,
        *,
        seconds: float,
        most: int,
        kinds: Sequence[str] = KINDS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Trial:
        """Run a copy to its end while it is killed.

        Args:
            seed: Of moments and kinds.
            seconds: Mean time between two kills; each is exponentially distributed.
            most: After so many kills it is left alone.
            kinds: Of kills, see KINDS.
            tell: Called with a line for each kill.
        """
        draw = random.Random(seed)
        project = self.folder / f"trial{seed}"
        shutil.copytree(self.finished, project, symlinks=True)
        for name in self.remade:
            path = project / RESULTS / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        trial = Trial()
        while True:
            trial.runs += 1
            output = project / f"run{trial.runs}.txt"
            job = self._start(project, output)
            self._kill_until_it_ends(job, trial, draw, project, seconds, most, kinds, tell)
            text = output.read_text(encoding="utf-8", errors="replace")
            if job.returncode == 0:
                break
            if "cannot be locked" in text or "IncompleteFiles" in text:
                trial.stuck.append(text[-2000:])
            if job.returncode > 0 and trial.runs > 3 * most + 10:
                raise RuntimeError(f"{project} does not get finished: {text[-4000:]}")
        found = contents(project)
        trial.missing = [name for name in self.reference if name not in found]
        trial.missing += different(found, self.reference)
        trial.equal = not trial.missing
        if trial.equal:
            shutil.rmtree(project)
        return trial

    def _start(self, project: Path, output: Path) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name("snakemake")
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        with output.open("wb") as stream:
            return subprocess.Popen(
                [program, *self.targets, "--cores", "2", "--configfile", CONFIG],
                cwd=project,
                env=kept | {"OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill_until_it_ends(
        self,
        job: subprocess.Popen[bytes],
        trial: Trial,
        draw: random.Random,
        project: Path,
        seconds: float,
        most: int,
        kinds: Sequence[str],
        tell: Callable[[str], None],
    ) -> None:
        begin = time.monotonic()
        while True:
            left = None if len(trial.kills) >= most else draw.expovariate(1 / seconds)
            try:
                job.wait(left)
                return
            except subprocess.TimeoutExpired:
                pass
            kind = draw.choice(kinds)
            what = strike(kind, job.pid, draw)
            if what is None:  # no step was at work
                continue
            trial.kills.append(kind)
            tell(f"{len(trial.kills):4d}  {time.monotonic() - begin:6.1f} s  {kind:14}  {what}")
            if kind in ("group", "snakemake"):
                job.wait()
            half = different(contents(project), self.reference)
            trial.not_whole += [f"{kind} ({what}): {name}" for name in half]


def strike(kind: str, session: int, draw: random.Random) -> str | None:
    """Kill or ask what `kind` says in a session of processes; returns what was hit, if anything."""
    steps = sorted(steps_of(session).items())
    if kind == "group":
        os.killpg(session, signal.SIGKILL)
        return ", ".join(name for _, name in steps) or "no step at work"
    if kind in ("snakemake", "ask snakemake"):
        number = signal.SIGKILL if kind == "snakemake" else signal.SIGTERM
        os.kill(session, number)
        return ", ".join(name for _, name in steps) or "no step at work"
    if not steps:
        return None
    process, name = draw.choice(steps)
    try:
        os.kill(process, signal.SIGKILL if kind == "step" else signal.SIGTERM)
    except ProcessLookupError:
        return None
    return name


def steps_of(session: int) -> dict[int, str]:
    """Python processes of steps in a session, with the step's name."""
    return {
        process: words[2].removeprefix("pipeline_steps.")
        for process, words in processes_of(session)
        if words[1:2] == ["-m"] and words[2].startswith("pipeline_steps.")
    }


def processes_of(session: int) -> Iterator[tuple[int, list[str]]]:
    """Processes of a session with their command lines."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                yield int(folder.name), words
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue


def contents(project: Path) -> dict[str, str]:
    """SHA-256 of every result by its name; half-written files have hidden names."""
    results = project / RESULTS
    found = {}
    for path in sorted(results.rglob("*")):
        inside = path.relative_to(results)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or set(inside.parts) & set(NOT_COMPARED) or path.name in DATED:
            continue
        try:
            if path.is_file():
                found[str(inside)] = sha256_file(path)
        except FileNotFoundError:  # a step that was left alone works on
            continue
    return found


def different(found: Mapping[str, str], reference: Mapping[str, str]) -> list[str]:
    """Names of results that are not the reference's; those that grow count at the end only."""
    return [
        name
        for name, digest in found.items()
        if reference.get(name) != digest and Path(name).name not in GROWING
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/faults.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="mean time between two kills")
    parser.add_argument("--per-trial", type=int, default=25, help="kills, then it is left alone")
    parser.add_argument("--minutes", type=float, default=25.0, help="no trial begins after that")
    parser.add_argument(
        "--until", choices=("samples", "report"), default="report", help="how far a trial goes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keeps the undisturbed study for another time")
    arguments = parser.parse_args(argv)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        project = folder / "undisturbed"
        if not project.exists():
            make_project(project, TINY)
        targets = [SAMPLES] if arguments.until == "samples" else []
        snakemake(project, *targets)
        print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
        remade = ("loras", "samples") if targets else REMADE
        study = Study(project, Path(temporary), remade=remade, targets=targets)
        trials: list[Trial] = []
        while (left := arguments.kills - sum(len(trial.kills) for trial in trials)) > 0:
            if time.monotonic() - begin > 60 * arguments.minutes:
                break
            trial = study.disturb(
                arguments.seed + len(trials),
                seconds=arguments.seconds,
                most=min(left, arguments.per_trial),
                tell=lambda line: print(line, flush=True),
            )
            trials.append(trial)
            print(f"trial {len(trials)}: {trial}", flush=True)
    kinds = Counter(kind for trial in trials for kind in trial.kills)
    print(f"{kinds.total()} kills: " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS))
    print(f"{sum(trial.runs for trial in trials)} runs of the one command")
    print(f"{sum(trial.equal for trial in trials)} of {len(trials)} studies equal bit for bit")
    print(
        f"{sum(len(trial.not_whole) for trial in trials)} results that were not whole after a kill"
    )
    print(f"{sum(len(trial.stuck) for trial in trials)} stuck locks")
    good = all(trial.equal and not trial.not_whole and not trial.stuck for trial in trials)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
