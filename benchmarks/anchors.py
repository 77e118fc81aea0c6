"""How far apart made-up identities can be: largest cosine between any two, and the time it takes.

    python benchmarks/anchors.py [--anchors N] [--dimensions D]

Beside ours random directions, and two bounds that no arrangement can beat: Levenshtein's for the
largest cosine and Welch's for the largest of the cosines' absolute values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from pipeline_steps.identities.anchors import largest_cosine, random_anchors, tammes
from pipeline_steps.study.command import run_main


def levenshtein(n: int, d: int) -> float:
    """Lower bound of the largest cosine of n > 2 d directions, n not beyond d (d + 3) / 2."""
    low, high = 0.0, ((d + 3) ** 0.5 - 1) / (d + 2)
    for _ in range(60):
        s = (low + high) / 2
        most = d * (1 - s) * (2 + (d + 1) * s) / (1 - d * s * s)
        low, high = (s, high) if most < n else (low, s)
    return low


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--anchors", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512)
    n, d = vars(parser.parse_args(argv)).values()
    print(f"{n} directions in {d} dimensions, largest cosine:")
    start, busy = time.perf_counter(), time.process_time()
    reached = largest_cosine(tammes(n, d))
    taken, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"  tammes       {reached:.4f}  in {taken:.0f} s, {busy:.0f} s of a processor")
    print(f"  random       {largest_cosine(random_anchors(n, d)):.4f}")
    if 2 * d < n <= d * (d + 3) // 2:
        print(f"  Levenshtein  {levenshtein(n, d):.4f}, no arrangement is below")
        print(f"  Welch        {((n - d) / (d * (n - 1))) ** 0.5:.4f}, for |cosine|")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
