"""1:1 verification of templates, the protocol of the IJB benchmarks.

A template is several images of one person; images from one video are one medium. Embeddings (image
plus mirror image, not normalised, so that their norms weigh them) are averaged over each medium,
added over the media of a template, and normalised; a pair's score is the cosine.

Source: Klare et al., "Pushing the Frontiers of Unconstrained Face Detection and Recognition: IARPA
Janus Benchmark A", CVPR 2015; pooling by media as in InsightFace's evaluation of IJB-B and IJB-C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline_steps.runtime.errors import StepError

BLOCK = 65536  # pairs scored at once
MEMBERS = ("template", "media", "file")
PAIRS = ("template_a", "template_b", "same")


@dataclass(frozen=True)
class TemplateSet:
    """What a folder of templates says.

    Attributes:
        files: image paths relative to the folder's images/, one per member.
        templates, media: their template and medium, text.
        pairs: columns template_a, template_b (text), same (bool).
    """

    files: list[str]
    templates: np.ndarray
    media: np.ndarray
    pairs: pd.DataFrame


def read_template_set(folder: Path) -> TemplateSet:
    """Read templates.csv (template, media, file) and pairs.csv (template_a, template_b, same).

    Either may be Parquet instead (.parquet). `same` is 0 or 1.

    Raises:
        StepError: a file or a column is missing, or a value does not fit.
    """
    members, pairs = _table(folder, "templates", MEMBERS), _table(folder, "pairs", PAIRS)
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
    names, of_template = np.unique(templates, return_inverse=True)
    _, of_medium = np.unique(media, return_inverse=True)
    keys, medium = np.unique(np.stack([of_template, of_medium]), axis=1, return_inverse=True)
    medium = medium.reshape(-1)
    means = np.zeros((keys.shape[1], embeddings.shape[1]))
    np.add.at(means, medium, embeddings)
    means /= np.bincount(medium)[:, None]
    pooled = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(pooled, keys[0], means)
    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("a template's embedding is zero or not finite; the recogniser is broken")
    return [str(name) for name in names], (pooled / norms).astype(np.float32)


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


def _table(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    for path in (folder / f"{name}.csv", folder / f"{name}.parquet"):
        if path.is_file():
            break
    else:
        raise StepError(f"{folder} has neither {name}.csv nor {name}.parquet; put one there")
    try:
        table = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise StepError(f"{path} cannot be read ({error}); write it anew") from error
    missing = [column for column in columns if column not in table]
    if missing or table.empty or table[list(columns)].isna().any(axis=None):
        what = f"lacks {', '.join(missing)}" if missing else "has no rows, or empty cells"
        raise StepError(f"{path} {what}; expected the columns {', '.join(columns)}")
    return table
