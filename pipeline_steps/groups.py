"""Compare groups of the study's people in one set of images: whom does it fail?

In:  features of the set and of the photographs by the judges, of face quality and of skin tone;
     the manifest of the set's aligned images; the table of identities, and the participants'
     table where groups share what a further column of it says.
Out: groups/<source>/groups.csv, a row for each judge and group, and one with the ratios of the
     worst group to the best; beside it a record.
     Skin tone is a person's median Individual Typology Angle over the photographs, in six classes.

Source: what stands in pipeline_steps.faces.skin and pipeline_steps.evidence.scores.groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline_steps.evidence.names import order_key
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS, Grouped, Row, group_rows
from pipeline_steps.evidence.scores.sets import ImageSet, Loaded
from pipeline_steps.faces.skin import skin_class
from pipeline_steps.identities.participants import read_columns
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tables import read_csv, write_csv
from pipeline_steps.naming import REAL
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.record import check_same_extractor, write_record
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import GroupsSettings
from pipeline_steps.study.source import Source

TASKS = ("recogniser", "quality", "skin_tone")


def run(
    frozen: Frozen[GroupsSettings],
    *,
    real: Sequence[Path],
    aligned: Path,
    identities: Path,
    out: Path,
    variant_features: Sequence[Path] = (),
    participants: Path | None = None,
) -> list[Row]:
    """Compare the groups and write the table.

    Args:
        frozen: The step's configuration.
        real: Features of the photographs, by judges, of quality and of skin tone.
        aligned: Manifest of the aligned images of the set.
        identities: Identity table of the prepare step.
        out: CSV file to write.
        variant_features: The same features of the set; none: the photographs are the set.
        participants: The participants' table, for further columns.

    Returns:
        The rows.

    Raises:
        StepError: features of other images or of no judge, or a column that no table has.
    """
    loaded = Loaded(list(dict.fromkeys(path.stem for path in real)))
    photographs = loaded.set_of(real, "--real", Source(REAL))
    variant = loaded.set_of(variant_features, "--variant-features")
    check_same_extractor(loaded.headers)
    if photographs is None:
        raise StepError("groups need the consented photographs: pass --real")
    by_task: dict[str, list[str]] = {task: [] for task in TASKS}
    for path, header in loaded.headers[: len(loaded.extractors)]:
        by_task.setdefault(header.get("task", ""), []).append(path.stem)
    if missing := [task for task in TASKS if not by_task[task]]:
        raise StepError(f"--real holds no features of the task {' and '.join(missing)}")
    (judges, [quality, *_], [skin_tone, *_]) = (by_task[task] for task in TASKS)
    source, images = variant or photographs
    manifest = read_manifest(aligned, ("identity", "kept"))
    by_person = manifest.groupby("identity")["kept"]
    counts = pd.DataFrame({"images": by_person.size(), "faces": by_person.sum()})
    found = Grouped(images, photographs[1] if variant else None, counts, quality, skin_tone)
    settings = frozen.settings
    shared = values_of(settings.by, identities, participants, photographs[1], skin_tone)
    groups = {by: groups_of(values) for by, values in shared.items()}
    named = {name for of in groups.values() for names in of.values() for name in names}
    shown = not named.isdisjoint(counts.index)  # strangers, of whom nothing is known, have no rows
    rows = [row for j in judges if shown for row in group_rows(found, j, groups, settings)]
    write_csv(out, [source.columns | row for row in rows], GROUP_COLUMNS)
    tables = [aligned, identities, *filter(None, [participants])]
    inputs = [*(path for path, _ in loaded.headers), *tables]
    write_record(record_place(out), frozen, [out], inputs)
    get_logger("groups").info("%s: %d rows written to %s", source.name, len(rows), out)
    return rows


def values_of(
    by: Sequence[str],
    identities: Path,
    participants: Path | None,
    photographs: ImageSet,
    skin_tone: str,
) -> dict[str, dict[str, str]]:
    """What each identity has of what groups share; "" or absent where nothing is known."""
    table = read_csv(identities, ("identity", "gender"), texts=True)
    angles = photographs.features[skin_tone][:, 0]
    owners = np.asarray(photographs.identities)
    known = {
        "gender": dict(zip(table["identity"], table["gender"], strict=True)),
        "skin_tone": {
            str(name): skin_class(float(np.median(angles[owners == name])))
            for name in np.unique(owners)
        },
    }
    further = [name for name in by if name not in known]
    if further and participants is None:
        raise StepError(
            f"groups.by names {', '.join(further)}, a column of the participants' table: name that "
            "table under prepare.gender_table"
        )
    if further and participants is not None:
        known |= read_columns(participants, further, [*table["identity"]])
    return {name: known[name] for name in by}


def groups_of(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Identities of each value, in the order in which groups are shown."""
    names = sorted({value for value in values.values() if value}, key=order_key)
    return {name: [one for one, value in values.items() if value == name] for name in names}


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
