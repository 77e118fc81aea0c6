from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_steps import gather
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main


def rows(*identities: str, method: str = "idbooth") -> list[dict[str, Any]]:
    return [
        {
            "identity": identity,
            "index": index,
            "attempt": 0,
            "file": f"{identity}/{index}.png",
            "method": method,
        }
        for identity in identities
        for index in (0, 1)
    ]


def parts(folder: Path, *contents: list[dict[str, Any]]) -> list[Path]:
    columns = ["identity", "index", "attempt", "file", "method"]
    paths = [folder / f"{number}.parquet" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        write_manifest(path, content, columns)
    return paths


def test_rows_come_in_natural_order_whatever_the_division(tmp_path: Path) -> None:
    one = parts(tmp_path / "one", rows("ID_10", "ID_9", "ID_1"))
    two = parts(tmp_path / "two", rows("ID_9"), rows("ID_1", "ID_10"), [])
    gather.run(parts=one, out=tmp_path / "one.parquet")
    gather.run(parts=two[::-1], out=tmp_path / "two.parquet")
    joined = read_manifest(tmp_path / "one.parquet")
    assert joined["identity"].tolist() == ["ID_1", "ID_1", "ID_9", "ID_9", "ID_10", "ID_10"]
    assert joined["index"].tolist() == [0, 1, 0, 1, 0, 1]
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([rows("ID_1"), rows("ID_1")], "image 0 of ID_1 is in two parts"),
        ([rows("ID_1"), rows("ID_2", method="dreambooth")], "mix method dreambooth, idbooth"),
        ([[], []], "no part holds an image"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, contents: list[list[dict[str, Any]]], message: str
) -> None:
    with pytest.raises(StepError, match=message):
        gather.run(parts=parts(tmp_path, *contents), out=tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_drawings_of_one_image_stand_in_their_order(tmp_path: Path) -> None:
    again = rows("ID_2")[0] | {"attempt": 1}
    paths = parts(tmp_path, [again, *rows("ID_2")])
    gather.run(parts=paths, out=tmp_path / "all.parquet")
    joined = read_manifest(tmp_path / "all.parquet")
    assert list(zip(joined["index"], joined["attempt"], strict=True)) == [(0, 0), (0, 1), (1, 0)]


def test_parts_of_two_versions_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", rows("ID_1"))
    write_manifest(tmp_path / "b.parquet", [{"identity": "ID_2", "index": 0, "attempt": 0}])
    with pytest.raises(StepError, match="has the columns"):
        gather.run(parts=[tmp_path / "a.parquet", tmp_path / "b.parquet"], out=tmp_path / "c")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = parts(tmp_path, rows("ID_1"), rows("ID_2"))
    flags = ["--parts", *map(str, paths), "--out", str(tmp_path / "all.parquet")]
    assert gather.main(flags) == 0
    assert len(read_manifest(tmp_path / "all.parquet")) == 4
    flags[1] = str(tmp_path / "absent.parquet")
    assert run_main(lambda: gather.main(flags)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: manifest")
