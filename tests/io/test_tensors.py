from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline_steps.io.tensors import load_features, save_features, save_tensors
from pipeline_steps.runtime.errors import StepError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
FILES = ["ID_1/ä 1.png", "ID_1/2.png", "ID_2/0.png", "ID_2/1.png"]


def test_round_trip_with_names_and_metadata(tmp_path: Path) -> None:
    save_features(tmp_path / "f.safetensors", ROWS, FILES, extractor="dinov2_l14")
    read = load_features(tmp_path / "f.safetensors")
    assert np.array_equal(read.features, ROWS)
    assert read.features.dtype == np.float32
    assert read.files == FILES
    assert read.metadata == {"extractor": "dinov2_l14"}


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save_features(tmp_path / "f.safetensors", ROWS, FILES, key="embeddings")
    assert np.array_equal(load_file(tmp_path / "f.safetensors")["embeddings"], ROWS)


def test_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from pipeline_steps.io.tensors import save_features;"
        "save_features(sys.argv[1], np.ones((1, 2), np.float32), ['a'],"
        " **{k: k for k in 'qwertzuiop'})"
    )
    for name in "abc":  # the library's own order of metadata changes from process to process
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_unfit_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        save_features(tmp_path / "f.safetensors", ROWS, FILES[:2])
    broken = ROWS.copy()
    broken[2, 1] = np.nan
    path = tmp_path / "f.safetensors"
    with pytest.raises(StepError, match=r"1 of 4 rows hold NaN.* ID_2/0.png"):
        save_features(path, broken, FILES)
    assert list(tmp_path.iterdir()) == []
    save_tensors(path, {"features": broken}, {"files": json.dumps(FILES)})
    with pytest.raises(StepError, match=r"1 of 4 rows hold NaN"):
        load_features(path)


def test_missing_broken_and_foreign_files_are_step_errors(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(StepError, match="missing"):
        load_features(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StepError, match="broken"):
        load_features(path)
    save_tensors(path, {"other": ROWS})
    with pytest.raises(StepError, match="no tensor 'features'"):
        load_features(path)
