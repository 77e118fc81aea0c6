"""The explorer's data and thumbnails; what the page does with them is tested in tests/browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline_steps.evidence.explorer.items import likeness
from pipeline_steps.io.tensors import Features, load_features
from pipeline_steps.runtime.errors import StepError
from tests.browser.shown_study import METHODS, ShownStudy


def data(page: Path, name: str) -> Any:
    """What a script puts into the global."""
    text = (page.parent / f"data/{name}.js").read_text("utf-8")
    return json.loads(text.partition(" = ")[2])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ShownStudy:
    return ShownStudy(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def page(study: ShownStudy) -> Path:
    return study.explore()


def test_every_image_is_there_with_its_reason_and_whom_it_resembles(
    study: ShownStudy, page: Path
) -> None:
    told, items = data(page, "study")["study"], data(page, "items-0")
    assert [of["name"] for of in told["sets"]] == ["real", *(f"demo/{m}/complex" for m in METHODS)]
    assert told["people"] == study.people
    generated = len(METHODS) * 3 * study.count
    assert told["count"] == 3 * 3 + 1 + generated == len(items["set"])
    reasons = zip(items["reason"], items["kept"], strict=True)
    left_out = [told["reasons"][reason] for reason, kept in reasons if not kept]
    assert left_out == ["no face found"] + ["no face"] * len(METHODS) * 3
    assert items["picture"].count(0) == 1  # a photograph without a face was not prepared

    last = told["count"] - 2  # of ID-Booth's images of ID_3, with a face
    own, real = (
        load_features(study.root / f"features/{source}/judge_b.safetensors")
        for source in ("demo/idbooth/complex", "real")
    )
    unit = [rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (own.features, real.features)]
    similarity = unit[0][own.files.index("ID_3/6.png")] @ unit[1].T
    means = {
        name: similarity[[file.startswith(f"{name}/") for file in real.files]].mean()
        for name in study.people
    }
    assert items["judge_b/own"][last] == pytest.approx(means.pop("ID_3"), abs=1e-4)
    other = max(means, key=lambda name: means[name])
    assert told["people"][items["judge_b/other"][last]] == other
    assert items["judge_b/other_similarity"][last] == pytest.approx(means[other], abs=1e-4)
    nearest = items["judge_b/photo"][last]
    assert items["file"][nearest] == f"images/{real.files[similarity.argmax()]}"
    assert items["judge_b/photo_similarity"][last] == pytest.approx(similarity.max(), abs=1e-4)
    assert told["people"][items["identity"][items["judge_b/other_photo"][last]]] == other


def test_an_opened_image_tells_its_rows_and_large_numbers_whole(page: Path) -> None:
    rows = data(page, "rows-0")
    sample = rows[-1]["samples/demo/idbooth/complex/manifest.parquet"]
    assert sample["seed"] == str(2**62 + 7)
    assert rows[-1]["aligned/demo/idbooth/complex/manifest.parquet"]["reason"] == "no face"
    assert "audit/demo/idbooth/complex.csv" in rows[-2]


def test_a_person_who_is_no_longer_in_the_study_is_in_no_file(page: Path) -> None:
    for path in page.parent.rglob("*"):
        assert path.is_dir() or b"ID_0" not in path.read_bytes()


def test_equal_inputs_give_equal_bytes(study: ShownStudy, page: Path, tmp_path: Path) -> None:
    shutil.copytree(page.parent, tmp_path / "before")
    study.explore()
    for path in (tmp_path / "before").rglob("*"):
        other = page.parent / path.relative_to(tmp_path / "before")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_thumbnails_stand_in_their_places(study: ShownStudy, page: Path) -> None:
    sheet = np.asarray(Image.open(page.parent / "sheets/0.jpg").convert("RGB"))
    assert sheet.shape == (5 * 32, 5 * 32, 3)  # as large as the images are
    items = data(page, "items-0")
    place = 7
    image = np.asarray(Image.open(study.root / "dataset" / items["file"][place]))
    cell = sheet[32:64, 64:96].astype(float)
    assert np.abs(cell - image).mean() < 12 < np.abs(sheet[:32, :32] - image.astype(float)).mean()


def test_large_sets_are_cut_and_the_page_tells_of_how_many(tmp_path: Path) -> None:
    told = data(ShownStudy(tmp_path).explore(images=4), "study")["study"]
    assert [of["total"] for of in told["sets"]] == [10, 24, 24, 24]
    assert told["count"] == 4 * 4


def test_a_photograph_is_not_compared_with_itself() -> None:
    rows = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
    found = likeness(*[Features(rows, ["a/0", "a/1", "b/0"], {})] * 2, same=True)
    assert found["own"].tolist()[:2] == pytest.approx([0.6, 0.6])
    assert np.isnan(found["own"].iloc[2])  # an only one
    assert found["photo"].tolist() == ["a/1", "b/0", "a/1"]
    assert found["other"].tolist() == ["b", "b", "a"]
    apart = np.float32([[1, 0], [-0.6, 0.8], [-0.6, -0.8]])  # all less alike than nothing
    unlike = likeness(*[Features(apart, ["a/0", "a/1", "b/0"], {})] * 2, same=True)
    assert unlike["photo"].tolist() == ["a/1", "b/0", "a/1"]
    alone = likeness(*[Features(rows, ["a/0", "a/1", "a/2"], {})] * 2)
    assert alone["other"].tolist() == [None] * 3


def test_missing_features_are_told(study: ShownStudy) -> None:
    kept = study.sources
    study.sources = {source: paths for source, paths in kept.items() if source != "real"}
    with pytest.raises(StepError, match="features of the photographs by every recogniser"):
        study.explore()
    study.sources = kept
