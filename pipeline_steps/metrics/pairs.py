"""Genuine and impostor comparisons of face embeddings.

ID-Booth, Section 4 and Figure 3: cosine similarity of identity features, all genuine pairs, and as
many impostor pairs drawn at random. Here the impostors may also be all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import Matrix, feature_matrix, same_width, unit_rows

Impostors = Literal["all", "equal"]
BLOCK_ROWS = 512


@dataclass(frozen=True)
class Pairs:
    """Similarity scores and who was compared.

    Attributes:
        scores: cosine similarity in [-1, 1], float64 [n].
        first, second: identity of either side, as indices [n] into the caller's identity list.
    """

    scores: NDArray[np.float64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """Genuine and impostor pairs of one experiment.

    Attributes:
        genuine, impostor: the pairs.
        identities: names that the pairs' indices point to, sorted.
    """

    genuine: Pairs
    impostor: Pairs
    identities: tuple[str, ...]


def compare_between(
    probes: ArrayLike,
    probe_identities: Sequence[str],
    gallery: ArrayLike,
    gallery_identities: Sequence[str],
    *,
    impostors: Impostors = "all",
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Every probe against every gallery image (synthetic against real).

    Args:
        probes: embeddings [n, d]; rows are normalised here.
        probe_identities: one name per row.
        gallery: embeddings [m, d].
        gallery_identities: one name per row.
        impostors: "all" pairs of two identities, or "equal": as many as there are genuine ones,
            drawn without replacement (all, when there are fewer).
        rng: generator of that draw; needed for "equal" only.

    Raises:
        ValueError: wrong shapes or lengths, or "equal" without a generator.
    """
    a = unit_rows(feature_matrix(probes, name="probe"), name="probe")
    b = unit_rows(feature_matrix(gallery, name="gallery"), name="gallery")
    same_width(b, a)
    names, codes = _codes([*probe_identities, *gallery_identities])
    if len(codes) != len(a) + len(b):
        raise ValueError(f"{len(a) + len(b)} embeddings but {len(codes)} identity names")
    return _compare(a, codes[: len(a)], b, codes[len(a) :], names, False, impostors, rng)


def compare_within(
    embeddings: ArrayLike,
    identities: Sequence[str],
    *,
    impostors: Impostors = "all",
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Every unordered pair of two different images of one set. Arguments as `compare_between`."""
    a = unit_rows(feature_matrix(embeddings, name="image"), name="image")
    names, codes = _codes(identities)
    if len(codes) != len(a):
        raise ValueError(f"{len(a)} embeddings but {len(codes)} identity names")
    return _compare(a, codes, a, codes, names, True, impostors, rng)


def _codes(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    unique, codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return tuple(str(name) for name in unique), codes.astype(np.int64).reshape(-1)


def _compare(
    a: Matrix,
    a_codes: NDArray[np.int64],
    b: Matrix,
    b_codes: NDArray[np.int64],
    names: tuple[str, ...],
    within: bool,
    impostors: Impostors,
    rng: np.random.Generator | None,
) -> Comparison:
    chosen: NDArray[np.int64] | None = None
    if impostors == "equal":
        if rng is None:
            raise ValueError("drawing impostors needs a random generator")
        n_genuine, n_impostor = _pair_counts(a_codes, b_codes, within)
        if n_genuine < n_impostor:
            chosen = np.sort(rng.choice(n_impostor, size=n_genuine, replace=False, shuffle=False))
    genuine: list[Pairs] = []
    impostor: list[Pairs] = []
    seen = 0
    for scores, first, second in _blocks(a, a_codes, b, b_codes, within):
        same = first == second
        genuine.append(Pairs(scores[same], first[same], second[same]))
        different = np.flatnonzero(~same)
        count = len(different)
        if chosen is not None:
            # `chosen` numbers the impostor pairs in the order in which the blocks produce them.
            low, high = np.searchsorted(chosen, [seen, seen + count])
            different = different[chosen[low:high] - seen]
        seen += count
        impostor.append(Pairs(scores[different], first[different], second[different]))
    return Comparison(_join(genuine), _join(impostor), names)


def _pair_counts(
    a_codes: NDArray[np.int64], b_codes: NDArray[np.int64], within: bool
) -> tuple[int, int]:
    """Numbers of genuine and impostor pairs, without forming them."""
    size = int(max(a_codes.max(), b_codes.max())) + 1
    a_counts = np.bincount(a_codes, minlength=size)
    if within:
        n = len(a_codes)
        same = int((a_counts * (a_counts - 1) // 2).sum())
        return same, n * (n - 1) // 2 - same
    same = int((a_counts * np.bincount(b_codes, minlength=size)).sum())
    return same, len(a_codes) * len(b_codes) - same


def _blocks(
    a: Matrix, a_codes: NDArray[np.int64], b: Matrix, b_codes: NDArray[np.int64], within: bool
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]]:
    """Scores and both identities of all pairs, in row-major order, a block of rows at a time."""
    columns = np.arange(len(b))
    for start in range(0, len(a), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(a)))
        similarity = np.clip(a[rows] @ b.T, -1.0, 1.0)
        if within:
            row, column = np.nonzero(columns[None, :] > rows[:, None])
            yield similarity[row, column], a_codes[rows[row]], b_codes[column]
        else:
            yield (
                similarity.reshape(-1),
                np.repeat(a_codes[rows], len(b)),
                np.tile(b_codes, len(rows)),
            )


def _join(parts: list[Pairs]) -> Pairs:
    return Pairs(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
    )
