"""Photographs with several faces: whose is kept, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.tensors import load_features
from pipeline_steps.io.weights import Weights
from tests.inputs.conftest import Picture, encoded, prepared


def group(small: Picture, large: Picture) -> Picture:
    """Two people side by side, the second one nearer to the camera."""
    canvas = np.full((192, 168, 3), 90, np.uint8)
    canvas[32:160, :72] = small[:, 28:100]
    canvas[:, 72:] = np.asarray(Image.fromarray(large).resize((192, 192)))[:, 48:144]
    return canvas


def shows(out: Path, file: str, recogniser: Weights, people: dict[str, list[Picture]]) -> str:
    """Whom the embedding of a prepared image is most like."""
    network, detector = load_recogniser(recogniser), Detector()
    stored = load_features(out / "embeddings/ID_anna.safetensors", key="embeddings")
    mine = stored.features[stored.files.index(file)]
    likeness = {}
    for name, pictures in people.items():
        boxes = [face.box for face in detector.detect(pictures[3:]) if face]
        likeness[name] = float((network.embed_regions(pictures[3:], boxes) @ mine).mean())
    return max(likeness, key=likeness.__getitem__)


@pytest.mark.parametrize("own", [1, 3])
def test_of_several_faces_the_one_most_like_the_persons_others_is_kept(
    tmp_path, faces, recogniser, own
):
    anna = tmp_path / "photos" / "anna"
    anna.mkdir(parents=True)
    for number in range(own):
        (anna / f"{number}.png").write_bytes(encoded(faces["anna"][number]))
    (anna / "group.png").write_bytes(encoded(group(faces["anna"][3], faces["bob"][3])))
    wide = {"margin": 4.0, "resolution": 128}  # both faces are in the prepared image
    found = prepared(tmp_path / "out", [tmp_path / "photos"], recogniser, **wide)
    row = found.rows.loc["photos/anna/group.png"]
    how = "the one most like the person's others kept" if own == 3 else "largest kept"
    assert row["kept"]
    assert row["reason"] == f"2 faces, {how}"
    assert shows(found.out, row["file"], recogniser, faces) == ("anna" if own == 3 else "bob")
    report = json.loads((found.out / "report.json").read_text())
    (finding,) = [one for one in report["findings"] if "several faces" in one["finding"]]
    assert finding["which"] == [f"photos/anna/group.png (2 faces, {how})"]

    # Embeddings and aligned faces are of the face that was kept.
    (place,) = [one for one in found.aligned if "group" in one["source_file"]]
    middle = np.reshape(place["landmarks"], (5, 2)).mean(0)
    assert np.all(np.abs(middle - np.reshape(row["landmarks"], (5, 2)).mean(0)) < 6)
    again = prepared(tmp_path / "out", [tmp_path / "photos"], recogniser, **wide)
    assert again.rows.loc["photos/anna/group.png", "sha256"] == row["sha256"]


def test_a_photograph_of_somebody_else_is_named(tmp_path, faces, recogniser, caplog):
    for name in ("anna", "bob"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, picture in enumerate(faces[name]):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(encoded(picture))
    (tmp_path / "photos/anna/3.png").write_bytes(encoded(faces["bob"][3][:, ::-1]))
    found = prepared(tmp_path / "out", [tmp_path / "photos"], recogniser)
    assert [*found.index["outliers"]] == ["images/ID_anna/3.png"]
    assert "images/ID_anna/3.png is less like the person's other photographs" in caplog.text
