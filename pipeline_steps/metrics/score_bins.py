"""Counting scores without keeping them: bins, moments and distinct values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MERGE = 2**21  # collected scores that are merged before more are collected

Scores = NDArray[np.float32]
Counts = NDArray[np.int64]
Positions = NDArray[np.int32]


@dataclass(frozen=True)
class Bounds:
    """Bins of equal width over a range of scores."""

    low: float
    high: float
    bins: int

    def positions(self, scores: Scores) -> Positions:
        """Bin of each score. It never falls with the score, whatever rounding does."""
        scale = np.float32(self.bins / (self.high - self.low))
        scaled = (scores - np.float32(self.low)) * scale
        return np.clip(scaled.astype(np.int32), 0, self.bins - 1)


@dataclass
class Moments:
    """Sums about zero, in double precision."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, scores: Scores) -> None:
        """Take in scores [n]."""
        self.n += scores.size
        self.total += float(scores.sum(dtype=np.float64))
        self.squares += float(np.square(scores, dtype=np.float64).sum())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.n - other.n, self.total - other.total, self.squares - other.squares)

    @property
    def mean_and_sd(self) -> tuple[float, float]:
        """Mean and population standard deviation."""
        mean = self.total / self.n
        return mean, float(np.sqrt(max(self.squares / self.n - mean**2, 0.0)))


class Distinct:
    """Distinct values of many arrays with their counts; equal scores take no further memory."""

    def __init__(self) -> None:
        self.values = np.empty(0, np.float32)
        self.counts = np.empty(0, np.int64)
        self.waiting: list[Scores] = []
        self.size = 0

    def add(self, scores: Scores) -> None:
        """Take in scores [n]."""
        self.waiting.append(scores)
        self.size += len(scores)
        if self.size > MERGE:
            self.result()

    def result(self) -> tuple[Scores, Counts]:
        """Distinct scores, ascending [v], and how often each occurred [v]."""
        ones = np.ones(self.size, np.int64)
        values = np.concatenate([self.values, *self.waiting])
        self.values, back = np.unique(values, return_inverse=True)
        weights = np.concatenate([self.counts, ones])
        self.counts = np.bincount(back, weights, len(self.values)).astype(np.int64)
        self.waiting, self.size = [], 0
        return self.values, self.counts
