"""The page of an audit: suspicious image pairs side by side, with what is suspicious about them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_steps.evidence.audit.verdicts import CHECKS
from pipeline_steps.evidence.report.pages import html_environment
from pipeline_steps.evidence.tables.names import Names
from pipeline_steps.evidence.tables.variants import variant_name
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.study.settings.evidence import AuditSettings
from pipeline_steps.study.sources import Source

TEMPLATE = "pair_page.html.j2"
JPEG_QUALITY = 90

# Check -> heading, what the number under a pair is, what an unsuspicious pair shows.
CHECK_TEXTS = {
    "swaps": (
        "Does an image show another consented person?",
        "Left: the image. Right: the closest photograph of the person whom it resembles most. "
        "Number: mean similarity to that person’s photographs.",
    ),
    "collisions": (
        "Are two generated identities one?",
        "A typical pair of images of the two identities. Number: median similarity of all pairs.",
    ),
    "copies": (
        "Does an image repeat a photograph?",
        "Left: the image. Right: the photograph that is closest in pixels. Number: agreement of "
        "the pixels, 1 for an exact copy.",
    ),
    "strangers": (
        "Does an image show somebody who never consented?",
        "Left: the image. Right: the closest image of the in-the-wild set. Number: their "
        "similarity.",
    ),
}


def with_pictures(
    pairs: Sequence[Mapping[str, Any]], folders: Mapping[str, Path | None]
) -> list[dict[str, Any]]:
    """Pairs with both images as data URIs, `picture` and `other_picture`; "" where there is none.

    Args:
        pairs: rows of an audit's pairs.
        folders: set of images (generated, real, wild) to the folder of its aligned images.
    """
    return [
        dict(pair)
        | {
            "picture": _picture(folders["generated"], str(pair["file"])),
            "other_picture": _picture(folders[str(pair["other_set"])], str(pair["other_file"])),
        }
        for pair in pairs
    ]


def by_check(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs under the heading and explanation of their check, for the template."""
    return [
        {
            "check": check,
            "heading": CHECK_TEXTS[check][0],
            "explanation": CHECK_TEXTS[check][1],
            "pairs": [pair for pair in pairs if pair["check"] == check],
        }
        for check in CHECKS
    ]


def render_pairs(
    study: str,
    source: Source,
    summary: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]],
    settings: AuditSettings,
) -> str:
    """The page as HTML.

    Args:
        study: name of the study.
        source: the variant.
        summary: the audit's row of counts and verdicts.
        pairs: from :func:`with_pictures`.
        settings: rates and display names.
    """
    names = Names(settings.labels)
    template = html_environment().get_template(TEMPLATE)
    return template.render(
        study=study,
        variant=variant_name(source, names),
        recogniser=names(str(summary["recogniser"])),
        summary=summary,
        checks=by_check(pairs),
        settings=settings,
    )


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
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
