"""Manifests: one Parquet row per image, deterministic bytes, rejected images included.

A rejected image is a row with ``kept`` false and a short ``reason``; a kept one has an empty
reason.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.runtime.errors import StepError

# Columns whose type must not depend on the rows that happen to be there (all None, all ints, ...).
COLUMN_TYPES: dict[str, pa.DataType] = {
    "identity": pa.string(),
    "file": pa.string(),
    "source": pa.string(),
    "source_file": pa.string(),
    "sha256": pa.string(),
    "source_sha256": pa.string(),
    "weights_sha256": pa.string(),
    "weights_source": pa.string(),
    "reason": pa.string(),
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "scheduler": pa.string(),
    "base_model": pa.string(),
    "method": pa.string(),
    "prompts": pa.string(),
    "camera": pa.int64(),
    "position": pa.int64(),
    "index": pa.int64(),
    "attempt": pa.int64(),
    "seed": pa.int64(),
    "steps": pa.int64(),
    "guidance": pa.float64(),
    "similarity": pa.float64(),
    "quality": pa.float64(),
    "probability": pa.float64(),
    "kept": pa.bool_(),
    "box": pa.list_(pa.float64()),
    "landmarks": pa.list_(pa.float64()),
    "target": pa.list_(pa.float32()),
}


def write_manifest(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    versions: Sequence[str] = (),
) -> None:
    """Write rows as Parquet, atomically; equal rows give equal bytes.

    Args:
        path: The file to write.
        rows: One mapping per row, or a data frame (its index is dropped). Values may be NumPy
            scalars and arrays; missing values are None.
        columns: Columns and their order. None: those of the first row or of the frame.
        versions: Notes on the libraries behind the rows, see ``study.versions``.

    Raises:
        StepError: a row has a column that ``columns`` lacks, or a value of the wrong type, or a
            declared column holds a number that is not finite.
    """
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)
    if columns is None:
        first = rows.columns if isinstance(rows, pd.DataFrame) else (records[0] if records else ())
        columns = [str(name) for name in first]
    extra = {str(name) for row in records for name in row} - set(columns)
    if extra:
        raise StepError(f"{path}: rows have columns {sorted(extra)} that are not declared")
    arrays = []
    for name in columns:
        values = [_plain(row.get(name)) for row in records]
        if name in COLUMN_TYPES and not all(map(_is_finite, values)):
            raise StepError(f"{path}: column {name!r} holds numbers that are not finite")
        try:
            arrays.append(pa.array(values, type=COLUMN_TYPES.get(name)))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise StepError(f"{path}: column {name!r} holds unfit values: {error}") from error
    write_table(path, pa.table(arrays, names=list(columns)), versions=versions)


def write_table(
    path: str | os.PathLike[str], table: pa.Table, *, versions: Sequence[str] = ()
) -> None:
    """Write a manifest's rows as Arrow has them; see :func:`write_manifest`."""
    noted = {"versions": json.dumps(list(versions))} if versions else None
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(noted), temporary, compression="zstd")


def join_manifests(
    path: str | os.PathLike[str],
    parts: Sequence[str | os.PathLike[str]],
    *,
    versions: Sequence[str] = (),
    **notes: str,
) -> None:
    """Write manifests of the same columns one after the other as one, and notes in its schema."""
    noted = {"versions": json.dumps(list(versions))} if versions else {}
    schema = pq.read_schema(parts[0]).with_metadata(noted | notes)
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


def read_manifest(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a manifest.

    Args:
        path: A file written by :func:`write_manifest`.
        columns: Columns that have to be there; others are read all the same.

    Returns:
        A row per image. List columns hold NumPy arrays, or None where there is nothing.

    Raises:
        StepError: the file is missing, is no Parquet file, or lacks a column.
    """
    return read_table(path, columns).to_pandas()


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """As :func:`read_manifest`, as Arrow has it."""
    if not Path(path).is_file():
        raise StepError(f"manifest {path} is missing: run the step that writes it first")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"manifest {path} is broken ({error}): delete it and run again") from error
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise StepError(f"manifest {path} lacks the columns {missing}; it has {table.column_names}")
    return table


def noted_versions(path: str | os.PathLike[str]) -> list[str]:
    """The notes that :func:`write_manifest` was given."""
    noted = (pq.read_schema(path).metadata or {}).get(b"versions", b"[]")
    return [str(note) for note in json.loads(noted)]


def _is_finite(value: Any) -> bool:
    """False for infinity, and for lists with it or with something missing."""
    if isinstance(value, list):
        return all(item is not None and _is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _plain(value: Any) -> Any:
    """A Python value that Arrow reads the same way whatever library it came from."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.ravel().tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float) and np.isnan(value):
        return None
    return value
