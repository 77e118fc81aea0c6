"""Time and memory of the metrics: python benchmarks/metrics.py

    pairs   error rates of 1e8 pairs with their intervals: time, peak memory, the time of the bare
            products of the same matrices in float32, and the difference to the exact rates of all
            scores in float64, kept and sorted
    prdc    precision, recall, density and coverage of 6 000 x 2 048 features against the usual
            code (the prdc package: whole float64 distance matrices), results compared

Each part runs in a process of its own, with --threads threads. Prints a table last, and adds it to
--out. The exact rates take some 5 GB and half a minute; --no-exact leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measured import Row, add, table

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main

IMAGES, PER_PERSON, WIDTH = 14_143, 20, 512  # 1e8 pairs
SCATTER = 3.4  # of a person's images; gives an equal error rate of some percent
FEATURES = (6_000, 2_048)
BLOCK = 1024  # rows of a bare product


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def embeddings() -> tuple[np.ndarray, list[str]]:
    """Embeddings of many people, and who is who."""
    rng = np.random.default_rng(0)
    people = -(-IMAGES // PER_PERSON)
    centres = rng.standard_normal((people, WIDTH), dtype=np.float32)
    rows = np.repeat(centres, PER_PERSON, axis=0)[:IMAGES]
    rows += np.float32(SCATTER) * rng.standard_normal(rows.shape, dtype=np.float32)
    return rows, [f"ID_{i // PER_PERSON}" for i in range(IMAGES)]


def measure_pairs() -> dict[str, float]:
    """The rates and their intervals, and the bare products."""
    from pipeline_steps.metrics.verification import identity_error_rates

    rows, names = embeddings()
    found = []
    wall, processor = timed(lambda: found.append(identity_error_rates(rows, names)))
    memory = peak()

    def products() -> None:
        for start in range(0, IMAGES, BLOCK):
            rows[start : start + BLOCK] @ rows[start:].T

    bare_wall, bare_processor = timed(products)
    rates = found[0]
    return {
        "pairs": rates.n_genuine + rates.n_impostor,
        "wall": wall,
        "processor": processor,
        "peak": memory,
        "bare_wall": bare_wall,
        "bare_processor": bare_processor,
        "eer": rates.eer,
        "fmr1000": rates.fmr1000,
    }


def measure_exact() -> dict[str, float]:
    """The rates of all scores in float64, kept and sorted."""
    from pipeline_steps.metrics.arrays import unit_rows
    from pipeline_steps.metrics.verification import error_rates

    rows, _ = embeddings()
    unit = unit_rows(rows, name="image")
    genuine, impostor = [], []
    for start in range(0, IMAGES, PER_PERSON):
        stop = min(start + PER_PERSON, IMAGES)
        block = unit[start:stop] @ unit[start:].T
        genuine.append(block[:, : stop - start][np.triu_indices(stop - start, 1)])
        impostor.append(block[:, stop - start :].reshape(-1))
    rates = error_rates(np.concatenate(genuine), np.concatenate(impostor))
    return {"eer": rates.eer, "fmr1000": rates.fmr1000}


def measure_prdc() -> dict[str, float]:
    """Our time and the usual code's, on the same features, one after the other."""
    from prdc import compute_prdc

    from pipeline_steps.metrics.prdc import precision_recall

    rng = np.random.default_rng(0)
    # Features as networks give them: a few directions carry most, so neighbours are meaningful.
    scale = (1.0 / np.sqrt(1.0 + np.arange(FEATURES[1]) / 64)).astype(np.float32)
    real = rng.standard_normal(FEATURES, dtype=np.float32) * scale
    synthetic = rng.standard_normal(FEATURES, dtype=np.float32) * scale * 0.97 + 0.01
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    precision_recall(real[:100], synthetic[:100])  # threads and libraries are up
    wall, processor = timed(lambda: ours.append(precision_recall(real, synthetic)))
    memory = peak()

    def products() -> None:
        for a, b in ((real, real), (synthetic, synthetic), (real, synthetic)):
            for start in range(0, len(a), BLOCK):
                a[start : start + BLOCK] @ b.T

    bare_wall, bare_processor = timed(products)

    def usual() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs.append(compute_prdc(real, synthetic, 3))

    usual_wall, usual_processor = timed(usual)
    difference = max(abs(ours[0][name] - theirs[0][name]) for name in ours[0])
    return {
        "wall": wall,
        "processor": processor,
        "peak": memory,
        "bare_wall": bare_wall,
        "bare_processor": bare_processor,
        "usual_wall": usual_wall,
        "usual_processor": usual_processor,
        "usual_peak": peak(),
        "difference": difference,
    }


PARTS = {"pairs": measure_pairs, "exact": measure_exact, "prdc": measure_prdc}


def alone(part: str, threads: int) -> dict[str, float]:
    """A part in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # The library is to choose its kernels by the processor, for us and for the usual code.
    environment.pop("OPENBLAS_CORETYPE", None)
    done = subprocess.run(
        [sys.executable, __file__, "--part", part],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StepError(f"part {part} failed: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def bare(part: dict[str, float], n: int) -> list[Row]:
    """Rows about the products of the same matrices and nothing else."""
    return [
        Row("  bare products: seconds", part["bare_wall"], None, None, n),
        Row("  times the bare products", part["wall"] / part["bare_wall"], None, None, n),
        Row("  the same, processor", part["processor"] / part["bare_processor"], None, None, n),
    ]


def report(parts: dict[str, dict[str, float]], threads: int) -> list[Row]:
    """Rows of the table."""
    pairs, prdc = parts["pairs"], parts["prdc"]
    n = int(pairs["pairs"])
    rows = [
        Row(f"{n:.3g} pairs, {threads} threads: seconds", pairs["wall"], None, None, n),
        Row("  processor seconds", pairs["processor"], None, None, n),
        Row("  peak memory, MB", pairs["peak"], None, None, n),
        *bare(pairs, n),
        Row("  EER", pairs["eer"], None, None, n),
    ]
    if "exact" in parts:
        gap = 1e6 * abs(pairs["eer"] - parts["exact"]["eer"])
        rows.append(Row("  EER, difference to exact, 1e-6", gap, None, None, n))
        gap = 1e6 * abs(pairs["fmr1000"] - parts["exact"]["fmr1000"])
        rows.append(Row("  FMR1000, difference to exact, 1e-6", gap, None, None, n))
    n = FEATURES[0]
    return [
        *rows,
        Row(f"PRDC 6000 x 2048, {threads} threads: seconds", prdc["wall"], None, None, n),
        Row("  processor seconds", prdc["processor"], None, None, n),
        Row("  peak memory, MB", prdc["peak"], None, None, n),
        *bare(prdc, n),
        Row("  usual code: seconds", prdc["usual_wall"], None, None, n),
        Row("  usual code: processor seconds", prdc["usual_processor"], None, None, n),
        Row("  usual code: peak memory, MB", prdc["usual_peak"], None, None, n),
        Row("  times faster", prdc["usual_wall"] / prdc["wall"], None, None, n),
        Row("  times less work", prdc["usual_processor"] / prdc["processor"], None, None, n),
        Row("  largest difference of a rate", prdc["difference"], None, None, n),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", choices=tuple(PARTS), help="measure one part and print it as JSON"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/metrics.json"))
    arguments = parser.parse_args(argv)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part]()))
        return 0
    names = [name for name in PARTS if arguments.exact or name != "exact"]
    load = os.getloadavg()[0]  # of others, before this begins
    parts = {name: alone(name, arguments.threads) for name in names}
    rows = report(parts, arguments.threads)
    add(arguments.out, "speed", rows, load_before=load)
    print(f"load average before: {load:.1f}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
