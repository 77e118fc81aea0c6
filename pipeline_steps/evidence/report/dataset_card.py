"""The card of a published dataset: what it is, how good it is, and what may be done with it.

Its parts follow "Datasheets for datasets" (Gebru et al., 2021); the header is that of dataset
cards on public hubs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline_steps.io.weights import Weights
from pipeline_steps.study.settings.evidence import ExportSettings

FIGURES = {
    "quality": (
        "reference",
        "fid",
        "cmmd",
        "precision",
        "recall",
        "face_quality_mean",
        "extractors",
    ),
    "identity": ("versus", "recogniser", "eer", "eer_low", "eer_high", "fmr100", "fdr"),
}
HEADS = {"fid": "Fréchet distance"}  # an FID only where the extractor is Inception-v3
METHODS = {
    "untuned": "the base model as it is: no identity of a photographed person",
    "dreambooth": "DreamBooth (Ruiz et al., CVPR 2023)",
    "portraitbooth": "the identity loss of PortraitBooth (Peng et al., CVPR 2024)",
    "idbooth": "ID-Booth's triplet identity loss (Tomašević et al., FG 2025)",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        settings: Layout, title, licence and contact.
        study: Name of the study.
        variant: base_model, method and prompts.
        metadata: A row per image.
        identities: The identity table's rows of the people in the dataset.
        left_out: Reason to number of images that were generated and left out.
        tables: Name to the rows of the study's tables about this variant.
        weights: Role to registry entry.
    """

    settings: ExportSettings
    study: str
    variant: Mapping[str, str]
    metadata: pd.DataFrame
    identities: pd.DataFrame
    left_out: Mapping[str, int]
    tables: Mapping[str, pd.DataFrame]
    weights: Mapping[str, Weights]


def dataset_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    settings, method = facts.settings, facts.variant["method"]
    people = facts.metadata["identity"].nunique()
    left_out = ", ".join(f"{n} {reason}" for reason, n in facts.left_out.items()) or "none"
    parts = [
        _header(settings),
        f"# {settings.title}",
        f"{len(facts.metadata)} generated face images of {people} people who are photographed in "
        f"the source dataset. Study {facts.study}: base model {facts.variant['base_model']}, "
        f"method {METHODS.get(method, method)}, prompts {facts.variant['prompts']}.",
        "## Content",
        _content(settings),
        "Every image has a row in `metadata.csv` and `metadata.parquet`: file, identity, prompt, "
        "seed, sampling settings, hashes of the weights and of the image. `SHA256SUMS` lists all "
        "files: `sha256sum --check SHA256SUMS`.",
        f"Generated and left out: {left_out}.",
        "## Consent",
        _consent(facts.identities),
        "The images depict these people: they are biometric data of theirs, synthetic or not. Who "
        "withdraws consent is removed from the source and from the next release; remove them from "
        f"your copy too. {_contact(settings)}",
        "## Measured",
        *(_table(name, frame) for name, frame in facts.tables.items() if len(frame)),
        "## Weights and their licences",
        _weights(facts.weights),
        "## Known limits",
        "The images inherit what their base model and the photographs lack: ages, skin tones, "
        "poses and light that are rare there are rare or wrong here. Numbers above that were "
        "measured by the recogniser that took part in training favour the methods that it "
        "trained.",
        "## Source",
        "Method and evaluation: Tomašević et al., ID-Booth: Identity-consistent face generation "
        "with diffusion models, FG 2025.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(settings: ExportSettings) -> str:
    licence = settings.licence or "unknown"
    tags = ["synthetic", "face-recognition", "biometrics"]
    return "\n".join(["---", f"license: {licence}", f"tags: [{', '.join(tags)}]", "---"])


def _content(settings: ExportSettings) -> str:
    size = {
        "aligned": "Faces on the ArcFace template, 112 x 112 pixels, RGB",
        "samples": "Generated images in full, RGB",
    }[settings.images]
    place = {
        "folders": f"`images/<identity>/<index>.{settings.image_format}`",
        "reference": f"`<identity>/<index>.{settings.image_format}`",
        "webdataset": "`shards/*.tar` (WebDataset: an image and a JSON per sample)",
    }[settings.layout]
    return f"{size}: {place}."


def _consent(identities: pd.DataFrame) -> str:
    counts = identities["consent"].value_counts().sort_index()
    return "\n".join(f"- {number} people: {text}" for text, number in counts.items())


def _contact(settings: ExportSettings) -> str:
    return f"Contact: {settings.contact}." if settings.contact else "Contact: not stated."


def _weights(weights: Mapping[str, Weights]) -> str:
    rows = [
        (role, entry.name, entry.licence, "yes" if entry.commercial_use else "no")
        for role, entry in sorted(weights.items())
    ]
    return _markdown(("role", "weights", "licence", "commercial use"), rows)


def _table(name: str, frame: pd.DataFrame) -> str:
    columns = [column for column in FIGURES.get(name, ()) if column in frame.columns]
    rows = [[_number(row[column]) for column in columns] for _, row in frame.iterrows()]
    heads = [HEADS.get(column, column.replace("_", " ")) for column in columns]
    return f"{name.capitalize()}:\n\n{_markdown(heads, rows)}"


def _number(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
