from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline_steps.study.generate import commented, generated, pin, schema
from pipeline_steps.study.settings.study import read_study

ROOT = Path(__file__).parents[2]
REGISTRY = """\
# A comment.
demo: # another
  task: base_model
  sha256: {}
  options: { resolution: 64 }

demo_b:
  task: recogniser
"""


@pytest.mark.parametrize("path", sorted(generated()), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    found = path.read_text("utf-8").splitlines()
    wanted = generated()[path].splitlines()
    difference = "\n".join(difflib.unified_diff(found, wanted, "found", "wanted", lineterm=""))
    assert not difference, f"run `make generate`\n{difference}"


def test_comments_change_no_value_and_writing_twice_changes_nothing() -> None:
    study = read_study(yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8")), "")
    text = commented(study)
    again = read_study(yaml.safe_load(text), "")
    assert again == study
    assert commented(again) == text


def test_comments_tell_meaning_range_choices_and_default() -> None:
    text = (ROOT / "config" / "demo.yaml").read_text("utf-8")
    assert "# Rank of the LoRA matrices. [>= 1, <= 512; default 4]\n  rank: " in text
    assert "[one of cosine, constant; default cosine]" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", ["demo", "paper_sd21", "paper_sdxl", "fg2025"])
def test_shipped_configurations_fit_the_schema(name: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text("utf-8"))
    jsonschema.validate(config, json.loads(schema()))


def test_the_schema_refuses_unknown_keys() -> None:
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    config["finetune"]["rnak"] = 4
    with pytest.raises(jsonschema.ValidationError, match="rnak"):
        jsonschema.validate(config, json.loads(schema()))


def test_pinning_replaces_one_entrys_hashes_and_nothing_else() -> None:
    once = pin(REGISTRY, "demo", {"unet/w.safetensors": "ab", "a.json": "cd"})
    assert yaml.safe_load(once) == {
        "demo": {
            "task": "base_model",
            "sha256": {"a.json": "cd", "unet/w.safetensors": "ab"},
            "options": {"resolution": 64},
        },
        "demo_b": {"task": "recogniser"},
    }
    assert pin(once, "demo", {"unet/w.safetensors": "ab", "a.json": "cd"}) == once
    assert "# A comment." in once
    assert "demo: # another" in once
    assert yaml.safe_load(pin(REGISTRY, "demo_b", {"m": "ef"}))["demo_b"]["sha256"] == {"m": "ef"}


def test_check_writes_nothing() -> None:
    paths = [*generated()]
    before = [path.stat().st_mtime_ns for path in paths]
    command = [sys.executable, "-m", "pipeline_steps.study.generate", "--check"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert [path.stat().st_mtime_ns for path in paths] == before
