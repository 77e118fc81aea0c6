from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.io.weights import Weights, placed
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import pick, read_models

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
        ("- a\n- b\n", "expected keys with values, found a list"),
        ("a: [unclosed", "is not YAML"),
        ("net: {task: recogniser, sourec: x}", "unknown key 'sourec'"),
        ("net:\n", "task is missing"),
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


def test_components_are_replaced_by_their_entries(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    part = (
        "part: {task: autoencoder, architecture: x, source: y, licence: MIT, commercial_use: true}"
    )
    whole = "{task: base_model, architecture: x, source: y, licence: MIT, commercial_use: true"
    path.write_text(f"whole: {whole}, components: {{vae: part}}}}\n{part}\n")
    models = read_models(path)
    assert models["whole"].components == {"vae": models["part"]}
    for wrong in ("whole", "nothing"):
        path.write_text(f"whole: {whole}, components: {{vae: {wrong}}}}}\n{part}\n")
        with pytest.raises(StepError, match=f"components.vae: '{wrong}' is no other entry's name"):
            read_models(path)


def test_a_frozen_entry_holds_nothing_that_changes_no_result() -> None:
    entry = MODELS["sdxl"]
    vae = entry.components["vae"].model_copy(update={"licence": "other", "source": "elsewhere"})
    said = {"mirrors": ("hub:a/b",), "size": 1, "page": "https://x", "source": "y"}
    said |= {"licence": "other", "commercial_use": False, "components": {"vae": vae}}
    assert entry.model_copy(update=said).frozen() == entry.frozen()
    assert not {"source", "licence", "commercial_use"} & set(str(entry.frozen()).split("'"))
    assert Weights.model_validate(placed(entry.frozen())) == entry
    with pytest.raises(StepError, match="no entry 'gone'"):
        placed(entry.frozen() | {"name": "gone"})
    assert entry.frozen()["components"]["vae"]["name"] == "sdxl_vae_fp16_fix"
    assert entry.model_copy(update={"revision": "x"}).frozen() != entry.frozen()


def test_everything_that_is_fetched_says_size_page_and_purpose() -> None:
    for name, entry in MODELS.items():
        if not entry.source.startswith("resources/demo_world/") and entry.source != "none":
            assert entry.size, name
            assert entry.page, name
            assert entry.purpose, name
