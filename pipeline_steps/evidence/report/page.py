"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.evidence.audit.verdicts import VERDICTS
from pipeline_steps.evidence.report.findings import OrderClaim
from pipeline_steps.evidence.report.image_counts import ImageCount
from pipeline_steps.evidence.report.pages import html_environment
from pipeline_steps.evidence.tables.layout import Table
from pipeline_steps.evidence.tables.markup import to_html
from pipeline_steps.runtime.errors import StepError

TEMPLATE = "page.html.j2"
MEDIA_TYPES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
}


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        name: anchor.
        caption, alt: texts below it and in its place.
        uri: data URI.
    """

    name: str
    caption: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Download:
    """A file inside the page: its name, and a data URI."""

    name: str
    uri: str


@dataclass(frozen=True)
class TableGroup:
    """Tables of one kind and the files that hold them."""

    title: str
    tables: Sequence[Table]
    downloads: Sequence[Download]


@dataclass(frozen=True)
class VariantAudit:
    """One variant's audit.

    Attributes:
        name: as shown.
        summary: its row of counts and verdicts.
        pairs: the pairs to look at, with pictures (see `pair_page.with_pictures`).
    """

    name: str
    summary: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """What the page holds, from top to bottom.

    Attributes:
        title, study, lead: headline, name of the study, and a sentence on what was run.
        facts: (name, value) of the numbers at the top.
        findings: (heading, sentences).
        claims: rows of the table of Fisher ratios; all with equally many methods.
        claims_file: the file with all differences; None where there is none.
        audits: audits of the variants; empty leaves the section out.
        pictures: figures; the first opens the page.
        tables: tables by kind.
        counts: images of every manifest.
        provenance: see `provenance_excerpt`; empty leaves the section out.
    """

    title: str
    study: str
    lead: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[tuple[str, Sequence[str]]]
    claims: Sequence[OrderClaim]
    claims_file: Download | None
    audits: Sequence[VariantAudit]
    pictures: Sequence[Picture]
    tables: Sequence[TableGroup]
    counts: Sequence[ImageCount]
    provenance: Mapping[str, Any]


def render(page: Page) -> str:
    """The page as HTML; everything is escaped."""
    from markupsafe import Markup

    template = html_environment().get_template(TEMPLATE)
    return template.render(
        vars(page),
        table_html=lambda table: Markup(to_html(table)),
        verdict_columns=VERDICTS,
    )


def data_uri(path: Path) -> str:
    """The file as a data URI.

    Raises:
        StepError: the file is missing.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        step = "figures" if path.suffix in (".png", ".svg") else "tables"
        raise StepError(f"{path} is missing: run the {step} step first") from error
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def download(path: Path) -> Download:
    """The file as a link of the page that saves it. Raises StepError where it is missing."""
    return Download(path.name, data_uri(path))


def provenance_excerpt(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, steps and weights of a provenance file that a reader wants to see."""
    hardware = provenance.get("hardware") or {}
    versions = provenance.get("versions") or {}
    code = provenance.get("code") or {}
    revision = str(code.get("revision", "not under version control"))
    if code.get("changed_files"):
        revision += f", {len(code['changed_files'])} files changed since"
    machines = provenance.get("machines") or ()
    gpus = ", ".join(sorted({machine["gpu"] for machine in machines if machine["gpu"]})) or "none"
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
