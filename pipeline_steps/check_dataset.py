"""Say whether every consenting person is in the prepared dataset, and what differs from expected.

In:  dataset/report.json and dataset/manifest.parquet of the prepare step.
Out: dataset/complete.json   identities: how many are in the dataset; left_out: who is not, and why;
                             unexpected: how it differs from prepare.expected, as in the log.

Nobody who cannot be used stops the others: everything is computed without them. But a study that
lost people unnoticed would be published with a wrong number of people, so this step, and with it
the run, ends with an error that names them, until their photographs are replaced or the
configuration says that they are to be left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import CheckDatasetSettings


def run(frozen: Frozen[CheckDatasetSettings], *, dataset: Path) -> dict[str, Any]:
    """Check a prepared dataset.

    Args:
        frozen: The step's configuration.
        dataset: Folder of the dataset; complete.json is written into it.

    Returns:
        The content of complete.json.

    Raises:
        StepError: a file is missing or broken, or people are left out who should not be.
    """
    from pipeline_steps.identities.dataset_report import sentences, unexpected

    path = dataset / "report.json"
    manifest = read_manifest(dataset / "manifest.parquet", ["source", "camera", "position"])
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        left_out: dict[str, list[str]] = report["without_image"]
        count: int = report["identities"]
        found = unexpected(report, manifest, frozen.settings.expected)
    except (OSError, ValueError, KeyError) as error:
        raise StepError(f"{path} is missing or broken ({error}): run prepare again") from error
    for sentence in sentences(found):
        get_logger("check_dataset").warning("%s", sentence)
    people = sorted(left_out, key=natural_key)
    named = "; ".join(f"{name} ({', '.join(left_out[name]) or 'empty folder'})" for name in people)
    if left_out and frozen.settings.on_empty_identity == "error":
        raise StepError(
            f"no usable photograph of {len(left_out)} of {count + len(left_out)} identities: "
            f"{named}. The others are done: replace these photographs, or set "
            "check_dataset.on_empty_identity: skip, and run again"
        )
    if left_out:
        get_logger("check_dataset").warning("left out: %s", named)
    content = {"identities": count, "left_out": left_out, "unexpected": found}
    write_json(dataset / "complete.json", content)
    return content


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
