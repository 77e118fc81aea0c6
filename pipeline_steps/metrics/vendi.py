"""Vendi score: the effective number of different images.

Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR
2023, Definition 3.1, with the cosine kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline_steps.metrics.arrays import Rows, feature_rows, rows_of, unit_rows


def vendi_score(features: ArrayLike) -> float:
    """exp of the Shannon entropy of the eigenvalues of K / n, K the matrix of cosines.

    Args:
        features: features [n, d]; rows are normalised here.

    Returns:
        Between 1 (all rows point the same way) and min(n, d); n for orthogonal rows.

    Raises:
        ValueError: wrong shape, a zero row, values that are not finite.
    """
    return _vendi(feature_rows(features, name="image"))


def vendi_within(features: ArrayLike, identities: Sequence[str]) -> float:
    """Mean Vendi score of the images of each identity with two images or more.

    Args:
        features: features [n, d].
        identities: identity per row [n].

    Returns:
        The mean over identities, NaN where none has two images.

    Raises:
        ValueError: as `vendi_score`, or another number of names than of rows.
    """
    rows = feature_rows(features, name="image")
    if len(identities) != len(rows):
        raise ValueError(f"{len(rows)} images but {len(identities)} identity names")
    scores = [_vendi(rows[own]) for own in rows_of(identities).values() if len(own) > 1]
    return float(np.mean(scores)) if scores else float("nan")


def _vendi(rows: Rows) -> float:
    x = unit_rows(rows, name="image") / np.sqrt(len(rows))
    # X X^T and X^T X share their non-zero eigenvalues; the smaller one is enough.
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    eigenvalues = np.linalg.eigvalsh(gram)
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
