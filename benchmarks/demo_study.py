"""What a finished study of the embedded world shows, for benchmarks/demo_world.py --study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from measured import Row, mean, proportion
from numpy.typing import NDArray

from pipeline_steps.demo_world.rendering.parameters import EXPRESSIONS, PLACES
from pipeline_steps.faces.skin import REGIONS
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError

BATCH = 32
CHEEKS = REGIONS[1:]
ASKED = {
    "place": (PLACES, re.compile(r"busy (.+) environment")),
    "expression": (EXPRESSIONS, re.compile(r"(\w+) expression")),
}


def variants(study: Path, of: str) -> dict[str, Path]:
    """Manifests of a study's samples or aligned images, by "<base model> <method>, <prompts>"."""
    found = sorted(study.glob(f"{of}/*/*/*/manifest.parquet"))
    if not found:
        raise StepError(f"{study} has no {of} images: run the study first")
    return {"{} {}, {} prompts".format(*path.parts[-4:-1]): path for path in found}


def faces_found(study: Path) -> list[Row]:
    """Share of each variant's images with a face, and of the person with the fewest."""
    rows = []
    for name, path in variants(study, "aligned").items():
        frame = read_manifest(path, ("identity", "kept"))
        kept = [own["kept"].tolist() for _, own in frame.groupby("identity")]
        fewest = min(kept, key=np.mean)
        rows.append(proportion(f"face found, {name}", int(frame["kept"].sum()), len(frame)))
        rows.append(proportion("  of the worst person", sum(fewest), len(fewest)))
    return rows


def asked_of(prompt: str, what: str) -> str:
    """The place or expression that a prompt asks for; "none" where it asks for none."""
    match = ASKED[what][1].search(prompt)
    return match.group(1) if match else "none"


def read(weights: Weights, images: Sequence[NDArray[np.uint8]]) -> dict[str, list[str]]:
    """Places and expressions that the attribute network reads from images uint8 [64, 64, 3]."""
    import torch

    from pipeline_steps.faces.extractors import AttributeNet
    from pipeline_steps.faces.recogniser import load_network, to_input

    network = load_network(weights, AttributeNet.from_state_dict)
    found: dict[str, list[str]] = {what: [] for what in ASKED}
    with torch.inference_mode():
        for first in range(0, len(images), BATCH):
            x = to_input(torch.from_numpy(np.stack(images[first : first + BATCH])))
            told = network(x)
            for what, (names, _) in ASKED.items():
                found[what] += [names[int(k)] for k in told[what].argmax(1)]
    return found


def prompts_followed(study: Path, weights: Weights) -> list[Row]:
    """Share of images in which the attribute network reads the place and the expression asked for.

    Chance is 1 of 11 and 1 of 5. Methods that are told numbers and no prompts are left out.
    """
    rows = []
    for name, path in variants(study, "samples").items():
        frame = read_manifest(path, ("file", "prompt", "kept"))
        frame = frame[frame["kept"]]
        images = [read_image(path.parent / file) for file in frame["file"]]
        wanted = {what: [asked_of(prompt, what) for prompt in frame["prompt"]] for what in ASKED}
        asked = [what for what, of in wanted.items() if set(of) != {"none"}]
        found = read(weights, images) if asked else {}
        rows += [agreement(f"{what} read, {name}", found[what], wanted[what]) for what in asked]
    return rows


def agreement(what: str, found: Sequence[str], truth: Sequence[str]) -> Row:
    """How often what was read is true."""
    return proportion(what, sum(a == b for a, b in zip(found, truth, strict=True)), len(truth))


def cheeks(face: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELAB [3] of an aligned face uint8 [112, 112, 3]: medians over both cheeks."""
    lab = cv2.cvtColor(face.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    pixels = np.concatenate([lab[rows, columns].reshape(-1, 3) for rows, columns in CHEEKS])
    return np.median(pixels, axis=0)


def skin(study: Path) -> list[Row]:
    """CIE 1976 colour difference between cheeks of images and of their person's photographs.

    The mean over people of the means over their images; of photographs themselves, to the others of
    the same person, which is what light alone makes. Intervals are over people.
    """
    known = skin_of(study / "aligned" / "real" / "manifest.parquet")
    own = {
        name: (photographs - photographs.mean(0)) * n / (n - 1)
        for name, photographs in known.items()
        if (n := len(photographs)) > 1
    }
    rows = [difference("skin, photographs", own)]
    for name, path in variants(study, "aligned").items():
        shown = {k: v for k, v in skin_of(path).items() if k in known}
        from_own = {k: v - known[k].mean(0) for k, v in shown.items()}
        rows.append(difference(f"skin, {name}", from_own))
    return rows


def skin_of(manifest: Path) -> dict[str, NDArray[np.float64]]:
    """Cheeks [n, 3] of each person's aligned images."""
    frame = read_manifest(manifest, ("identity", "file", "kept"))
    frame = frame[frame["kept"]]
    colours = {
        identity: [cheeks(read_image(manifest.parent / file)) for file in rows["file"]]
        for identity, rows in frame.groupby("identity")
    }
    return {str(identity): np.array(values, float) for identity, values in colours.items()}


def difference(what: str, of: dict[str, NDArray[np.float64]]) -> Row:
    """Mean length of the differences [n, 3] of people, each of whom counts alike."""
    means = [float(np.linalg.norm(values, axis=1).mean()) for values in of.values()]
    return mean(what, means, np.random.default_rng(0))


def identity_table(study: Path) -> list[Row]:
    """EER and FDR of the study's identity table, as the study measured them."""
    path = study / "tables" / "identity.csv"
    if not path.is_file():
        raise StepError(f"{path} is missing: run the study first")
    rows = []
    for line in pd.read_csv(path).to_dict("records"):
        name = " ".join(str(line[k]) for k in ("base_model", "method", "prompts"))
        name += f", vs {line['versus']}, {line['recogniser']}"
        pairs = int(line["n_genuine"] + line["n_impostor"])
        for number in ("eer", "fdr"):
            value, *limits = (line.get(f"{number}{end}") for end in ("", "_low", "_high"))
            low, high = (None if pd.isna(limit) else float(limit) for limit in limits)
            if not pd.isna(value):
                rows.append(Row(f"{number.upper()}, {name}", float(value), low, high, pairs))
    return rows
