from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline_steps.io.weights import Weights
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FeaturesSettings


def entry(folder: Path, **changes: object) -> Weights:
    told = {"task": "recogniser", "architecture": "iresnet", "licence": "x", "commercial_use": True}
    told |= {"name": "r", "source": str(folder / "w.safetensors"), **changes}
    return Weights.model_validate(told)


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Frozen[FeaturesSettings]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"1")
    weights = {"extractor": entry(tmp_path)}
    return Frozen("s", "features", 3, FeaturesSettings(), weights, {}, "c0de")


def test_names_count_and_their_order_does_not(frozen: Frozen[FeaturesSettings]) -> None:
    assert key(frozen, rank=8, alpha=16) == key(frozen, alpha=16, rank=8)
    assert key(frozen, rank=8, alpha=16) != key(frozen, rank=16, alpha=8)


def test_code_seed_and_what_weights_are_count(frozen: Frozen[FeaturesSettings]) -> None:
    known = key(frozen)
    assert key(replace(frozen, code="other")) != known
    assert key(replace(frozen, seed=4)) != known
    Path("w.safetensors").write_bytes(b"22")
    assert key(frozen) != known


def test_words_about_weights_and_their_place_do_not_count(
    frozen: Frozen[FeaturesSettings], tmp_path: Path
) -> None:
    known = key(frozen)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "w.safetensors").write_bytes(b"1")
    told = entry(moved, licence="another", commercial_use=False, purpose="tests")
    assert key(replace(frozen, weights={"extractor": told}, study="t")) == known
    assert key(replace(frozen, weights={"extractor": entry(moved, options={"layers": 2})})) != known
