"""Directions for people who do not exist: as far from each other as the sphere allows.

Source: ID3 (anchors by Tammes' problem, embeddings around them); HyperFace (the pull towards real
faces' embeddings). The paper does not say how its anchors were found; what is here is inferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline_steps.metrics.arrays import blocks, feature_rows, parallel, unit_rows
from pipeline_steps.seeds import numpy_generator

Anchors = NDArray[np.float64]
TILE = 1000
WORK = 4e12  # multiplications and additions of one descent: about a minute of one core
MOST_STEPS = 1000
SHARPEST = 60  # last inverse temperature, in units of sqrt(d)
MOMENTUM = 0.8


def tammes(n: int, d: int, seed: int = 0) -> Anchors:
    """n directions in d dimensions whose largest cosine is small (Tammes' problem).

    Up to d + 1 they are a regular simplex (every cosine -1 / (n - 1)), up to 2 d part of the
    cross-polytope (largest cosine 0): both are optimal. Beyond, a descent on the soft maximum of
    all cosines betters a start: mutually unbiased bases of C^p (Wootters and Fields, 1989), p the
    largest odd prime <= d / 2, as rows in R^2p, whose cosines are at most 1 / sqrt(p); random
    directions for more than 4 p^2 rows. For 10 000 rows of 512: random 0.24, bases 0.063, the
    descent 0.059.

    Args:
        n: number of directions, >= 1.
        d: dimensions, >= 2.
        seed: of the rotation, and of what is random.

    Returns:
        float64 [n, d], rows of length 1.

    Raises:
        ValueError: n or d is too small.
    """
    _check(n, d)
    rng = numpy_generator(seed, "tammes", n, d)
    if n <= d + 1:
        return _rotated(_simplex(n), d, rng)
    if n <= 2 * d:
        return _rotated(np.concatenate([np.eye(d), -np.eye(d)])[:n], d, rng)
    bases = _unbiased_bases(n, d)
    if bases is None:
        return _spread(random_anchors(n, d, seed), step=0.01, softest=8)
    return _spread(_rotated(bases, d, rng), step=0.004, softest=18)


def random_anchors(n: int, d: int, seed: int = 0) -> Anchors:
    """n independent, uniformly distributed directions, float64 [n, d]. Raises as `tammes`."""
    _check(n, d)
    rng = numpy_generator(seed, "random anchors", n, d)
    return unit_rows(rng.standard_normal((n, d)), name="random")


def on_manifold(anchors: ArrayLike, embeddings: ArrayLike, strength: float = 0.5) -> Anchors:
    """Anchors pulled towards embeddings of faces, each to its nearest, and still apart.

    The descent of `tammes`, with the pull as a second direction (HyperFace's regularisation).

    Args:
        anchors: float [n, d], of any length.
        embeddings: of real or generated faces, float [m, d], of any length.
        strength: share of the pull in each movement, the repulsion has the rest; in [0, 1).

    Returns:
        float64 [n, d], rows of length 1.

    Raises:
        ValueError: widths differ, a row of zeros, a value that is not finite, or no such strength.
    """
    if not 0 <= strength < 1:
        raise ValueError(f"the pull's strength is in [0, 1), not {strength}")
    start = unit_rows(feature_rows(anchors, name="anchor"), name="anchor")
    faces = unit_rows(feature_rows(embeddings, name="face"), name="face")
    if start.shape[1] != faces.shape[1]:
        raise ValueError(f"anchors have {start.shape[1]} columns, embeddings {faces.shape[1]}")
    return _spread(start, step=0.01, softest=8, faces=faces, strength=strength)


def perturb(
    anchors: ArrayLike, per_identity: int, low: float, high: float, rng: np.random.Generator
) -> Anchors:
    """Embeddings around each anchor: y = v w + sqrt(1 - v^2) u, u a random unit vector normal to w.

    Args:
        anchors: w, float [n, d], of any length.
        per_identity: m, embeddings of each, >= 1.
        low, high: v = cos(y, w) is uniform between them, -1 <= low <= high <= 1.
        rng: draws v and u.

    Returns:
        float64 [n, m, d], rows of length 1.

    Raises:
        ValueError: the interval is none, or d < 2.
    """
    if not -1 <= low <= high <= 1:
        raise ValueError(f"cosines lie in -1 <= low <= high <= 1, not in [{low}, {high}]")
    w = unit_rows(feature_rows(anchors, name="anchor"), name="anchor")[:, None]
    _check(1, w.shape[2])
    v = rng.uniform(low, high, (len(w), per_identity, 1))
    u = rng.standard_normal((len(w), per_identity, w.shape[2]))
    u -= (u * w).sum(axis=2, keepdims=True) * w
    u /= np.linalg.norm(u, axis=2, keepdims=True)
    return np.asarray(v * w + np.sqrt(1 - v**2) * u)


def refused(
    anchors: ArrayLike, faces: ArrayLike, names: Sequence[str], most: float
) -> dict[int, str]:
    """Anchors that are too much like a real person, or like an anchor before them.

    Args:
        anchors: float [n, d], of any length.
        faces: embeddings of real people, float [m, d], of any length.
        names: whose these are, [m].
        most: largest cosine that is allowed.

    Returns:
        Row of each refused anchor to why, in words.
    """
    rows = unit_rows(feature_rows(anchors, name="anchor"), name="anchor")
    real = unit_rows(feature_rows(faces, name="face"), name="face")
    found: dict[int, str] = {}
    for part in blocks(len(rows), TILE):
        alike = rows[part] @ real.T
        among = np.tril(rows[part] @ rows.T, part.start - 1)
        for k, row in enumerate(range(len(rows))[part]):
            nearest = int(alike[k].argmax())
            if alike[k, nearest] > most:
                found[row] = f"is as close as {alike[k, nearest]:.2f} to {names[nearest]}"
                continue
            allowed = [other for other in np.flatnonzero(among[k] > most) if other not in found]
            if allowed:
                found[row] = f"is as close as {among[k, allowed[0]]:.2f} to anchor {allowed[0] + 1}"
    return found


def largest_cosine(anchors: ArrayLike) -> float:
    """Largest cosine between two rows of [n, d] of length 1, n >= 2."""
    rows = np.asarray(anchors)
    return max(parallel(lambda part: float(_cosines(rows, part).max()), blocks(len(rows), TILE)))


def _check(n: int, d: int) -> None:
    if n < 1 or d < 2:
        raise ValueError(f"{n} directions in {d} dimensions: at least 1 in 2 are needed")


def _simplex(n: int) -> Anchors:
    if n == 1:
        return np.ones((1, 1))
    # the rows of 1 - 1/n, in a basis of the n - 1 dimensions that they span
    values, vectors = np.linalg.eigh(np.eye(n) - 1 / n)
    return unit_rows(vectors[:, values > 0.5], name="simplex")


def _unbiased_bases(n: int, d: int) -> Anchors | None:
    prime = next((p for p in range(d // 2, 2, -1) if all(p % k for k in range(2, p))), 0)
    if n > 4 * prime**2:
        return None
    x = np.arange(prime)
    rows: list[Anchors] = []
    for turn in (1, 1j, -1, -1j):  # v, i v, -v and -i v are orthogonal or opposite in R^2p
        for a in x[: -(-n // prime) - len(rows)]:
            # exponents modulo p: exact, and small enough for the sine
            phases = (a * x * x + np.outer(x, x)) % prime
            basis = turn * np.exp(2j * np.pi * phases / prime) / np.sqrt(prime)
            rows.append(np.concatenate([basis.real, basis.imag], axis=1))
    return np.concatenate(rows)[:n]


def _rotated(rows: Anchors, d: int, rng: np.random.Generator) -> Anchors:
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    rotation = q * np.sign(np.diag(r))  # uniformly distributed (Mezzadri, 2007)
    return unit_rows(rows @ rotation[: rows.shape[1]], name="anchor")


def _cosines(rows: NDArray[np.floating], part: slice) -> NDArray[np.floating]:
    """Cosines of some rows with all, [k, n]; -1 with themselves."""
    cosines = rows[part] @ rows.T
    cosines[np.arange(len(cosines)), np.arange(len(rows))[part]] = -1.0
    return cosines


def _spread(
    start: Anchors,
    *,
    step: float,
    softest: float,
    faces: Anchors | None = None,
    strength: float = 0.0,
) -> Anchors:
    """Descent on the soft maximum of all cosines, ever sharper.

    In single precision and in tiles, so that memory is that of a few tiles. `step` is the first
    root mean square movement of a row, `softest` the first inverse temperature in units of sqrt(d).
    Without `faces` the best rows that were seen, with them the last ones.
    """
    n, d = start.shape
    steps = int(min(MOST_STEPS, WORK / (4.0 * n * n * d)))
    rows = best = start.astype(np.float32)
    near = None if faces is None else faces.astype(np.float32)
    lowest = highest = largest_cosine(rows) if steps else 1.0
    velocity = np.zeros_like(rows)
    for k in range(steps):
        sharpness = np.sqrt(d) * softest * (SHARPEST / softest) ** (k / steps)
        push, highest = _push(rows, np.float32(sharpness), np.float32(highest))
        if highest < lowest:
            best, lowest = rows, highest
        if near is not None:
            push = (1 - strength) * push - strength * _along(_nearest(rows, near), rows)
        velocity = MOMENTUM * velocity + push
        rows = rows - np.float32(step * (1 - k / steps)) * velocity
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if faces is not None or largest_cosine(rows) < lowest:
        best = rows
    return unit_rows(best, name="anchor")


def _push(
    rows: NDArray[np.float32], sharpness: np.float32, highest: np.float32
) -> tuple[NDArray[np.float32], float]:
    """Gradient of the soft maximum, scaled to a root mean square of 1, and the true maximum."""

    def of(part: slice) -> tuple[NDArray[np.float32], float]:
        cosines = _cosines(rows, part)
        # `highest` is the last step's: what has grown beyond it must not overflow; below exp(-30)
        # products would be subnormal, with which a matrix product takes ten times as long
        weights = np.exp(np.clip((cosines - highest) * sharpness, np.float32(-30), np.float32(20)))
        return weights @ rows, float(cosines.max())

    pushes, maxima = zip(*parallel(of, blocks(len(rows), TILE)), strict=True)
    return _along(np.concatenate(pushes), rows), max(maxima)


def _nearest(rows: NDArray[np.float32], faces: NDArray[np.float32]) -> NDArray[np.float32]:
    found = parallel(lambda part: (rows[part] @ faces.T).argmax(axis=1), blocks(len(rows), TILE))
    return faces[np.concatenate(list(found))]


def _along(vectors: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part along the sphere at `rows`, scaled to a root mean square length of 1."""
    along = vectors - (vectors * rows).sum(axis=1, keepdims=True) * rows
    return np.asarray(along / max(float(np.linalg.norm(along)) / len(rows) ** 0.5, 1e-12))
