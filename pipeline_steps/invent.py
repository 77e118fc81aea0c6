"""Invent people who do not exist: for each a direction of the recogniser's embedding space.

In:  features of the in-the-wild images and of the photographs by the study's recogniser.
Out: <out>/identities.csv          MU_1, MU_2, ..., the contract of prepare's table;
     <out>/targets.safetensors     `embeddings` float32 [n, d], rows of length 1, the anchors w;
                                   `files` in the metadata: whose each is;
     <out>/manifest.parquet        no photograph;
     <out>/report.json             how far apart they are, and how many were refused.
     An anchor that is too much like a real person, or like another anchor, is refused and another
     one taken in its place.

Source: ID3 (Xu et al., NeurIPS 2024): anchors by Tammes' problem. Not in the paper: the refusals,
and anchors that are pulled towards faces. These are mixtures of several people, since those of one
are somebody's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.identities.anchors import (
    Anchors,
    on_manifold,
    random_anchors,
    refused,
    tammes,
)
from pipeline_steps.identities.dataset import TARGETS
from pipeline_steps.io.atomic import write_json, write_text
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.naming import NOBODY
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import numpy_generator
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import InventSettings

PREFIX = "MU_"  # no photograph's identity begins so
ROUNDS = 4
MIXTURES = 8  # of faces, for each anchor; they go to the nearest ones


def run(frozen: Frozen[InventSettings], *, faces: Sequence[Path], out: Path) -> None:
    """Invent the people of a study and write what describes them.

    Args:
        frozen: The step's configuration, with the role recogniser.
        faces: Features of real people by that recogniser; the first file's are what anchors are
            pulled towards.
        out: Folder of the people.

    Raises:
        StepError: too few directions are far enough from everybody.
    """
    settings = frozen.settings
    loaded = [load_features(path) for path in faces]
    names = [
        f"{path.parent.name}/{file}"
        for path, of in zip(faces, loaded, strict=True)
        for file in of.files
    ]
    real = np.concatenate([of.features for of in loaded])
    wanted, drawn = settings.people, settings.people
    for _ in range(ROUNDS):
        anchors = directions(drawn, loaded[0].features, settings, frozen.seed)
        reasons = refused(anchors, real, names, settings.most_alike)
        kept = [row for row in range(drawn) if row not in reasons]
        if len(kept) >= wanted:
            break
        if len(kept) < wanted / 8:  # more of the same would not do
            break
        drawn += 2 * (wanted - len(kept))
    if len(kept) < wanted:
        row, why = next(iter(reasons.items()))
        raise StepError(
            f"only {len(kept)} of {wanted} people are nobody else, e.g. anchor {row + 1} {why}: "
            "raise invent.most_alike, or choose other anchors"
        )
    log = get_logger("invent")
    for row, why in list(reasons.items())[:10]:
        log.info("anchor %d is refused: %s", row + 1, why)
    chosen = anchors[kept[:wanted]].astype(np.float32)
    people = [f"{PREFIX}{k + 1}" for k in range(wanted)]
    header = embedded_by(frozen.weights["recogniser"])
    write_text(out / "identities.csv", table(people))
    write_manifest(out / "manifest.parquet", [], ("identity", "file", "sha256", "kept", "reason"))
    save_features(out / TARGETS, chosen, people, key="embeddings", **header)
    others = chosen @ chosen.T - 2 * np.eye(wanted, dtype=np.float32)
    told = {
        "people": wanted,
        "anchors": settings.anchors,
        "refused": len(reasons),
        "largest_cosine_to_another": round(float(others.max()), 4),
        "largest_cosine_to_a_real_person": round(float((chosen @ real.T).max()), 4),
    }
    write_json(out / "report.json", told)
    log.info("%s", told)


def directions(
    count: int, faces: NDArray[np.float32], settings: InventSettings, seed: int
) -> Anchors:
    """So many anchors, float64 [count, d] of length 1."""
    width = faces.shape[1]
    if settings.anchors == "random":
        return random_anchors(count, width, seed)
    spread = tammes(count, width, seed)
    if settings.anchors == "tammes":
        return spread
    rng = numpy_generator(seed, "invent", "mixtures")
    mixed = faces[rng.integers(len(faces), size=(MIXTURES * count, settings.mixed))].mean(axis=1)
    return on_manifold(spread, mixed, settings.pull)


def table(people: Sequence[str]) -> str:
    """The text of identities.csv."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["identity", "gender", "n_images", "source", "consent", "folder"])
    rows.writerows([name, "", 0, "invented", NOBODY, ""] for name in people)
    return buffer.getvalue()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
