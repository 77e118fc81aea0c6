"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.evidence.findings import ImageCount, OrderClaim
from pipeline_steps.files.errors import StepError

TEMPLATE = Path(__file__).with_name("page.html.j2")
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
SECTIONS = (
    ("findings", "Findings"),
    ("images", "Images"),
    ("tables", "Tables"),
    ("dropped", "Images left out"),
)


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        name: anchor.
        caption, alt: texts above it and in its place.
        uri: data URI.
    """

    name: str
    caption: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Page:
    """What the page holds, from top to bottom.

    Attributes:
        title, study, lead: headline, name of the study, and a sentence on what was run.
        facts: (name, value) of the tiles at the top.
        findings: (heading, sentences).
        claims: rows of the table of Fisher ratios; all with equally many methods.
        pictures: figures; the first opens the page.
        tables: HTML of the tables.
        counts: images of every manifest.
        provenance: see `provenance_excerpt`; empty leaves the section out.
    """

    title: str
    study: str
    lead: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[tuple[str, Sequence[str]]]
    claims: Sequence[OrderClaim]
    pictures: Sequence[Picture]
    tables: Sequence[str]
    counts: Sequence[ImageCount]
    provenance: Mapping[str, Any]


def render(page: Page) -> str:
    """The page as HTML; everything but the ready-made tables is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    provenance = [("provenance", "Where it comes from")] if page.provenance else []
    content = vars(page) | {
        "sections": [*SECTIONS, *provenance],
        "tables": [Markup(table) for table in page.tables],
    }
    return template.render(content) + "\n"


def data_uri(path: Path) -> str:
    """The image file as a data URI.

    Raises:
        StepError: the file is missing.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StepError(f"figure {path} is missing: run the figures step first") from error
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def provenance_excerpt(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, steps and weights of a provenance file that a reader wants to see."""
    hardware = provenance.get("hardware") or {}
    versions = provenance.get("versions") or {}
    code = provenance.get("code") or {}
    revision = str(code.get("revision", "not under version control"))
    if code.get("changed_files"):
        revision += f", {len(code['changed_files'])} files changed since"
    gpus = ", ".join(hardware.get("gpus") or ()) or "none"
    shown = ("python", "torch", "diffusers", "transformers", "numpy", "snakemake")
    facts = [
        ("Code", revision),
        ("Processor", f"{hardware.get('processor', '')}, {hardware.get('cores', '?')} cores"),
        ("GPU", gpus),
        ("System", str(hardware.get("system", ""))),
        ("Software", ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)),
    ]
    for name, source in (provenance.get("sources") or {}).items():
        facts.append((f"Source {Path(name).name}", f"SHA-256 {source.get('sha256', '')}"))
    steps = [
        {
            "name": name,
            "jobs": int(entry.get("jobs", 0)),
            "wall": f"{entry.get('wall_seconds', 0):.0f}",
            "processor": f"{entry.get('processor_seconds', 0):.0f}",
            "memory": f"{entry.get('memory_mib', 0):.0f}",
        }
        for name, entry in (provenance.get("steps") or {}).items()
    ]
    weights = [
        {
            "name": name,
            "source": entry.get("source", ""),
            "licence": entry.get("licence", ""),
            "commercial_use": bool(entry.get("commercial_use")),
        }
        for name, entry in (provenance.get("weights") or {}).items()
    ]
    return {"facts": facts, "steps": steps, "weights": weights}
