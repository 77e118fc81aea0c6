"""Training sets from aligned folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.recognition.dataset import load_training_set
from pipeline_steps.runtime.errors import StepError


def aligned(
    folder: Path, identities: dict[str, int], *, grey: int = 0, size: int = 112, missed: int = 0
) -> Path:
    """An aligned source: identity -> number of images, plus rows of missed faces."""
    rows: list[dict[str, object]] = []
    for identity, n in identities.items():
        for i in range(n):
            file = f"{identity}/{i}.png"
            write_png(folder / file, np.full((size, size, 3), grey + i, dtype=np.uint8))
            rows.append({"identity": identity, "file": file, "kept": True, "reason": ""})
        for i in range(missed):
            file = f"{identity}/missed{i}.png"
            rows.append({"identity": identity, "file": file, "kept": False, "reason": "no face"})
    write_manifest(folder / "manifest.parquet", rows)
    return folder


def test_only_kept_rows_are_read_and_labels_follow_identities(tmp_path: Path) -> None:
    found = load_training_set([aligned(tmp_path / "real", {"ID_2": 2, "ID_10": 3}, missed=2)])
    assert found.images.shape == (5, 112, 112, 3)
    assert found.images.dtype == np.uint8
    names = [found.identities[label] for label in found.labels]
    assert sorted(names) == ["ID_10"] * 3 + ["ID_2"] * 2
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 2]


def test_sources_are_merged_by_identity_name(tmp_path: Path) -> None:
    real = aligned(tmp_path / "real", {"ID_1": 2, "ID_3": 2})
    synthetic = aligned(tmp_path / "synthetic", {"ID_3": 4, "ID_4": 1}, grey=100)
    merged = load_training_set([real, synthetic])
    assert merged.identities == ("ID_1", "ID_3", "ID_4")
    of_3 = merged.images[merged.labels == merged.identities.index("ID_3"), 0, 0, 0]
    assert of_3.tolist() == [0, 1, 100, 101, 102, 103]
    apart = load_training_set([real, synthetic], merge_sources=False)
    assert len(apart.identities) == 4
    assert np.bincount(apart.labels).tolist() == [2, 2, 4, 1]


def test_one_identity_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="at least 2 identities"):
        load_training_set([aligned(tmp_path / "real", {"ID_1": 3})])


def test_a_source_without_usable_images_is_named(tmp_path: Path) -> None:
    good = aligned(tmp_path / "real", {"ID_1": 1, "ID_2": 1})
    empty = aligned(tmp_path / "none", {"ID_1": 0}, missed=3)
    with pytest.raises(StepError, match="none has no aligned image"):
        load_training_set([good, empty])


def test_missing_broken_and_unaligned_images_are_named(tmp_path: Path) -> None:
    source = aligned(tmp_path / "real", {"ID_1": 2, "ID_2": 1})
    file = source / "ID_1" / "1.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StepError, match=r"ID_1/1\.png cannot be read"):
        load_training_set([source])
    file.unlink()
    with pytest.raises(StepError, match=r"ID_1/1\.png .* missing"):
        load_training_set([source])
    with pytest.raises(StepError, match="64 x 64"):
        load_training_set([aligned(tmp_path / "small", {"ID_1": 1, "ID_2": 1}, size=64)])
