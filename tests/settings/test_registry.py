from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.files.errors import StepError
from pipeline_steps.settings.registry import pick, read_models

ROOT = Path(__file__).parents[2]
MODELS = read_models(ROOT / "config" / "models.yaml")


def test_every_entry_states_where_from_and_under_what_licence() -> None:
    for name, entry in MODELS.items():
        assert entry.name == name
        assert entry.source
        assert len(entry.licence) >= 3


def test_non_commercial_weights_are_marked() -> None:
    assert not MODELS["arcface_r100"].commercial_use
    assert not MODELS["crfiqa"].commercial_use
    assert MODELS["demo"].commercial_use


def test_pinned_hashes_are_sha256() -> None:
    digests = [digest for entry in MODELS.values() for digest in entry.sha256.values()]
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


def test_unknown_names_and_wrong_tasks_are_errors() -> None:
    assert pick(MODELS, "demo", "base_models", "base_model").name == "demo"
    with pytest.raises(StepError, match="no entry 'dmo'"):
        pick(MODELS, "dmo", "base_models")
    with pytest.raises(StepError, match="'crfiqa' is for quality, not recogniser"):
        pick(MODELS, "crfiqa", "recogniser", "recogniser")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("a: [unclosed", "is not YAML"),
        ("net: {task: recogniser, sourec: x}", "unknown key 'sourec'"),
        ("net:\n", "task: Field required"),
    ],
)
def test_unfit_registries_are_step_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(StepError, match=message):
        read_models(path)


def test_a_missing_registry_is_a_step_error(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="is missing"):
        read_models(tmp_path / "models.yaml")
