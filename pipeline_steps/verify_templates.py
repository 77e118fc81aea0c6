"""Test a trained recogniser on sets of templates (IJB-B and IJB-C, or one's own in their layout).

In:  a model of the recognise step; folders with images/ (aligned, 112 x 112), templates.csv or
     .parquet (template, media, file) and pairs.csv or .parquet (template_a, template_b, same).
Out: templates.csv: set, fmr, tpr, low, high, threshold, n_genuine, n_impostor, n_templates,
     images_left_out, pairs_left_out. tpr is empty where there are too few impostors to measure the
     rate. low and high: 95 % Wilson interval over genuine pairs. Images that cannot be read are
     left out, and pairs of a template of which no image is left. Beside it templates.record.json:
     the hashes of model and tables.

Source: see pipeline_steps.recognition.protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline_steps.io.tables import write_csv
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.recognition import VerifyTemplatesSettings


def run(
    frozen: Frozen[VerifyTemplatesSettings],
    *,
    model: Path,
    sets: Sequence[Path],
    out: Path,
    device: str = "cpu",
) -> None:
    """Verify one model on each set and write the table.

    Args:
        frozen: The step's configuration.
        model: model.safetensors of the recognise step.
        sets: Folders of templates; a set is called by its folder's name.
        out: CSV file to write.
        device: cpu or cuda.

    Raises:
        StepError: an unusable model or set.
    """
    import numpy as np

    from pipeline_steps.recognition.backbones import embed, load_backbone, to_device
    from pipeline_steps.recognition.dataset import NothingToTrain, read_in_parts
    from pipeline_steps.recognition.protocol import (
        TEMPLATE_COLUMNS,
        read_template_set,
        template_rates,
    )

    rows: list[dict[str, object]] = []
    tables: list[Path] = []
    try:
        backbone, built_as, _ = load_backbone(model)
        network = to_device(backbone, device)
    except NothingToTrain as error:
        get_logger("verify_templates").warning("%s is empty: %s", model, error)
        sets = ()
    for folder in sets:
        found = read_template_set(folder)
        tables += found.tables
        kept: list[int] = []
        sums = []
        for positions, images in read_in_parts(folder / "images", found.files):
            kept += positions
            sums.append(embed(network, images, input_size=built_as.input_size))
        if not kept:
            raise StepError(f"{folder}/images has none of the images that templates names")
        settings = frozen.settings
        try:
            rates = template_rates(found, np.array(kept), np.concatenate(sums), settings.fmrs)
        except ValueError as error:
            raise StepError(f"cannot verify {model} on {folder}: {error}") from error
        get_logger("verify_templates").info("%s: %s", folder.name, rates[0])
        rows += [{"set": folder.name, **row} for row in rates]
    write_csv(out, rows, ("set", *TEMPLATE_COLUMNS))
    write_record(record_place(out), frozen, [out], [model, *tables])


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
