"""Data that a study names are opened before it starts, each fault in one sentence."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_steps.check_study import page, refuse_unready
from pipeline_steps.io.images import encode_png
from pipeline_steps.io.weights import FOLDER_VARIABLE
from pipeline_steps.preflight.data import missing_data, unfit_data
from pipeline_steps.recognition.benchmarks import write_bin
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan, is_rendered, make_plan
from pipeline_steps.study.settings.study import merged, read_configs
from pipeline_steps.study.snapshot import listed

ROOT = Path(__file__).parents[2]
IMAGE = encode_png(np.zeros((112, 112, 3), np.uint8))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data that fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "weights"))
    for name in ("photos/anna/a.png", "photos/bob/a.png", "wild/deep/a.jpg", "others/x/0.png"):
        put(tmp_path / name, IMAGE)
    put(tmp_path / "set/images/0.png", IMAGE)
    (tmp_path / "set/templates.csv").write_text("template,media,file\n1,1,0.png\n")
    (tmp_path / "set/pairs.csv").write_text("template_a,template_b,same\n1,1,1\n")
    (tmp_path / "people.csv").write_text("participant,consent\nanna,true\n")
    write_bin(tmp_path / "pairs.bin", np.zeros((20, 112, 112, 3), np.uint8), [True] * 10)
    return tmp_path


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def plan(**changes: Any) -> Plan:
    prepare = {"sources": ["photos"], "gender_table": "people.csv", "file_pattern": None}
    data: dict[str, Any] = {
        "prepare": prepare,
        "in_the_wild": "wild",
        "external_sets": {"others": "others"},
        "template_sets": ["set"],
        "benchmarks": ["pairs.bin"],
        "training_sets": [],
    }
    config = read_configs([ROOT / "config" / "demo.yaml"])
    return make_plan(merged(config | data, changes), "")


def test_data_that_fit_are_not_told_of_and_others_are() -> None:
    assert missing_data(plan()) == unfit_data(plan()) == []
    text, missing = page(plan(in_the_wild="photos/anna/a.png"))
    assert text.endswith(
        "Missing (1):\n  1. in-the-wild reference images: photos/anna/a.png\n"
        "     -> source photos/anna/a.png is neither a folder nor a .zip or .tar archive"
    )
    assert len(missing) == 1


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as opened:
            member = tarfile.TarInfo("a.png")
            member.size = len(IMAGE)
            opened.addfile(member, io.BytesIO(IMAGE))
    else:
        with zipfile.ZipFile(stream, "w") as opened:
            opened.writestr("anna/a.png", IMAGE)
    return stream.getvalue()


def some_pairs(count: int) -> bytes:
    write_bin(Path("few"), np.zeros((2 * count, 112, 112, 3), np.uint8), [True] * count)
    return Path("few").read_bytes()


UNFIT = {
    "wild: README": ("in_the_wild", "README.md", b"# Data", "neither a folder nor a .zip or .tar"),
    "wild: empty folder": ("in_the_wild", "empty", None, "holds no image"),
    "wild: cut tar": ("in_the_wild", "wild.tar", b"x" * 2000, "no whole, uncompressed tar"),
    "wild: cut zip": ("in_the_wild", "wild.zip", b"PK\3\4", "source wild.zip is incomplete"),
    "wild: no images": ("in_the_wild", "w/0.jpg", b"<html>", "holds no image.*not an image"),
    "benchmark: CSV": ("benchmarks", "lfw.csv", b"a,b,same\n", "lfw.csv was refused: .*no pickle"),
    "benchmark: picture": ("benchmarks", "lfw.bin", IMAGE, "lfw.bin was refused"),
    "benchmark: few pairs": ("benchmarks", "few.bin", lambda: some_pairs(3), "3 pairs, fewer than"),
    "table: empty": ("prepare.gender_table", "g.csv", b"", "expected participant or identity"),
    "table: picture": ("prepare.gender_table", "g.csv", IMAGE, "no UTF-8 CSV file"),
    "table: refuses nobody": (
        *("prepare.gender_table", "g.csv"),
        *(b"participant,consent\nAnnna,no\n", "refuses 'Annna', but no folder"),
    ),
    "photographs: table": ("prepare.sources", "p.csv", b"a,b", "neither a folder nor"),
    "photographs: cut": ("prepare.sources", "p.zip", archive("zip")[:60], "is incomplete"),
    "photographs: none": ("prepare.sources", "none/x/README", b"", "no photograph can be used"),
    "external: README": ("external_sets.others", "README.md", b"#", "holds no image"),
    "external: pages": ("external_sets.others", "o/1/0.png", b"<html>", "can be read .*not an im"),
    "external: Parquet": ("external_sets.others", "o.parquet", b"PAR1", "no whole Parquet file"),
    "external: records": ("external_sets.others", "o.rec", b"", "no RecordIO file"),
    "templates: empty": ("template_sets", "empty", None, "neither templates.csv nor"),
    "templates: columns": (
        "template_sets",
        "t/templates.csv",
        b"a,b\n1,2\n",
        "t has neither pairs",
    ),
    "templates: image": ("template_sets", "lone/pairs.csv", b"x", "lone has neither templates"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_such_data_is_told_in_one_sentence(folder: Path, case: str) -> None:
    setting, name, content, sentence = UNFIT[case]
    if content is None:
        (folder / name).mkdir()
    else:
        put(folder / name, content() if callable(content) else content)
    named = name.split("/")[0]
    section, _, key = setting.partition(".")
    value: Any = [named] if section in ("benchmarks", "template_sets") else named
    changed = {key: [named] if key == "sources" else named} if key else value
    found = plan(**{section: changed})
    (item,) = unfit_data(found)
    assert re.search(sentence, item.how), item.how
    assert "\n" not in item.how
    assert item.where == ("photos" if case == "table: refuses nobody" else named)


def test_a_run_is_refused_for_what_its_own_jobs_read(folder: Path) -> None:
    (folder / "empty").mkdir()
    found = plan(in_the_wild="empty")
    refuse_unready(found, ["pairs.bin", listed("photos")])
    with pytest.raises(StepError, match=r"cannot start\. Missing \(1\):\n  1\. in-the-wild"):
        refuse_unready(found, ["pairs.bin", listed("empty")])


@pytest.mark.parametrize("setting", ["gender_table", "benchmarks"])
def test_a_folder_in_the_place_of_a_file_is_told(folder: Path, setting: str) -> None:
    (folder / "empty").mkdir()
    prepare = {"prepare": {"gender_table": "empty"}}
    (item,) = missing_data(plan(**(prepare if setting == "gender_table" else {setting: ["empty"]})))
    assert (item.where, item.how) == ("empty", "this is a folder: name a file in it")


@pytest.mark.parametrize(
    "nothing",
    [
        {"in_the_wild": ""},
        {"external_sets": {"others": ""}},
        *({key: [" "]} for key in ("benchmarks", "template_sets")),
        *({"prepare": {key: value}} for key, value in (("sources", [""]), ("gender_table", ""))),
    ],
)
def test_no_path_is_refused_by_the_settings(nothing: dict[str, Any]) -> None:
    with pytest.raises(StepError, match="expected a path"):
        plan(**nothing)


@pytest.mark.parametrize("path", ["{person}/a.zip", "a\nb"])
def test_a_path_that_the_workflow_cannot_hold_is_refused_by_the_settings(path: str) -> None:
    with pytest.raises(StepError, match=r"in_the_wild: expected a path without \{ and \}"):
        plan(in_the_wild=path)


def test_a_path_from_the_home_folder_is_found() -> None:
    home = {"sources": ["~/photos"], "gender_table": "~/people.csv", "withdrawn": "~/w.csv"}
    found = plan(
        prepare=home,
        in_the_wild="~/wild",
        external_sets={"others": "~/others"},
        template_sets=["~/set"],
        benchmarks=["~/pairs.bin"],
    )
    assert missing_data(found) == unfit_data(found) == []
    assert all(Path(path).is_absolute() for path in (*found.put_in, found.study.prepare.withdrawn))


def test_nobody_who_refused_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "withdrawn.csv", b"identity,absent\nx,yes\n")
    put(folder / "people.csv", b"participant,consent\nbob,no\n")
    put(folder / "photos/bob/unnamed", IMAGE)
    put(folder / "others/ID_x/0.png", IMAGE)
    opened: list[str] = []
    read, stream = Path.read_bytes, Path.open
    monkeypatch.setattr(Path, "read_bytes", lambda p: opened.append(str(p)) or read(p))
    monkeypatch.setattr(
        Path, "open", lambda p, *a, **k: opened.append(str(p)) or stream(p, *a, **k)
    )
    assert unfit_data(plan(prepare={"withdrawn": "withdrawn.csv"})) == []
    assert any("others/x" in path for path in opened)
    assert not [path for path in opened if "bob" in path or "ID_x" in path]


PRESETS = sorted(path for path in ROOT.glob("config/*.yaml") if path.stem != "models")


@pytest.mark.parametrize("study", PRESETS, ids=lambda path: path.stem)
def test_everything_that_a_preset_takes_in_has_a_name(study: Path) -> None:
    plan = make_plan(read_configs([study]), study.name)
    wanted = {path for path in plan.put_in if not is_rendered(path)}
    assert {missing.where for missing in missing_data(plan)} == wanted


def test_a_mask_that_is_not_there_is_named() -> None:
    groups = {"pair": {"people": ["ID_1", "ID_2"], "masks": ["left", "mask.png"]}}
    config = read_configs([ROOT / "config/demo.yaml"]) | {"sample_together": {"groups": groups}}
    (missing,) = missing_data(make_plan(config, "it"))
    assert (missing.what, missing.where) == ("mask of a person's place", "mask.png")
