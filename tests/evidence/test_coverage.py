from __future__ import annotations

import numpy as np
import pytest

from pipeline_steps.evidence.figures.coverage import (
    ATTRIBUTES,
    PoseCloud,
    attribute_rows,
    attributes_figure,
    pose_figure,
)

PATTERNS = ATTRIBUTES
PROMPTS = [
    "photo of sks person, close-up portrait, happy expression",
    "photo of sks person, close-up portrait, sad expression, busy city street environment",
    "photo of sks person, close-up portrait, happy expression, busy forest environment",
    "photo of sks person, close-up portrait, happy expression, busy forest environment",
]
SIMILARITY = np.array([0.5, 0.1, 0.3, np.nan])


def test_attributes_are_read_off_the_prompts() -> None:
    table = attribute_rows(PROMPTS, SIMILARITY, PATTERNS).set_index(["attribute", "value"])
    assert list(table.index) == [
        ("expression", "happy"),
        ("expression", "sad"),
        *(("place", "none"), ("place", "city street"), ("place", "forest")),
    ]
    assert table.loc[("place", "forest"), ["n", "faces", "similarity"]].tolist() == [2, 0.5, 0.3]
    happy = table.loc[("expression", "happy")]
    assert (happy["n"], happy["similarity"]) == (3, pytest.approx(0.4))
    # The 95 % interval of a mean: 1.96 standard errors.
    assert happy["half_width"] == pytest.approx(1.96 * np.std([0.5, 0.3], ddof=1) / np.sqrt(2))


def test_views_and_backgrounds_of_the_fg2025_prompts_are_attributes_too() -> None:
    prompts = [
        "face side-portrait photo of female sks person, night club background",
        "face portrait photo of male sks person",
    ]
    table = attribute_rows(prompts, np.array([0.1, 0.2]), PATTERNS)
    assert list(zip(table["attribute"], table["value"], strict=True)) == [
        *(("place", "none"), ("place", "night club")),
        *(("view", "portrait"), ("view", "side-portrait")),
    ]


def test_prompts_that_name_nothing_give_an_empty_figure() -> None:
    table = attribute_rows(["photo of a person"], np.array([0.1]), PATTERNS)
    assert table.empty
    figure = attributes_figure({"idbooth": table}, {"idbooth": "ID-Booth"}, width=5, colours={})
    assert figure.axes == []
    assert "no attribute" in figure.texts[0].get_text()


def test_each_attribute_shows_every_method_at_its_own_height() -> None:
    tables = {m: attribute_rows(PROMPTS, SIMILARITY, PATTERNS) for m in ("dreambooth", "idbooth")}
    labels = {"dreambooth": "DreamBooth", "idbooth": "ID-Booth"}
    figure = attributes_figure(tables, labels, width=5, colours={})
    left, right = figure.axes[2], figure.axes[3]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["none", "city street", "forest"]
    heights = [line.get_ydata() for line in right.lines]
    assert len(heights) == 2
    assert (heights[0] < heights[1]).all()
    assert right.lines[0].get_xdata().tolist() == [1.0, 1.0, 0.5]


def test_poses_stand_over_those_of_the_photographs() -> None:
    rng = np.random.default_rng(0)
    real = PoseCloud("-", "Real", *rng.normal(0, 20, (2, 30)))
    cloud = PoseCloud("idbooth", "ID-Booth", np.array([-10.0, 10.0]), np.array([4.0, 8.0]))
    figure = pose_figure([("Demo", [cloud])], real, width=4, colours={})
    (axis,) = figure.axes
    behind, above = (np.asarray(dots.get_offsets()) for dots in axis.collections)
    assert np.allclose(behind, np.column_stack([real.yaw, real.pitch]))
    assert above.tolist() == [[-10, 4], [10, 8]]
    assert axis.texts[0].get_text() == "σ 10° × 2°"
    assert axis.get_title() == "ID-Booth"
