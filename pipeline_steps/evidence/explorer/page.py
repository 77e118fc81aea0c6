"""The explorer's files: data as scripts, sheets of thumbnails, and the page.

A page that was opened from a file may load scripts and images beside it, but no other data. So all
data are scripts that put them into one global, EXPLORER.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.metrics.arrays import blocks, parallel
from pipeline_steps.runtime.logs import get_logger, progress

FOLDER = Path(__file__).parent
ACROSS = 5  # thumbnails in a row of a sheet, and rows: few to decode where images are sorted
IMAGES_PER_SCRIPT = 5_000
ROWS_PER_SCRIPT = 100  # of those that are loaded when an image is opened
JPEG_QUALITY = 85
DIGITS = 4
EXACT = 2**53  # the largest whole number that scripts tell from its neighbours

Json = dict[str, Any]


def write_page(
    out: Path, page: str, study: Json, items: Mapping[str, Sequence[Any]], tables: Sequence[Json]
) -> None:
    """Write the page, its data, and what it does with them.

    Args:
        out: Folder.
        page: Name of the page.
        study: What is the same for all images.
        items: Columns with a value for each image.
        tables: What manifests and tables say of each image.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    for name in ("explorer.js", "explorer.css"):
        shutil.copyfile(FOLDER / name, out / name)
    facts = study | {"count": len(tables), "across": ACROSS, "rows": ROWS_PER_SCRIPT}
    _write(out / "data/study.js", "EXPLORER", {"items": [], "rows": {}, "study": facts})
    parts = blocks(len(tables), IMAGES_PER_SCRIPT)
    for number, part in enumerate(parts):
        columns = {name: values[part] for name, values in items.items()}
        _write(out / f"data/items-{number}.js", f"EXPLORER.items[{number}]", columns)
    for number, part in enumerate(blocks(len(tables), ROWS_PER_SCRIPT)):
        _write(out / f"data/rows-{number}.js", f"EXPLORER.rows[{number}]", tables[part])
    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    filled = environment.get_template("index.html.j2").render(
        study=study["name"], report=study["report"], parts=len(parts)
    )
    (out / page).write_text(filled, encoding="utf-8")


def write_sheets(out: Path, pictures: Sequence[Path | None], side: int) -> list[int]:
    """Write thumbnails of all images, ACROSS x ACROSS in a file, in their order.

    Args:
        out: Folder.
        pictures: The images; None where there is none, whose place stays empty.
        side: Pixels at most; no thumbnail is larger than its sheet's images.

    Returns:
        For each image 1 where it has a thumbnail, else 0.
    """

    def sheet(part: slice) -> list[int]:
        images = [_read(path) for path in pictures[part]]
        cell = min(side, max((max(image.size) for image in images if image), default=1))
        canvas = Image.new("RGB", (cell * ACROSS, cell * ACROSS), "white")
        for place, image in enumerate(images):
            if image is not None:
                fitted = ImageOps.fit(image, (cell, cell), Image.Resampling.LANCZOS)
                canvas.paste(fitted, (place % ACROSS * cell, place // ACROSS * cell))
        path = out / f"{part.start // ACROSS**2}.jpg"
        canvas.save(path, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return [int(image is not None) for image in images]

    out.mkdir(parents=True)
    sheets = blocks(len(pictures), ACROSS**2)
    told = progress(parallel(sheet, sheets), description="sheets", total=len(sheets))
    return [shown for found in told for shown in found]


def _read(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    try:
        return Image.fromarray(read_image(path))
    except (BadImage, OSError) as error:
        get_logger("explore").warning("%s is not shown: %s", path, error)
        return None


def plain(value: Any, digits: int | None = DIGITS) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(of, None) for key, of in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(of, None) for of in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) > EXACT:
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, digits) if digits is not None else float(f"{value:.8g}")
    return None if value is pd.NA or value is pd.NaT else value


def beside(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _write(path: Path, name: str, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{name} = {text}\n", encoding="utf-8")
