"""Speed of fine-tuning many identities at once, beside a loop written from the published recipe.

    python benchmarks/finetune.py --device cpu       embedded base model, 64 px, 8 identities
    python benchmarks/finetune.py --device cuda      SD-2.1 at 512 and SDXL at 1024 px, real size,
                                                     random weights; 1, 4, 8, 16 identities

Both sides run in this process, on the same networks and images, and in turn, round by round, so
that whatever else the machine does slows both. The number is milliseconds per identity and
optimiser step (the recipe has one instance and one prior image in each). "peak" is the share of
an H200's measured 790 TFLOP/s that the unavoidable operations would take (docs/performance.md).
Prints its table last and keeps it in --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from finetune_plot import plot
from finetune_worlds import World, embedded_world, random_world
from measured import hardware

from pipeline_steps.diffusion.training.data import Recipe
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.io.atomic import write_json
from pipeline_steps.runtime.lease import keep_freed_memory
from pipeline_steps.study.command import run_main

PEAK = 790e12  # FLOP/s of an H200, dense bf16, measured
# GFLOP of a step of one identity: network; identity term, 2 images and 1 (docs/performance.md).
GFLOP = {"sd21": (3557, 5081 + 48 + 1), "sdxl": (28975, 21765 + 48 + 3)}
VERSIONS = ("torch", "diffusers", "transformers", "peft", "facenet-pytorch")


@dataclass(frozen=True)
class Speed:
    """One measured configuration; None: it did not fit, or there is none.

    Attributes:
        model, method: What is trained.
        identities: At once, in the fleet.
        fleet_ms, reference_ms: Per identity and step, median of the rounds.
        ratio, ratio_low, ratio_high: Reference over fleet: of the medians, and of the rounds.
        peak_share: Share of an H200's peak.
        memory_gib: Most that was held on the GPU.
    """

    model: str
    method: str
    identities: int
    fleet_ms: float | None = None
    reference_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    peak_share: float | None = None
    memory_gib: float | None = None


def milliseconds(
    step: Callable[[], object], steps: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Milliseconds per call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / steps * 1e3


def measure(
    world: World,
    method: str,
    identities: int,
    rounds: int,
    steps: int,
    clock: Callable[[], float],
) -> Speed:
    """Both sides in turn, after a warm-up of each."""
    device, name = world.base.device.type, world.base.name
    reference = world.reference(method)
    settings = world.settings.resolved(name, method)
    ours: list[float] = []
    theirs: list[float] = []
    peak = None
    try:
        subjects, recipe = world.subjects(identities), Recipe(method, settings, 0)
        with Fleet(world.base, subjects, world.prior, recipe, world.guide, world.runtime) as fleet:
            milliseconds(fleet.step, 2)
            milliseconds(reference.step, 2)
            for _ in range(rounds):
                ours.append(milliseconds(fleet.step, steps, clock) / identities)
                theirs.append(milliseconds(reference.step, 2 * steps, clock))
            if device == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
    except torch.OutOfMemoryError:
        return Speed(name, method, identities)
    fleet_ms, reference_ms = float(np.median(ours)), float(np.median(theirs))
    by_round = [b / a for a, b in zip(ours, theirs, strict=True)]
    network, identity = GFLOP.get(name, (0, 0))
    work = (network + (0 if method == "dreambooth" else identity)) * 1e9
    return Speed(
        name,
        method,
        identities,
        fleet_ms,
        reference_ms,
        reference_ms / fleet_ms,
        min(by_round),
        max(by_round),
        work / (fleet_ms / 1e3) / PEAK if device == "cuda" else None,
        peak,
    )


def table(rows: Sequence[Speed]) -> str:
    """Rows as aligned text."""
    lines = [
        f"{'model':<8}{'method':<14}{'K':>3}  {'fleet ms':>9}  {'reference ms':>12}  "
        f"{'ratio (rounds)':<18}{'of peak':>8}  {'GPU GiB':>7}"
    ]
    for row in rows:
        start = f"{row.model:<8}{row.method:<14}{row.identities:>3}  "
        if row.fleet_ms is None or row.reference_ms is None:
            lines.append(f"{start}out of memory")
            continue
        share = "" if row.peak_share is None else f"{row.peak_share:.0%}"
        memory = "" if row.memory_gib is None else f"{row.memory_gib:.1f}"
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})"
        lines.append(
            f"{start}{row.fleet_ms:9.1f}  {row.reference_ms:12.1f}  {ratio:<18}{share:>8}  "
            f"{memory:>7}"
        )
    return "\n".join(lines)


def save(out: Path, device: str, rows: Sequence[Speed], **facts: object) -> None:
    """Put the rows of a device into the JSON file, with date, hardware and versions."""
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    results[device] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else hardware(),
        "versions": {name: version(name) for name in VERSIONS},
        "rows": [asdict(row) for row in rows],
        **facts,
    }
    write_json(out, results)


def worlds(device: str, models: Sequence[str], seed: int) -> Iterator[World]:
    """What is trained on a device, one at a time in memory."""
    if device == "cpu":
        yield embedded_world(seed)
        return
    for name in models:
        yield random_world(name, device)
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=tuple(GFLOP), default=list(GFLOP))
    parser.add_argument("--methods", nargs="+", default=["dreambooth", "idbooth"])
    parser.add_argument("--identities", nargs="+", type=int, help="at once [8; GPU 1 4 8 16]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of both sides")
    parser.add_argument("--steps", type=int, default=4, help="of the fleet in each round")
    parser.add_argument("--threads", type=int, help="on a CPU [all cores]")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process's own seconds, for busy machines; use with --threads 1",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetune.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/finetune_speed.svg"))
    args = parser.parse_args(argv)
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    counts = args.identities or ([8] if args.device == "cpu" else [1, 4, 8, 16])
    rows = []
    for world in worlds(args.device, args.models, args.seed):
        for method in args.methods:
            for count in counts:
                rows.append(measure(world, method, count, args.rounds, args.steps, clock))
                print(table(rows[-1:]), flush=True)
    save(args.out, args.device, rows, threads=torch.get_num_threads(), clock=args.clock)
    plot(json.loads(args.out.read_text(encoding="utf-8")), args.plot)
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
