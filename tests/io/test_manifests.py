from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.runtime.errors import StepError

ROWS = [
    {"identity": "ID_1", "file": "a.png", "box": [1.0, 2, 3, 4], "kept": True, "reason": ""},
    {"identity": "ID_2", "file": "b.png", "box": None, "kept": False, "reason": "no face"},
]


def test_round_trip_with_rejected_rows(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", ROWS)
    frame = read_manifest(tmp_path / "m.parquet", columns=["kept", "box"])
    assert list(frame.columns) == list(ROWS[0])
    assert frame["kept"].tolist() == [True, False]
    assert frame["box"][0].tolist() == [1, 2, 3, 4]
    assert frame["box"][1] is None
    assert frame["reason"].tolist() == ["", "no face"]


@pytest.mark.parametrize("box", [[1.0, np.nan, 3, 4], [1.0, np.inf, 3, 4]])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, box: list[float]) -> None:
    with pytest.raises(StepError, match="'box' holds numbers that are not finite"):
        write_manifest(tmp_path / "m.parquet", [{**ROWS[0], "box": box}])


def test_equal_rows_give_equal_bytes_whatever_they_are_made_of(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", ROWS)
    arrays = [{**row, "box": None if row["box"] is None else np.array(row["box"])} for row in ROWS]
    write_manifest(tmp_path / "b.parquet", pd.DataFrame(arrays, index=[7, 3]))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_column_types_do_not_depend_on_the_rows(tmp_path: Path) -> None:
    columns = ["identity", "file", "box", "probability", "kept", "reason"]
    for name, rows in (("empty", []), ("none", [dict.fromkeys(columns)]), ("full", ROWS)):
        write_manifest(tmp_path / f"{name}.parquet", rows, columns)
    import pyarrow.parquet as pq

    schemas = [pq.read_schema(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert schemas[0] == schemas[1] == schemas[2]
    assert len(read_manifest(tmp_path / "empty.parquet")) == 0


def test_undeclared_columns_and_wrong_values_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="colour"):
        write_manifest(tmp_path / "m.parquet", [{"identity": "a", "colour": 1}], ["identity"])
    with pytest.raises(StepError, match="'kept'"):
        write_manifest(tmp_path / "m.parquet", [{"kept": "perhaps"}])
    assert list(tmp_path.iterdir()) == []


def test_missing_broken_and_incomplete_files_are_step_errors(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="missing"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(StepError, match="broken"):
        read_manifest(tmp_path / "m.parquet")
    write_manifest(tmp_path / "m.parquet", ROWS)
    with pytest.raises(StepError, match="landmarks"):
        read_manifest(tmp_path / "m.parquet", columns=["landmarks"])
