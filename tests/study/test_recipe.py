"""The published recipe in docs/recipe.md against the resolved presets and the code."""

from __future__ import annotations

import importlib
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.study import benchmark_name, read_configs
from tests.published import PLACES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipe.md").read_text("utf-8")
PRESETS = ("paper_sd21", "paper_sdxl", "fg2025")
NEGATIVE = (
    "cartoon, cgi, render, illustration, painting, drawing, black and white, bad body proportions, "
    "landscape"
)


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


@cache
def preset(name: str) -> Plan:
    return make_plan(read_configs([ROOT / "config" / f"{name}.yaml"]), name)


def value_of(plan: Plan, path: str, base_model: str) -> Any:
    """A setting by its dotted name, that of fine-tuning as the base model's own job gets it."""
    section, _, rest = path.partition(".")
    part: Any = plan.study
    if section == "finetune":
        part, path = part.finetune.resolved(base_model, "idbooth"), rest
    if section == "train_generator":
        part, path = part.train_generator.resolved(part.methods[-1]), rest
    for name in path.split("."):
        part = getattr(part, name)
    return part


def same(found: Any, stated: str) -> bool:
    expected = yaml.safe_load(stated)
    if isinstance(expected, list):
        return list(found) == expected
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        return math.isclose(found, expected, rel_tol=1e-12)
    return bool(found == expected)


@pytest.mark.parametrize("row", table("ID³"), ids=lambda row: row[0])
def test_every_value_of_id3_is_that_of_its_preset(row: list[str]) -> None:
    path, stated, _ = row
    found = value_of(preset("id3_10k"), path, "sd21")
    assert same(found, stated), f"{path} is {found!r}, the recipe says {stated}"


@pytest.mark.parametrize("base_model", ["sd21", "sdxl"])
@pytest.mark.parametrize("row", table("Face Fusion"), ids=lambda row: row[0])
def test_every_value_of_face_fusion_is_that_of_its_presets(row: list[str], base_model: str) -> None:
    path, stated, _ = row
    found = value_of(preset(f"facefusion_{base_model}"), path, base_model)
    assert same(found, stated), f"{path} is {found!r}, the recipe says {stated}"


@pytest.mark.parametrize("row", table("Settings"), ids=lambda row: row[0])
def test_every_value_of_the_recipe_is_that_of_the_resolved_preset(row: list[str]) -> None:
    path, *stated = row
    assert len(stated) == len(PRESETS)
    for name, value in zip(PRESETS, stated, strict=True):
        plan = preset(name)
        found = value_of(plan, path, plan.study.base_models[0])
        assert same(found, value), f"{name}: {path} is {found!r}, the recipe says {value}"


def test_the_whole_paper_gives_each_base_model_the_values_of_its_preset() -> None:
    paper = preset("paper")
    for row in table("Settings"):
        path = row[0]
        if path.startswith(("base_models", "prompt_sets", "prepare.resolution")):
            continue
        for base_model, value in zip(("sd21", "sdxl"), row[1:3], strict=True):
            assert same(value_of(paper, path, base_model), value), path
    assert paper.study.base_models == ("sd21", "sdxl")
    assert paper.study.prompt_sets == ("base", "complex", "fg2025")
    assert paper.study.prepare.resolution == 1024


@pytest.mark.parametrize("name", [*PRESETS, "paper"])
def test_benchmarks_and_detector_are_the_published_ones(name: str) -> None:
    study = preset(name).study
    names = [benchmark_name(path) for path in study.benchmarks]
    assert names == ["lfw", "agedb_30", "calfw", "cfp_fp", "cplfw"]
    for settings in (study.prepare, study.embed, study.align):
        assert settings.detector.thresholds == (0.6, 0.7, 0.7)
        assert settings.detector.min_face_size == 20


def test_prompt_sets_are_the_published_ones() -> None:
    sets = preset("paper").prompt_sets
    for name, template, combinations in table("Prompts"):
        found = sets[name]
        assert found.template == template
        assert found.negative_prompt == NEGATIVE
        sizes = [sum(v.times for v in slot.entries()) for slot in found.slots.values()]
        assert math.prod(sizes) == int(combinations), name
    words = {name: [v.text for v in sets["complex"].slots[name].entries()] for name in ("place",)}
    assert words["place"] == ["", *PLACES]
    assert sets["complex"].slots["expression"].values == (
        "neutral",
        "happy",
        "sad",
        "angry",
        "shocked",
    )
    assert sets["complex"].slots["place"].phrase == ", busy {} environment"
    assert sets["fg2025"].slots["place"].phrase == ", {} background"
    assert [(v.text, v.times) for v in sets["fg2025"].slots["place"].entries()] == [
        ("", 1),
        *((place, 2) for place in PLACES),
    ]
    assert sets["fg2025"].slots["portrait"].values == ("portrait", "side-portrait")


def test_weights_are_the_published_ones() -> None:
    plan = preset("paper")
    for name, resolution in (("sd21", 512), ("sdxl", 1024)):
        assert plan.models[name].options["resolution"] == resolution
    assert plan.models["sdxl"].components["vae"].name == "sdxl_vae_fp16_fix"
    assert plan.models["arcface_r100"].architecture == "iresnet100"


@pytest.mark.parametrize("row", table("Fixed in the code"), ids=lambda row: row[0])
def test_constants_of_the_recipe_are_those_of_the_code(row: list[str]) -> None:
    module, _, name = row[0].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    np.testing.assert_allclose(found, yaml.safe_load(row[1]), rtol=1e-6)


def test_a_preset_is_a_short_difference() -> None:
    for name in PRESETS:
        lines = (ROOT / "config" / f"{name}.yaml").read_text("utf-8").splitlines()
        assert len(lines) < 50, name


def test_the_overlay_switches_to_what_the_code_does() -> None:
    files = [ROOT / "config" / "paper_sd21.yaml", ROOT / "config" / "overlays" / "compat.yaml"]
    plan = make_plan(read_configs(files) | {"name": "paper_sd21_compat"}, "")
    section = PAGE.split("## Where the paper and its code differ")[1].split("\n## ")[0]
    rows = re.findall(r"^\|.*\| `([\w.]+)(?:: (\w+))?` \|$", section, re.MULTILINE)
    assert [path for path, _ in rows] == [
        "recognise.backbone",
        "score.identity.impostors",
        "score.quality.equal_n",
    ]
    found = [value_of(plan, path, "sd21") for path, _ in rows]
    assert found == ["iresnet50", "equal", False]
    assert plan.study.prior == preset("paper_sd21").study.prior
