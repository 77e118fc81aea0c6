"""Join the shares' sample manifests of one variant into one.

In:  the manifests that the sample step wrote, one per share (--parts).
Out: one manifest with all rows, ordered by identity (ID_2 before ID_10), index and attempt.

The result does not depend on how many shares there were or in which order they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline_steps.io.manifests import read_table, write_table
from pipeline_steps.naming import VARIANT, natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.versions import versions_behind

KEY = ["identity", "index", "attempt"]


def run(*, parts: Sequence[Path], out: Path) -> pa.Table:
    """Join manifests and write the result.

    Args:
        parts: Manifests with the same columns, among them identity, index and attempt.
        out: Manifest to write.

    Returns:
        The joined rows.

    Raises:
        StepError: a part is missing or broken, parts disagree in columns or variant, an image
            occurs twice, or there is none at all.
    """
    rows = join([(str(path), read_table(path, KEY)) for path in parts])
    write_table(out, rows, versions=versions_behind(*parts))
    get_logger("gather").info("%d rows from %d parts", len(rows), len(parts))
    return rows


def join(parts: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """All rows of named manifests in natural order of identity, then by index and attempt.

    Raises:
        StepError: see :func:`run`.
    """
    filled = [(name, table) for name, table in parts if len(table)]
    if not filled:
        raise StepError("no part holds an image: the dataset has no identity to sample")
    first_name, first = filled[0]
    for name, table in filled[1:]:
        if table.column_names != first.column_names:
            raise StepError(
                f"{name} has the columns {table.column_names}, {first_name} has "
                f"{first.column_names}: sample both again with one version"
            )
    # A column may be empty in one part alone; long ones are never Python values.
    together = pa.concat_tables([table for _, table in filled], promote_options="default")
    joined = together.select([c for c in (*KEY, *VARIANT) if c in first.column_names]).to_pandas()
    for column in VARIANT:
        if column in joined and joined[column].nunique(dropna=False) > 1:
            found = sorted(map(str, joined[column].unique()))
            raise StepError(f"the parts mix {column} {', '.join(found)}: pass those of one variant")
    twice = joined[joined.duplicated(KEY)]
    if len(twice):
        row = twice.iloc[0]
        raise StepError(
            f"image {row['index']} of {row['identity']} is in two parts: pass the shares of one "
            "division only"
        )
    order = sorted(
        range(len(joined)),
        key=lambda i: (
            natural_key(joined["identity"][i]),
            int(joined["index"][i]),
            int(joined["attempt"][i]),
        ),
    )
    return together.take(order).combine_chunks()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
