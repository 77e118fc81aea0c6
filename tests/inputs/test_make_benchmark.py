"""A user's own photographs become a benchmark that is read as InsightFace's are."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.io.images import read_image
from pipeline_steps.make_benchmark import drawn_genuine, drawn_impostors, hardest, main
from pipeline_steps.recognition.benchmarks import read_bin
from pipeline_steps.runtime.errors import StepError
from tests.inputs.conftest import Picture, encoded


@pytest.fixture(scope="module")
def album(faces: dict[str, list[Picture]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people's photographs, a broken one, and a wall."""
    folder = tmp_path_factory.mktemp("album")
    for name, pictures in faces.items():
        (folder / name).mkdir()
        for number, picture in enumerate(pictures[:2]):
            (folder / name / f"{number}.png").write_bytes(encoded(picture))
    (folder / "anna" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    (folder / "bob" / "wall.png").write_bytes(encoded(np.full((128, 128, 3), 90, np.uint8)))
    return folder


def make(album: Path, out: Path, *extra: object) -> pd.DataFrame:
    assert main([*map(str, ("--images", album, "--out", out, *extra))]) == 0
    return pd.read_csv(out.with_suffix(".csv"), keep_default_na=False)


def test_given_pairs_are_aligned_and_what_is_left_out_says_why(album: Path, tmp_path: Path) -> None:
    lines = ["anna/0.png,anna/1.png,true", "anna/0.png,bob/0.png,0", "eve/0.png,eve/9.png,yes"]
    lines += ["anna/broken.png,anna/1.png,1", "bob/0.png,bob/wall.png,1"]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,same", *lines]) + "\n")
    told = make(album, tmp_path / "own.bin", "--pairs", tmp_path / "pairs.csv")
    images, same = read_bin(tmp_path / "own.bin")
    assert same.tolist() == [True, False]
    assert images.shape == (4, 112, 112, 3)
    assert (images[0] == images[2]).all() and not (images[0] == images[1]).all()
    assert told["kept"].tolist() == [True, True, False, False, False]
    assert told["reason"].tolist()[2] == "eve/9.png: no such photograph"
    assert told["reason"].tolist()[4] == "bob/wall.png: no face"
    # As InsightFace's own reader opens it.
    encoded_images, flags = pickle.loads((tmp_path / "own.bin").read_bytes(), encoding="bytes")
    assert flags == [True, False]
    assert (read_image(encoded_images[3]) == images[3]).all()


def test_a_folder_per_person_gives_pairs_of_three_kinds_the_same_every_time(
    album: Path, tmp_path: Path
) -> None:
    draw = ["--genuine", 3, "--impostor", 4, "--hard", 2, "--recogniser", "demo_recogniser"]
    told = make(album, tmp_path / "a.bin", *draw)
    assert told["kind"].value_counts().to_dict() == {"genuine": 3, "impostor": 4, "hard": 2, "": 2}
    assert set(told.loc[told["kind"] == "", "first"]) == {"anna/broken.png", "bob/wall.png"}
    pairs = told[told["kept"]]
    own = pairs["first"].str.split("/").str[0] == pairs["second"].str.split("/").str[0]
    assert (own == (pairs["kind"] == "genuine")).all()
    assert not pairs.duplicated(["first", "second"]).any()
    assert read_bin(tmp_path / "a.bin")[1].tolist() == (pairs["kind"] == "genuine").tolist()
    make(album, tmp_path / "b.bin", *draw)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    with pytest.raises(StepError, match="name one"):
        make(album, tmp_path / "c.bin", "--hard", 2)


def test_draws_take_people_in_turn_and_no_pair_twice() -> None:
    owners = {f"{person}{i}": person for person, n in (("a", 30), ("b", 3)) for i in range(n)}
    rng = np.random.default_rng(0)
    genuine = [pair for pair, _ in drawn_genuine(owners, 6, rng)]
    assert sorted(owners[one] for one, _ in genuine) == ["a"] * 3 + ["b"] * 3
    for n in (5, 40, 500):  # of 90
        impostors = [pair for pair, _ in drawn_impostors(owners, n, rng)]
        assert len({*map(frozenset, impostors)}) == len(impostors) == min(n, 90)
        assert all(owners[one] != owners[other] for one, other in impostors)


def test_hard_impostors_are_the_most_alike_of_two_people() -> None:
    angles = np.radians([0.0, 2.0, 3.0, 90.0, 91.5])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    names, people = ["a", "b", "c", "d", "e"], ["p", "p", "q", "q", "r"]
    found = [pair for pair, _ in hardest(names, people, rows, 2, {frozenset("bc")})]
    assert found == [("d", "e"), ("a", "c")]
