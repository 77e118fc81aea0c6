"""Test a trained recogniser on sets of templates (IJB-B and IJB-C, or one's own in their layout).

In:  a model of the recognise step; folders with images/ (aligned, 112 x 112), templates.csv or
     .parquet (template, media, file) and pairs.csv or .parquet (template_a, template_b, same).
Out: templates.csv: set, fmr, tpr, low, high, threshold, n_genuine, n_impostor, n_templates,
     images_left_out, pairs_left_out. tpr is empty where there are too few impostors to measure the
     rate. low and high: 95 % Wilson interval over genuine pairs. Images that cannot be read are
     left out, and pairs of a template of which no image is left.

Source: see pipeline_steps.recognition.protocol.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.runtime.command_line import add_paths, step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.recognition import VerifyTemplatesSettings

if TYPE_CHECKING:
    from pipeline_steps.faces.iresnet import IResNet
    from pipeline_steps.recognition.protocol import TemplateSet

CHUNK = 1024  # images in memory at once
COLUMNS = (
    *("set", "fmr", "tpr", "low", "high", "threshold", "n_genuine", "n_impostor"),
    *("n_templates", "images_left_out", "pairs_left_out"),
)


def run(
    frozen: Frozen[VerifyTemplatesSettings],
    *,
    model: Path,
    sets: Sequence[Path],
    out: Path,
    device: str = "cpu",
) -> list[dict[str, object]]:
    """Verify one model on each set and write the table.

    Args:
        frozen: the step's configuration.
        model: model.safetensors of the recognise step.
        sets: folders; a set is called by its folder's name.
        out: CSV file to write.
        device: cpu or cuda.

    Returns:
        the table's rows.

    Raises:
        StepError: an unusable model or set.
    """
    from pipeline_steps.recognition.backbones import load_backbone, to_device
    from pipeline_steps.recognition.protocol import read_template_set

    network = load_backbone(model)[0]
    to_device(network, device)
    rows: list[dict[str, object]] = []
    for folder in sets:
        try:
            found = evaluate(network, read_template_set(folder), folder, frozen.settings.fmrs)
        except ValueError as error:
            raise StepError(f"cannot verify {model} on {folder}: {error}") from error
        rows += [{"set": folder.name, **row} for row in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out, text.getvalue())
    return rows


def evaluate(
    network: IResNet, templates: TemplateSet, folder: Path, fmrs: Sequence[float]
) -> list[dict[str, object]]:
    """Rows of one set, without its name: one per false match rate."""
    from pipeline_steps.metrics.intervals import wilson_interval
    from pipeline_steps.recognition.protocol import pair_scores, pool, tpr_at_fmr

    kept, embeddings = _embed(network, folder / "images", templates.files)
    if not len(kept):
        raise StepError(f"{folder}/images has none of the images that templates names")
    names, pooled = pool(embeddings, templates.templates[kept], templates.media[kept])
    row_of = {name: i for i, name in enumerate(names)}
    first = templates.pairs["template_a"].map(row_of)
    second = templates.pairs["template_b"].map(row_of)
    there = (first.notna() & second.notna()).to_numpy()
    same = templates.pairs["same"].to_numpy()[there]
    scores = pair_scores(
        pooled, first[there].to_numpy(dtype=np.int64), second[there].to_numpy(dtype=np.int64)
    )
    genuine, impostor = scores[same], scores[~same]
    counts = {
        "n_genuine": len(genuine),
        "n_impostor": len(impostor),
        "n_templates": len(names),
        "images_left_out": len(templates.files) - len(kept),
        "pairs_left_out": int((~there).sum()),
    }
    get_logger("verify_templates").info("%s: %s", folder.name, counts)
    rows: list[dict[str, object]] = []
    for fmr in fmrs:
        found = tpr_at_fmr(genuine, impostor, fmr)
        measured = {"tpr": "", "low": "", "high": "", "threshold": ""}
        if found is not None:
            low, high = wilson_interval(found[0], len(genuine))
            values = (found[0], low, high, found[1])
            measured = {k: f"{v:.6f}" for k, v in zip(measured, values, strict=True)}
        rows.append({"fmr": f"{fmr:g}", **measured, **counts})
    return rows


def _embed(network: IResNet, images: Path, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the readable files, and the sums of both embeddings of each [n, d]."""
    from pipeline_steps.recognition.backbones import embed_both_ways

    kept: list[int] = []
    sums: list[np.ndarray] = [np.zeros((0, network.embedding_dim))]
    for positions, chunk in _chunks(images, files):
        plain, mirrored = embed_both_ways(network, chunk, input_size=network.input_size)
        sums.append(plain.astype(np.float64) + mirrored)
        kept += positions
    return np.array(kept, dtype=np.int64), np.concatenate(sums)


def _chunks(images: Path, files: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
    log = get_logger("verify_templates")
    positions: list[int] = []
    pixels: list[np.ndarray] = []
    for i, file in enumerate(progress(files, description="templates", total=len(files))):
        try:
            image = read_image(images / file)
            if image.shape != (112, 112, 3):
                raise BadImage(f"{image.shape[1]} x {image.shape[0]} pixels, not 112 x 112")
        except (BadImage, OSError) as error:
            log.warning("%s left out: %s", file, error)
            continue
        positions.append(i)
        pixels.append(image)
        if len(pixels) == CHUNK:
            yield positions, np.stack(pixels)
            positions, pixels = [], []
    if pixels:
        yield positions, np.stack(pixels)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("verify_templates", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model.safetensors")
    add_paths(parser, "--sets", "folders of templates", required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, VerifyTemplatesSettings)
    with gpu_lease() as device:
        run(
            frozen,
            model=arguments.model,
            sets=arguments.sets,
            out=arguments.out,
            device=device,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
