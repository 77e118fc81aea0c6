"""Work on blocks in threads: NumPy lets go of the interpreter while it computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def threads() -> int:
    """Threads that this process may use: OMP_NUM_THREADS, as for the matrix products, or all."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(named)) if named.isdigit() else (os.cpu_count() or 1)


def parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` over threads: results in order, and only a few of them in memory at a time."""
    count = threads()
    if count == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
