"""Datasets of others: every layout is read, faces come out aligned, what is broken is a row."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data

from pipeline_steps import align
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.detection import Detector
from pipeline_steps.identities import external
from pipeline_steps.identities.labelled_sets import identity_of_label, parts_of
from pipeline_steps.io.images import BadImage, encode_png, read_image, write_png
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import AlignSettings

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[40:200, 140:300])  # NASA, public domain
FROZEN = Frozen("test", "align", 0, AlignSettings())


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    found = Detector().detect([PHOTOGRAPH], padding=0.5)[0]
    assert found is not None
    return align_to_template(PHOTOGRAPH, found.landmarks)


def told(source: Path) -> list[tuple[str, bytes | str]]:
    """Label of each image, and its bytes or why there are none."""
    found: list[tuple[str, bytes | str]] = []
    for part in parts_of(source):
        for one in part():
            try:
                found.append((one.label, one.read()))
            except BadImage as error:
                found.append((one.label, error.reason))
    return found


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_folders_and_archives_of_folders(tmp_path: Path) -> None:
    members = {"set/b/10.jpg": b"2", "set/b/2.jpg": b"1", "set/a/x.png": b"0"}
    for name, content in members.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in/set/README.md").write_text("no image")
    (tmp_path / "in/set/b/link.png").symlink_to("/etc/hostname")
    assert told(tmp_path / "in") == [
        *[("a", b"0"), ("b", b"1"), ("b", b"2"), ("b", "link out of the source")]
    ]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    tar(tmp_path / "set.tar", members)
    expected = [("b", b"2"), ("b", b"1"), ("a", b"0")]
    assert told(tmp_path / "set.zip") == told(tmp_path / "set.tar") == expected


def test_equal_names_of_folders_in_two_places_stay_two_people(tmp_path: Path) -> None:
    for name in ("train/7/0.png", "test/7/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    assert [label for label, _ in told(tmp_path)] == ["test-7", "train-7"]


def test_shards_of_a_webdataset(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"000.jpg": b"a", "000.cls": b"17\n", "001.cls": b"3"})
    tar(tmp_path / "1.tar", {"002.json": b'{"identity": "ID_4"}', "002.png": b"b", "x.png": b"c"})
    whole = (tmp_path / "1.tar").read_bytes()
    assert told(tmp_path) == [
        *[("17", b"a"), ("3", "no image beside its label"), ("ID_4", b"b"), ("", b"c")]
    ]
    (tmp_path / "1.tar").write_bytes(whole[:2600])
    assert told(tmp_path)[-1] == ("", "truncated archive")


def test_parquet_with_and_without_what_datasets_notes(tmp_path: Path) -> None:
    images = [{"bytes": b"a", "path": None}, {"bytes": None, "path": "x.png"}, None]
    table = pa.table({"image": images, "label": [1, 0, None]})
    pq.write_table(table, tmp_path / "plain.parquet", row_group_size=2)
    expected: list[tuple[str, bytes | str]] = [("1", b"a"), ("0", "no image in the file")]
    assert told(tmp_path / "plain.parquet") == [*expected, ("", "no image in the file")]
    features = '"face": {"_type": "Image"}, "who": {"_type": "ClassLabel", "names": ["Al", "Bo"]}'
    noted = table.rename_columns(["face", "who"]).replace_schema_metadata(
        {"huggingface": f'{{"info": {{"features": {{{features}}}}}}}'}
    )
    pq.write_table(noted, tmp_path / "noted.parquet")
    assert told(tmp_path / "noted.parquet")[:2] == [("Bo", b"a"), ("Al", "no image in the file")]
    pq.write_table(table.select(["image"]), tmp_path / "bare.parquet")
    with pytest.raises(StepError, match="none that says whose the images are"):
        parts_of(tmp_path / "bare.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "plain.parquet").read_bytes()[:300])
    with pytest.raises(StepError, match="no whole Parquet file"):
        parts_of(tmp_path / "cut.parquet")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="does not exist"):
        parts_of(tmp_path / "nowhere")
    with pytest.raises(StepError, match="holds no image"):
        parts_of(tmp_path)


def test_labels_become_folders_that_stay_apart() -> None:
    names = ["ID_7", "n000001", "José", "Jos_", "a/b", "a.b", "parts", "-x", "x" * 300, "x" * 301]
    folders = [identity_of_label(name) for name in names]
    assert folders[:2] == names[:2] and len(set(folders)) == len(names)
    assert all("/" not in name and "." not in name and len(name) < 120 for name in folders)


def taken(source: Path, out: Path, **more: Path) -> pd.DataFrame:
    align.run(FROZEN, external=source, out=out, device="cpu", **more)
    return read_manifest(out / "manifest.parquet")


def test_aligned_faces_are_taken_as_they_are_and_others_are_aligned(
    tmp_path: Path, face: np.ndarray
) -> None:
    for name, image in {
        "as_is": face,
        "raw": PHOTOGRAPH,
        "crop": PHOTOGRAPH[20:132, 30:142],
    }.items():
        write_png(tmp_path / name / "ID_1/0.png", image)
        (tmp_path / name / "ID_1/1.png").write_bytes(b"no image")
        (tmp_path / name / "2.png").write_bytes(encode_png(image))
        table = taken(tmp_path / name, tmp_path / "out" / name).set_index("source_file")
        kept = table.loc["ID_1/0.png"]
        assert kept["kept"] and kept["identity"] == "ID_1"
        assert table.loc["ID_1/1.png", "reason"] == "not an image"
        got = read_image(tmp_path / "out" / name / str(kept["file"]))
        assert np.array_equal(got, image) == (name == "as_is")
        assert (kept["landmarks"] is None) == (name == "as_is")
        seen = got.any(axis=2)
        assert np.abs(got.astype(int) - face)[seen].mean() < (12 if name == "crop" else 0.01)


def test_a_run_goes_on_where_it_was_stopped_and_follows_the_dataset(
    tmp_path: Path, face: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(6):
        write_png(source / f"ID_{number // 2}/{number}.png", np.roll(face, number, axis=0))
    monkeypatch.setattr(external, "IMAGES_PER_PART", 2)
    made: list[str] = []
    align_batch = external.align_batch

    def stopped(after: int) -> Callable[..., list[dict[str, object]]]:
        def run(inputs, *rest):  # type: ignore[no-untyped-def]
            if len(made) == after:
                raise KeyboardInterrupt
            made.extend(one.file for one in inputs)
            return align_batch(inputs, *rest)

        return run

    monkeypatch.setattr(external, "align_batch", stopped(4))
    with pytest.raises(KeyboardInterrupt):
        taken(source, out)
    monkeypatch.setattr(external, "align_batch", stopped(100))
    whole = taken(source, out)
    assert len(made) == len(set(made)) == 6 == whole["kept"].sum()
    assert taken(source, out).equals(whole) and len(made) == 6
    (source / "ID_2/4.png").unlink()
    (source / "ID_2/5.png").unlink()
    less = taken(source, out, withdrawn=tmp_path / "nobody.csv")
    assert len(less) == 4 and not list(out.glob("ID_2/*.png")) and len(made) == 6
    (tmp_path / "withdrawn.csv").write_text("identity\nid_1\n")  # as prepare reads names
    rest = taken(source, out, withdrawn=tmp_path / "withdrawn.csv")
    assert rest["reason"].tolist() == ["", "", "no consent", "no consent"]
    assert not list(out.glob("ID_1/*.png"))
