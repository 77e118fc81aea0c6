from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import (
    missing_weights,
    needed_weights,
    read_models,
    require_licences,
    unaccepted,
)
from pipeline_steps.study.settings.study import Study

MODELS = read_models(Path(__file__).parents[2] / "config" / "models.yaml")


def study(**changes: Any) -> Study:
    fields = {"name": "s", "base_models": ("sdxl",), "prepare": {"consent": "yes"}}
    return Study.model_validate({**fields, **changes})


@pytest.fixture(autouse=True)
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONSENTED_FACES_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "weights"


def put(folder: Path, entry: Weights) -> None:
    for name in entry.files or (Path(entry.source).name,):
        (folder / entry.name / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry.name / name).write_bytes(b"1")


def test_a_study_needs_its_models_judges_extractors_and_components_once() -> None:
    names = [entry.name for entry in needed_weights(study(), MODELS)]
    assert len(names) == len(set(names))
    assert {"sdxl", "sdxl_vae_fp16_fix", "arcface_r100", "inception_v3", "clip_l14_336"} <= set(
        names
    )
    assert "sd21" not in names
    with pytest.raises(StepError, match="no entry 'sd3'"):
        needed_weights(study(base_models=("sd3",)), MODELS)


def test_an_empty_machine_misses_everything_with_source_size_and_what_to_do() -> None:
    missing = {item.name: item for item in missing_weights(study(), MODELS)}
    needed = {e.name for e in needed_weights(study(), MODELS) if e.source != "none"}
    assert missing.keys() == needed
    vae = missing["sdxl_vae_fp16_fix"]
    assert vae.files == ("config.json", "diffusion_pytorch_model.safetensors")
    assert vae.source == "hub:madebyollin/sdxl-vae-fp16-fix"
    assert (vae.licence, vae.size) == ("MIT", MODELS["sdxl_vae_fp16_fix"].size)
    assert vae.how.endswith("fetch_models sdxl_vae_fp16_fix --study <configuration>")
    assert "https://github.com/deepinsight/insightface" in missing["arcface_r100"].how


def test_what_is_there_is_not_missing_and_half_of_it_is(weights_folder: Path) -> None:
    for entry in needed_weights(study(), MODELS):
        put(weights_folder, entry)
    assert missing_weights(study(), MODELS) == []
    (weights_folder / "clip_l14_336" / "config.json").unlink()
    missing = {item.name: item.files for item in missing_weights(study(), MODELS)}
    assert missing == dict.fromkeys(("clip_l14_336", "clip_prompts"), ("config.json",))


def test_licences_are_accepted_by_their_name_or_the_entrys() -> None:
    entries = needed_weights(study(), MODELS)
    asked = {entry.name for entry in unaccepted(study(), entries)}
    assert asked == {entry.name for entry in entries if entry.source != "none"}
    some = study(accept_licences=("MIT", "arcface_r100"))
    left = {entry.name for entry in unaccepted(some, entries)}
    assert asked - left == {"sdxl_vae_fp16_fix", "clip_l14_336", "clip_prompts", "arcface_r100"}
    with pytest.raises(StepError) as caught:
        require_licences(some, entries)
    assert "'CreativeML Open RAIL++-M' (sdxl)" in str(caught.value)
    assert "MIT'" not in str(caught.value)
    require_licences(study(accept_licences=[entry.licence for entry in entries]), entries)


def test_weights_that_come_with_the_code_ask_for_nothing() -> None:
    demo = [MODELS["demo"], MODELS["demo_recogniser"], MODELS["landmark_pose"]]
    require_licences(study(), demo)


@pytest.mark.parametrize("judge", ["dlib_resnet", "facenet_vggface2"])
def test_a_recogniser_that_only_judges_is_refused_inside_the_losses(judge: str) -> None:
    judged = study(score={"identity": {"recognisers": ("arcface_r100", judge)}})
    assert judge in {entry.name for entry in needed_weights(judged, MODELS)}
    with pytest.raises(StepError, match=rf"^recogniser: '{judge}' judges only.*recognisers"):
        needed_weights(study(recogniser=judge), MODELS)
