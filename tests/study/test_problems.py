from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import keys_at, meant
from pipeline_steps.study.settings.study import Study, read_study


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metods": []}, "unknown key 'metods'; did you mean 'methods'?"),
        (
            {"finetune": {"lerning_rate": 1}},
            "unknown key 'finetune.lerning_rate'; did you mean 'learning_rate'?",
        ),
        (
            {"prepare": {"detector": {"zoom": 1}}},
            "unknown key 'prepare.detector.zoom'; there are min_face_size, thresholds",
        ),
        ({"name": "a/b"}, "expected small letters, digits and underscores alone, as my_study"),
        ({"shares": 0}, "shares: expected at least 1 (found 0)"),
        (
            {"sample": {"images_per_identity": 0}},
            "sample.images_per_identity: expected at least 1 (found 0)",
        ),
        ({"finetune": {"steps": "many"}}, "finetune.steps: expected a whole number (found 'many')"),
        ({"methods": "idbooth"}, "methods: expected a list, as [a, b] (found 'idbooth')"),
        ({"finetune": None}, "finetune: expected keys with values (found None)"),
        ({"name": ["a"]}, "name: expected text (found ['a'])"),
    ],
)
def test_a_wrong_setting_is_one_short_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StepError) as caught:
        read_study({"name": "s", "prepare": {}} | changes, "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    assert sentence in text
    assert len(text) < 200


def test_settings_that_do_not_fit_together_are_told_without_the_whole_study() -> None:
    with pytest.raises(StepError) as caught:
        read_study({"name": "s", "prepare": {}, "training_sets": ["sd21/x/base"]}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: training_sets: 'sd21/x/base' is none of")
    assert "found" not in str(caught.value)


def test_a_missing_section_is_told() -> None:
    with pytest.raises(StepError, match=r"^my\.yaml: prepare is missing$"):
        read_study({"name": "s"}, "my.yaml")


def test_words_far_from_all_known_ones_list_these() -> None:
    assert meant("zzz", ["a", "b"]) == "; there are a, b"
    assert meant("zzz", []) == ""
    assert keys_at(Study, ["score", "quality", "k", "further"]) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "expected keys with values, found nothing"),
        (b"- a\n", "expected keys with values, found a list"),
        (b"a:\n\tb: 3\n", "is not YAML, line 2: a tab stands there; indent with spaces"),
        (b"a: [b\nc: }\n", "is not YAML, line 2: expected ',' or ']'"),
        ("a: b\n".encode("utf-16"), "is no UTF-8 text"),
        ("a: ä\n".encode("latin-1"), "is no UTF-8 text"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(StepError) as caught:
        read_mapping(tmp_path / "s.yaml", "configuration")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"configuration {tmp_path / 's.yaml'}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="is missing: write it, or name another"):
        read_mapping(tmp_path / "none.yaml", "configuration")
    with pytest.raises(StepError, match="is a folder: name a file in it"):
        read_mapping(tmp_path, "configuration")


def test_a_key_that_stands_twice_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("seed: 1\nfinetune:\n  steps: 2\n  rank: 4\n  steps: 3\n")
    with pytest.raises(StepError, match=r"my\.yaml is not YAML, line 5: the key 'steps' stands"):
        read_mapping(path, "configuration")
    path.write_text("a:\n- {x: 1, y: 2, x: 3}\n")
    with pytest.raises(StepError, match="line 2: the key 'x' stands"):
        read_mapping(path, "configuration")
    path.write_text("a: &base {x: 1}\nb: {<<: *base, x: 2}\nc: {x: 3}\n")
    assert read_mapping(path, "configuration") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}
