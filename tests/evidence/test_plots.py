from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_steps.evidence.figures.grids import GridRow, Tile, grid_figure
from pipeline_steps.evidence.figures.plots import (
    ATTRIBUTES,
    Scores,
    attribute_rows,
    attributes_figure,
    distributions_figure,
    pose_figure,
)
from pipeline_steps.evidence.names import COLOURS, colours_of
from pipeline_steps.io.figures import save_figure

LOOK = {
    "labels": {"dreambooth": "DreamBooth", "idbooth": "ID-Booth"},
    "colours": colours_of(("dreambooth", "idbooth"), {"idbooth": "#123456"}),
}


def panel(seed: int) -> dict[str, Scores]:
    rng = np.random.default_rng(seed)
    return {
        method: (rng.normal(mean, 0.1, 200), rng.normal(0, 0.1, 300))
        for method, mean in (("dreambooth", 0.4), ("idbooth", 0.6))
    }


def test_densities_integrate_to_one_and_carry_the_methods_colours() -> None:
    figure = distributions_figure({"Demo": {"vs. real": panel(0)}}, **LOOK, width=5.5, bins=50)
    axis = figure.axes[0]
    assert axis.get_title() == "vs. real"
    for line in axis.lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert abs(y.sum() * (x[1] - x[0]) - 1) < 1e-6
    colours = [line.get_color() for line in axis.lines]
    assert colours == [COLOURS["dreambooth"]] * 2 + ["#123456"] * 2
    peaks = [line.get_xdata()[np.argmax(line.get_ydata())] for line in axis.lines]
    assert abs(peaks[0] - 0.4) < 0.15  # genuine first, then impostor
    assert abs(peaks[1]) < 0.15
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["DreamBooth", "ID-Booth", "genuine", "impostor"]


def test_methods_without_a_colour_get_different_spare_ones() -> None:
    colours = colours_of(["idbooth", "new_a", "new_b"], {})
    assert len(set(colours.values())) == 3


def test_grid_places_every_image_caption_and_header() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    rows = [
        GridRow("Photographs", (Tile(image, "0.91", framed=True),)),
        GridRow("ID-Booth", (Tile(image, "0.50"), Tile(None, "no face")), ("happy, beach", "sad")),
    ]
    figure = grid_figure(rows, width=4.0)
    assert [axis.get_xlabel() for axis in figure.axes] == ["0.91", "0.50", "no face"]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0]
    texts = [text.get_text().replace("\n", " ") for text in figure.texts]
    assert texts == ["Photographs", "ID-Booth", "happy, beach", "sad"]
    boxes = [axis.get_position() for axis in figure.axes]
    width, height = figure.get_size_inches()
    for box in boxes:
        assert abs(box.width * width - box.height * height) < 1e-9  # square
        assert box.x0 >= 0
        assert box.x1 <= 1
        assert box.y0 >= 0
        assert box.y1 <= 1
    assert boxes[0].y0 > boxes[1].y1
    assert boxes[1].x1 < boxes[2].x0


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure = distributions_figure({"": {"": panel(1)}}, **LOOK, width=4, bins=20)
        for ending in (".svg", ".png"):
            save_figure(figure, tmp_path / name / f"d{ending}", dpi=80)
    for file in ("d.svg", "d.png"):
        first = (tmp_path / "a" / file).read_bytes()
        assert first == (tmp_path / "b" / file).read_bytes()
        assert b"<dc:date>" not in first
    assert Image.open(tmp_path / "a" / "d.png").size[0] == 320


PROMPTS = [
    "photo of sks person, close-up portrait, happy expression",
    "photo of sks person, close-up portrait, sad expression, busy city street environment",
    "photo of sks person, close-up portrait, happy expression, busy forest environment",
    "photo of sks person, close-up portrait, happy expression, busy forest environment",
]
SIMILARITY = [0.5, 0.1, 0.3, np.nan]


def shown(prompts: list[str], similarity: list[float]) -> pd.DataFrame:
    columns = {"prompt": prompts, "face": np.isfinite(similarity), "similarity": similarity}
    return pd.DataFrame(columns)


def test_attributes_are_read_off_the_prompts() -> None:
    table = attribute_rows(shown(PROMPTS, SIMILARITY), ATTRIBUTES).set_index(["attribute", "value"])
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


def test_faces_of_people_without_photographs_are_faces() -> None:
    images = shown(PROMPTS[2:], [np.nan, np.nan]).assign(face=[True, False])
    table = attribute_rows(images, ATTRIBUTES)
    assert table["faces"].tolist() == [0.5, 0.5]
    assert table["similarity"].isna().all()


def test_views_and_backgrounds_of_the_fg2025_prompts_are_attributes_too() -> None:
    prompts = [
        "face side-portrait photo of female sks person, night club background",
        "face portrait photo of male sks person",
    ]
    table = attribute_rows(shown(prompts, [0.1, 0.2]), ATTRIBUTES)
    assert list(zip(table["attribute"], table["value"], strict=True)) == [
        *(("place", "none"), ("place", "night club")),
        *(("view", "portrait"), ("view", "side-portrait")),
    ]


def test_prompts_that_name_nothing_give_an_empty_figure() -> None:
    table = attribute_rows(shown(["photo of a person"], [0.1]), ATTRIBUTES)
    assert table.empty
    figure = attributes_figure({"idbooth": table}, **LOOK, width=5)
    assert figure.axes == []
    assert "no attribute" in figure.texts[0].get_text()


def test_each_attribute_shows_every_method_at_its_own_height() -> None:
    tables = {
        m: attribute_rows(shown(PROMPTS, SIMILARITY), ATTRIBUTES) for m in ("dreambooth", "idbooth")
    }
    figure = attributes_figure(tables, **LOOK, width=5)
    left, right = figure.axes[2], figure.axes[3]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["none", "city street", "forest"]
    heights = [line.get_ydata() for line in right.lines]
    assert len(heights) == 2
    assert (heights[0] < heights[1]).all()
    assert right.lines[0].get_xdata().tolist() == [1.0, 1.0, 0.5]


def test_poses_stand_over_those_of_the_photographs() -> None:
    real = np.random.default_rng(0).normal(0, 20, (30, 3))
    angles = np.array([[4.0, -10.0, 0.0], [8.0, 10.0, 0.0]])  # pitch, yaw, roll
    figure = pose_figure({"Demo": {"idbooth": angles}}, real, **LOOK, width=4)
    (axis,) = figure.axes
    behind, above = (np.asarray(dots.get_offsets()) for dots in axis.collections)
    assert np.allclose(behind, real[:, [1, 0]])
    assert above.tolist() == [[-10, 4], [10, 8]]
    assert axis.texts[0].get_text() == "σ 10° × 2°"
    assert axis.get_title() == "ID-Booth"
