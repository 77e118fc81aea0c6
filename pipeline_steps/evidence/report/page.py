"""Pages from templates: the report, audits, a dataset's card; and what is put into them.

An HTML page is whole: its stylesheet, images and files are inside it, and it loads nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_steps.evidence.names import Names, source_key
from pipeline_steps.evidence.tables.table import minus, pipe_table
from pipeline_steps.identities.participants import NO_CONSENT
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import source_of

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
}
JPEG_QUALITY = 90


def render(template: str, **content: Any) -> str:
    """A template of this folder, filled: HTML is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=lambda name: ".html" in (name or ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["stylesheet"] = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    environment.filters |= {"minus": minus, "pipe_table": pipe_table}
    environment.filters["upper_first"] = lambda text: text[:1].upper() + text[1:]
    return environment.get_template(template).render(content)


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
    return _uri(MEDIA_TYPES[path.suffix], content)


def with_pictures(
    pairs: Iterable[Mapping[Any, Any]], folders: Mapping[str, Path | None]
) -> list[dict[str, Any]]:
    """Pairs of an audit with both images as data URIs, "" where there is none.

    `folders`: set of images (generated, real, wild) to the folder of its aligned images.
    """
    return [
        dict(pair)
        | {
            "picture": _picture(folders["generated"], str(pair["file"])),
            "other_picture": _picture(folders[str(pair["other_set"])], str(pair["other_file"])),
        }
        for pair in pairs
    ]


@dataclass(frozen=True)
class ImageCount:
    """Images of one manifest."""

    kind: str  # "photographs", "reference" (aligned) or "generated" (aligned)
    what: str  # name as shown
    images: int
    kept: int
    reasons: str  # of those left out with their counts, most frequent first


def count_images(kind: str, what: str, manifest: pd.DataFrame) -> ImageCount:
    """Counts of a manifest with the columns kept and reason."""
    kept = manifest["kept"].astype(bool)
    reasons = manifest.loc[~kept, "reason"].fillna("").replace("", "no reason given")
    counts = sorted(reasons.value_counts().items(), key=lambda item: (-int(item[1]), str(item[0])))
    told = ", ".join(f"{reason} ({count})" for reason, count in counts)
    return ImageCount(kind, what, len(manifest), int(kept.sum()), told)


def counts_of(dataset: Path | None, aligned: Sequence[Path], names: Names) -> list[ImageCount]:
    """Images of every manifest: of the photographs, then of the aligned sets."""
    found = []
    if dataset is not None:
        frame = read_manifest(dataset, ["kept", "reason"])
        found.append(count_images("photographs", "Photographs, prepared", frame))
    sources = {source_of(path, "aligned"): path for path in aligned}
    for source in sorted(sources, key=lambda s: (not s.is_reference, source_key(s))):
        frame = read_manifest(sources[source], ["kept", "reason"])
        given = source.is_reference or source.is_external
        kind = "reference" if given else "generated"
        what = names.variant(source) + ", aligned" * given
        found.append(count_images(kind, what, frame))
    return found


def people_in(dataset: Path) -> str:
    """How many identities have a kept photograph, of how many who consent: "20 of 21", or "21"."""
    frame = read_manifest(dataset, ["identity", "kept", "reason"]).dropna(subset=["identity"])
    frame = frame[~frame["reason"].astype(str).str.startswith(NO_CONSENT)]
    used = frame.loc[frame["kept"].astype(bool), "identity"].nunique()
    everybody = frame["identity"].nunique()
    return str(used) if used == everybody else f"{used} of {everybody}"


def _picture(folder: Path | None, file: str) -> str:
    from PIL import Image

    if folder is None:
        return ""
    try:
        image = read_image(folder / file)
    except (BadImage, OSError):
        return ""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
