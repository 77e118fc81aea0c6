"""Verification protocols: pairs of images in ten folds (LFW), and pairs of templates (IJB).

LFW-style benchmarks: embeddings of an image and of its mirror image are added and normalised; a
pair's score is the squared Euclidean distance; thresholds run from 0 to 4 in steps of 0.01; each of
ten consecutive folds is judged by the best threshold of the other nine. This is InsightFace's
protocol (`verification.py`), after Huang et al., "Labeled Faces in the Wild", 2007.

Templates are several images of one person; images from one video are one medium. Embeddings (image
plus mirror image, not normalised, so that their norms weigh them) are averaged over each medium,
added over the media of a template, and normalised; a pair's score is the cosine. Klare et al.,
"Pushing the Frontiers of Unconstrained Face Detection and Recognition: IARPA Janus Benchmark A",
CVPR 2015; pooling by media as in InsightFace's evaluation of IJB-B and IJB-C.

Intervals: Wilson's score interval with an effective number of pairs (Korn and Graubard, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey
data", Survey Methodology 24, 1998; with Wilson's limits as in Franco et al., "Comparative study of
confidence intervals for proportions in complex sample surveys", Journal of Survey Statistics and
Methodology 7, 2019). For an average over benchmarks they are combined by the square-and-add rule
(Newcombe, Statistics in Medicine 17, 1998; Zou and Donner, Statistics in Medicine 27, 2008,
"MOVER"). Coverage by simulation: benchmarks/accuracy_coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from pipeline_steps.metrics.intervals import wilson_interval
from pipeline_steps.runtime.errors import StepError

N_FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)
BLOCK = 65536  # pairs of templates scored at once
MEMBERS = ("template", "media", "file")
PAIRS = ("template_a", "template_b", "same")
TEMPLATE_COLUMNS = (
    *("fmr", "tpr", "low", "high", "threshold", "n_genuine", "n_impostor"),
    *("n_templates", "images_left_out", "pairs_left_out"),
)


@dataclass(frozen=True)
class Verification:
    """Accuracy of one recogniser on one benchmark.

    Attributes:
        accuracy: mean over folds, in [0, 1].
        accuracy_sd: population standard deviation over folds.
        low, high: 95 % interval of the accuracy, see `accuracy_interval`.
        n_pairs: number of pairs.
    """

    accuracy: float
    accuracy_sd: float
    low: float
    high: float
    n_pairs: int


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows [n, d] -> rows of length one.

    Raises:
        ValueError: a row of zero length or one that is not finite, which has no direction.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("an embedding is zero or not finite; the recogniser is broken")
    return embeddings / norms


def pair_distances(embeddings: np.ndarray) -> np.ndarray:
    """Unit rows [2n, d], pair i at rows 2i and 2i + 1 -> squared distances [n] in [0, 4]."""
    difference = embeddings[0::2] - embeddings[1::2]
    return np.square(difference).sum(axis=1)


def verify_pairs(distances: np.ndarray, same: np.ndarray, n_folds: int = N_FOLDS) -> Verification:
    """Cross-validated accuracy.

    Args:
        distances: float [n], squared distances.
        same: bool [n].
        n_folds: number of consecutive folds; the first n mod n_folds are one pair longer.

    Raises:
        ValueError: shapes differ, or fewer pairs than folds.
    """
    n = len(distances)
    if distances.shape != same.shape or distances.ndim != 1:
        raise ValueError(f"expected one flag per distance, got {distances.shape}, {same.shape}")
    if n < n_folds:
        raise ValueError(f"{n_folds} folds need at least {n_folds} pairs, got {n}")
    correct = (distances[None, :] < THRESHOLDS[:, None]) == same.astype(bool)[None, :]
    folds = np.array_split(np.arange(n), n_folds)
    hits = np.stack([correct[:, fold].sum(axis=1) for fold in folds])  # [fold, threshold]
    best = (hits.sum(axis=0, keepdims=True) - hits).argmax(axis=1)  # judged without the own fold
    accuracies = hits[np.arange(n_folds), best] / np.array([len(fold) for fold in folds])
    accuracy = float(accuracies.mean())
    low, high = accuracy_interval(accuracies, n)
    return Verification(accuracy, float(accuracies.std()), low, high, n)


def accuracy_interval(accuracies: np.ndarray, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a cross-validated accuracy.

    Pairs that share a person err together, and thresholds chosen on other pairs add spread, so n
    pairs tell less than n independent ones. Folds, whose people are distinct in LFW, show how much:
    the variance between them over that of independent pairs is the design effect, at least 1, by
    which n is divided. Ten folds tell a variance roughly, and choosing a threshold binds them
    together, so that they show too little of it: Student's t stands for the normal quantile.

    Args:
        accuracies: accuracy of each fold [k], k >= 2.
        n: number of pairs of all folds.
        level: confidence level, in (0, 1).

    Returns:
        Wilson's limits for n / design effect pairs, with Student's quantile of k - 1 degrees of
        freedom.
    """
    folds = len(accuracies)
    accuracy = float(accuracies.mean())
    independent = accuracy * (1.0 - accuracy) / n
    between = float(accuracies.var(ddof=1)) / folds
    effect = max(1.0, between / independent) if independent > 0.0 else 1.0
    student = float(special.stdtrit(folds - 1, (1.0 + level) / 2.0))
    return wilson_interval(accuracy, n / effect, student)


def average_with_interval(
    accuracies: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> tuple[float, float, float]:
    """Unweighted average over benchmarks without common pairs, and its interval.

    Args:
        accuracies: one accuracy per benchmark.
        lows, highs: the limits of each.

    Returns:
        average, low, high.

    Raises:
        ValueError: no benchmark, or not two limits for each.
    """
    if not accuracies or not len(accuracies) == len(lows) == len(highs):
        raise ValueError("expected at least one benchmark and two limits for each")
    k = len(accuracies)
    below = math.sqrt(sum((a - low) ** 2 for a, low in zip(accuracies, lows, strict=True)))
    above = math.sqrt(sum((high - a) ** 2 for a, high in zip(accuracies, highs, strict=True)))
    average = sum(accuracies) / k
    return average, average - below / k, average + above / k


@dataclass(frozen=True)
class TemplateSet:
    """What a folder of templates says.

    Attributes:
        files: image paths relative to the folder's images/, one per member.
        templates, media: their template and medium, text.
        pairs: columns template_a, template_b (text), same (bool).
        tables: the two files that say so.
    """

    files: list[str]
    templates: np.ndarray
    media: np.ndarray
    pairs: pd.DataFrame
    tables: tuple[Path, Path]


def read_template_set(folder: Path, most: int | None = None) -> TemplateSet:
    """Read templates.csv (template, media, file) and pairs.csv (template_a, template_b, same).

    Either may be Parquet instead (.parquet). `same` is 0 or 1. With ``most``, so many first lines
    of a CSV.

    Raises:
        StepError: a file or a column is missing, or a value does not fit.
    """
    tables = _place(folder, "templates"), _place(folder, "pairs")
    members, pairs = _table(tables[0], MEMBERS, most), _table(tables[1], PAIRS, most)
    flags = pairs["same"].astype(str).str.lower().map({"1": 1, "0": 0, "true": 1, "false": 0})
    if flags.isna().any():
        raise StepError(f"{folder}: same in pairs is 0 or 1, found other values; correct the file")
    unsafe = [f for f in members["file"].astype(str) if Path(f).is_absolute() or ".." in f]
    if unsafe:
        raise StepError(f"{folder}: {unsafe[0]!r} in templates leads out of images/; correct it")
    pairs = pairs.astype({"template_a": str, "template_b": str}).assign(same=flags.astype(bool))
    return TemplateSet(
        files=members["file"].astype(str).tolist(),
        templates=members["template"].astype(str).to_numpy(),
        media=members["media"].astype(str).to_numpy(),
        pairs=pairs[list(PAIRS)],
        tables=tables,
    )


def pool(
    embeddings: np.ndarray, templates: np.ndarray, media: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Templates of members.

    Args:
        embeddings: float [n, d], image plus mirror image, not normalised.
        templates, media: text [n]; a medium's name counts within its template.

    Returns:
        template names (sorted), unit rows float32 [t, d].

    Raises:
        ValueError: a template whose embeddings add up to zero or are not finite.
    """
    media_means = pd.DataFrame(embeddings).groupby([templates, media]).mean()
    pooled = media_means.groupby(level=0).sum()
    return [str(name) for name in pooled.index], unit_rows(pooled.to_numpy()).astype(np.float32)


def pair_scores(pooled: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines [p] of the unit rows `first` and `second` (int [p]) of pooled [t, d]."""
    scores = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        scores[rows] = np.einsum("ij,ij->i", pooled[first[rows]], pooled[second[rows]])
    return scores


def tpr_at_fmr(genuine: np.ndarray, impostor: np.ndarray, fmr: float) -> tuple[float, float] | None:
    """Share of genuine scores above the lowest threshold whose false match rate is at most `fmr`.

    Args:
        genuine, impostor: scores [g], [i], higher is more alike.
        fmr: false match rate, in (0, 1).

    Returns:
        (true positive rate, the impostor score that a match has to exceed); None where there are
        fewer than 1 / fmr impostors, too few to measure it, or no genuine score.
    """
    allowed = int(np.floor(fmr * len(impostor) + 1e-9))
    if allowed < 1 or allowed >= len(impostor) or not len(genuine):
        return None
    threshold = float(np.partition(impostor, -allowed - 1)[-allowed - 1])
    return float((genuine > threshold).mean()), threshold


def template_rates(
    found: TemplateSet, kept: np.ndarray, embeddings: np.ndarray, fmrs: Sequence[float]
) -> list[dict[str, object]]:
    """True positive rates of a set of templates, a row for each false match rate.

    Args:
        found: the set.
        kept: int [n], positions of the members that could be embedded; pairs of a template without
            any are left out.
        embeddings: float [n, d], image plus mirror image, not normalised.
        fmrs: false match rates, in (0, 1).

    Returns:
        rows with the keys TEMPLATE_COLUMNS; tpr, its interval and the threshold are None where
        there are too few impostors to measure the rate.

    Raises:
        ValueError: see :func:`pool`.
    """
    names, pooled = pool(embeddings, found.templates[kept], found.media[kept])
    row_of = {name: i for i, name in enumerate(names)}
    sides = [found.pairs[name].map(row_of) for name in ("template_a", "template_b")]
    there = (sides[0].notna() & sides[1].notna()).to_numpy()
    first, second = (side[there].to_numpy(dtype=np.int64) for side in sides)
    scores, same = pair_scores(pooled, first, second), found.pairs["same"].to_numpy()[there]
    genuine, impostor = scores[same], scores[~same]
    counts = {
        "n_genuine": len(genuine),
        "n_impostor": len(impostor),
        "n_templates": len(names),
        "images_left_out": len(found.files) - len(kept),
        "pairs_left_out": int((~there).sum()),
    }
    rows: list[dict[str, object]] = []
    for fmr in fmrs:
        row: dict[str, object] = dict.fromkeys(TEMPLATE_COLUMNS)
        measured = tpr_at_fmr(genuine, impostor, fmr)
        if measured is not None:
            low, high = wilson_interval(measured[0], len(genuine))
            row |= {"tpr": measured[0], "low": low, "high": high, "threshold": measured[1]}
        rows.append(row | {"fmr": fmr} | counts)
    return rows


def _place(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.csv", folder / f"{name}.parquet"):
        if path.is_file():
            return path
    raise StepError(f"{folder} has neither {name}.csv nor {name}.parquet; put one there")


def _table(path: Path, columns: tuple[str, ...], most: int | None) -> pd.DataFrame:
    try:
        csv = path.suffix == ".csv"
        table = pd.read_csv(path, dtype=str, nrows=most) if csv else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise StepError(f"{path} cannot be read ({error}); write it anew") from error
    missing = [column for column in columns if column not in table]
    if missing or table.empty or table[list(columns)].isna().any(axis=None):
        what = f"lacks {', '.join(missing)}" if missing else "has no rows, or empty cells"
        raise StepError(f"{path} {what}; expected the columns {', '.join(columns)}")
    return table
