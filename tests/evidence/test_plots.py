from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline_steps.evidence.figures.plots import (
    COLOURS,
    Distribution,
    GridRow,
    Panel,
    Tile,
    colour_of,
    distributions_figure,
    grid_figure,
)
from pipeline_steps.io.figures import save_figure


def panel(seed: int, title: str = "vs. real") -> Panel:
    rng = np.random.default_rng(seed)
    return Panel(
        title,
        tuple(
            Distribution(
                method, method.upper(), rng.normal(mean, 0.1, 200), rng.normal(0, 0.1, 300)
            )
            for method, mean in (("dreambooth", 0.4), ("idbooth", 0.6))
        ),
    )


def test_densities_integrate_to_one_and_carry_the_methods_colours() -> None:
    figure = distributions_figure(
        [("Demo", [panel(0)])], width=5.5, bins=50, colours={"idbooth": "#123456"}
    )
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
    assert labels == ["DREAMBOOTH", "IDBOOTH", "genuine", "impostor"]


def test_methods_without_a_colour_get_different_spare_ones() -> None:
    methods = ["idbooth", "new_a", "new_b"]
    assert len({colour_of(method, methods, {}) for method in methods}) == 3


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
        figure = distributions_figure([("", [panel(1)])], width=4, bins=20, colours={})
        for ending in (".svg", ".png"):
            save_figure(figure, tmp_path / name / f"d{ending}", dpi=80)
    for file in ("d.svg", "d.png"):
        first = (tmp_path / "a" / file).read_bytes()
        assert first == (tmp_path / "b" / file).read_bytes()
        assert b"<dc:date>" not in first
    assert Image.open(tmp_path / "a" / "d.png").size[0] == 320
