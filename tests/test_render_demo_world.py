"""The rendered world's files: archives as the Tufts Face Database's, benchmarks, truth."""

from __future__ import annotations

import csv
import re
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.demo_world.rendering import population
from pipeline_steps.demo_world.rendering.population import CONSENTED, build_pairs, person
from pipeline_steps.faces.detection import Detector
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.recognition.benchmarks import read_bin
from pipeline_steps.render_demo_world import archive_of, benchmark_face, main, run, write_zip
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import RenderDemoWorldSettings

MEMBER = re.compile(r"TD_RGB_A_Set([1-4])/(\d+)/TD_RGB_A_([1-3])_([0-8])\.jpg")


def rendered(out: Path, workers: int) -> Path:
    settings = RenderDemoWorldSettings.model_construct(  # smaller than what a study may ask for
        participants=5,
        photograph_size=48,
        in_the_wild=6,
        in_the_wild_size=48,
        benchmark_pairs=40,
    )
    frozen = Frozen(study="tiny", step="render_demo_world", seed=2, settings=settings)
    with pytest.MonkeyPatch.context() as patch:
        for name in set(population.BENCHMARKS) - {"cross_pose"}:
            patch.delitem(population.BENCHMARKS, name)
        run(frozen, out=out, workers=workers)
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("world"), workers=1)


def test_four_archives_hold_every_participants_session(world: Path) -> None:
    archives = sorted((world / "tfd").glob("*.zip"))
    assert [path.name for path in archives] == [f"TD_RGB_A_Set{k}.zip" for k in (1, 2, 3, 4)]
    photographs: Counter[int] = Counter()
    for number, path in enumerate(archives, 1):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            for name in archive.namelist():
                match = MEMBER.fullmatch(name)
                assert match
                assert int(match[1]) == number == archive_of(int(match[2]), 5)
                photographs[int(match[2])] += 1
            image = read_image(archive.read(archive.namelist()[0]))
            assert image.shape == (48, 48, 3)
    assert photographs == dict.fromkeys(range(1, 6), 27)


def test_participants_fill_the_archives_in_order() -> None:
    archives = [archive_of(number, 113) for number in range(1, 114)]
    assert archives == sorted(archives)
    assert set(Counter(archives).values()) == {28, 29}


def test_the_gender_table_is_true(world: Path) -> None:
    with (world / "tfd" / "gender.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["participant"] for row in rows] == ["1", "2", "3", "4", "5"]
    for row in rows:
        gender = person(2, CONSENTED, int(row["participant"])).identity.gender
        assert row["gender"] == {"male": "M", "female": "F"}[gender]


def test_truth_has_a_row_for_every_photograph(world: Path) -> None:
    names: list[str] = []
    for path in sorted((world / "tfd").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            names += archive.namelist()
    truth = read_manifest(world / "truth" / "tfd.parquet", ("identity", "file", "landmarks"))
    assert sorted(truth["file"]) == sorted(names)
    assert all(
        file.split("/")[1] == who[3:] for file, who in zip(truth.file, truth.identity, strict=True)
    )
    assert {len(marks) for marks in truth["landmarks"]} == {10}
    position = truth["file"].str.extract(r"_(\d)\.jpg")[0].astype(int)
    assert np.corrcoef(position, truth["yaw"])[0, 1] > 0.99
    assert set(truth["place"]) == {"none"}
    with zipfile.ZipFile(world / "in_the_wild.zip") as archive:
        wild = read_manifest(world / "truth" / "in_the_wild.parquet")
        assert sorted(wild["file"]) == sorted(archive.namelist())
        assert read_image(archive.read("00005.png")).shape == (48, 48, 3)
    assert wild["place"].nunique() > 1


def test_benchmarks_are_read_as_insightfaces_are(world: Path) -> None:
    images, same = read_bin(world / "benchmarks" / "cross_pose.bin")
    pairs = build_pairs("cross_pose", 40, seed=2)
    assert images.shape == (80, 112, 112, 3)
    assert same.tolist() == [pair.same for pair in pairs]
    assert images.std((1, 2, 3)).min() > 5
    face = partial(benchmark_face, name="cross_pose", seed=2, detector=Detector(min_face_size=40))
    for place, pair in ((0, pairs[0]), (3, pairs[3])):
        for k in (0, 1):
            shown = face(pair.people[k], pair.circumstances[k])
            np.testing.assert_array_equal(images[2 * place + k], shown)


def test_workers_change_no_byte(world: Path, tmp_path: Path) -> None:
    again = rendered(tmp_path, workers=2)
    files = sorted(p.relative_to(world) for p in world.rglob("*") if p.is_file())
    assert len(files) == 9
    for file in files:
        assert sha256_file(world / file) == sha256_file(again / file), file


def test_a_zips_bytes_depend_on_its_members_only(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_zip(tmp_path / name, [("x/1.txt", b"one"), ("x/2.txt", b"two")])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("x/2.txt") == b"two"


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "in_the_wild.zip" in capsys.readouterr().out
