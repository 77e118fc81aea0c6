"""The prepare step on real photographs, and on everything that goes wrong with photographs."""

from __future__ import annotations

import csv
import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from pipeline_steps import check_dataset, prepare
from pipeline_steps.faces.detection import Detector
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import CheckDatasetSettings, PrepareSettings

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:256, 96:352])  # NASA, public domain
CAT = data.chelsea()[:256, :256]


def encoded(image=PHOTOGRAPH, kind="JPEG", **options):
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def brighter(step):
    """The same face in a file with other bytes."""
    return encoded(np.clip(PHOTOGRAPH.astype(int) + step, 0, 255).astype(np.uint8))


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def prepared(tmp_path, sources, code="", **changes):
    settings = {"resolution": 64, "detection_side": 192, "sources": [str(s) for s in sources]}
    frozen = Frozen("test", "prepare", 0, PrepareSettings(**{**settings, **changes}), code=code)
    out = tmp_path / "dataset"
    prepare.run(frozen, out=out, device="cpu")
    return read_manifest(out / "manifest.parquet").set_index("source"), out


def identities(out):
    with (out / "identities.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_archives_of_the_database_become_square_images_with_a_row_each(tmp_path):
    first = archive(
        tmp_path / "TD_RGB_A_Set1.zip",
        {
            "TD_RGB_A_Set1/1/TD_RGB_A_1_3.jpg": brighter(0),
            "TD_RGB_A_Set1/1/TD_RGB_A_2_3.jpg": brighter(10),
            "TD_RGB_A_Set1/1/TD_RGB_A_1_0.jpg": brighter(20),
            "TD_RGB_A_Set1/1/.DS_Store": b"x",
        },
    )
    second = archive(
        tmp_path / "TD_RGB_A_Set2.zip", {"TD_RGB_A_Set2/10/TD_RGB_A_3_7.JPG": brighter(30)}
    )
    genders = tmp_path / "gender.csv"
    genders.write_text("participant,gender\n1,F\n10,M\n")
    table, out = prepared(
        tmp_path, [first, second], gender_table=str(genders), consent="research use"
    )

    assert len(table) == 4
    row = table.loc["TD_RGB_A_Set1.zip/TD_RGB_A_Set1/1/TD_RGB_A_2_3.jpg"]
    assert (row["identity"], row["camera"], row["position"]) == ("ID_1", 2, 3)
    assert row["file"] == "images/ID_1/TD_RGB_A_2_3.png"
    assert row["kept"]
    assert row["reason"] == ""
    assert row["sha256"] == sha256_file(out / row["file"])
    excluded = table.loc["TD_RGB_A_Set1.zip/TD_RGB_A_Set1/1/TD_RGB_A_1_0.jpg"]
    assert (excluded["kept"], excluded["reason"]) == (
        False,
        "position excluded (prepare.positions)",
    )
    assert pd.isna(excluded["file"])

    image = read_image(out / row["file"])
    assert image.shape == (64, 64, 3)
    found = Detector().detect([image])[0]
    np.testing.assert_allclose(found.landmarks.ravel(), row["landmarks"], atol=2.0)
    box = row["box"]
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(32, abs=0.1)  # margin 2
    np.testing.assert_allclose([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], 31.5, atol=0.1)

    assert identities(out) == [
        {
            "identity": "ID_1",
            "gender": "F",
            "n_images": "2",
            "source": "TD_RGB_A_Set1.zip",
            "consent": "research use",
            "folder": "1",
        },
        {
            "identity": "ID_10",
            "gender": "M",
            "n_images": "1",
            "source": "TD_RGB_A_Set2.zip",
            "consent": "research use",
            "folder": "10",
        },
    ]


def bad_photographs():
    """File name to content, whether it is kept, and the reason in its row."""
    upright = Image.fromarray(PHOTOGRAPH)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    gray = np.asarray(upright.convert("L"))
    small = np.asarray(upright.resize((64, 64)))
    two = np.concatenate([PHOTOGRAPH, np.asarray(upright.resize((256, 256)))[:, ::-1]], axis=1)
    two[:40, 256:] = 90
    translucent = upright.convert("RGBA")
    return {
        "good.jpg": (encoded(), True, ""),
        "truncated.jpg": (brighter(3)[:4000], False, "truncated"),
        "empty.jpg": (b"", False, "empty file"),
        "text.jpg": (b"no photograph", False, "not an image"),
        "cat.jpg": (encoded(CAT), False, "no face (prepare.detector)"),
        "two.png": (encoded(two, "PNG"), True, "2 faces, largest kept"),
        "gray.jpg": (encoded(gray), True, ""),
        "cmyk.jpg": (encoded(upright.convert("CMYK")), True, ""),
        "deep.png": (encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"), True, ""),
        "alpha.png": (encoded(translucent, "PNG"), True, ""),
        "palette.png": (encoded(upright.convert("P"), "PNG"), True, ""),
        "turned.jpg": (encoded(turned, exif=exif), True, ""),
        "tiny.png": (encoded(small[:8, :8], "PNG"), False, "too small"),
        "far.png": (encoded(small, "PNG"), False, "face too small (prepare.min_face_side)"),
        "copy of good.jpg": (encoded(), False, "duplicate"),
        "ünïcode (1).jpg": (brighter(5), True, ""),
    }


def test_bad_photographs_are_rows_with_a_reason_and_harm_no_neighbour(tmp_path):
    cases = bad_photographs()
    folder = tmp_path / "faces" / "anna"
    folder.mkdir(parents=True)
    for name, (content, _, _) in cases.items():
        (folder / name).write_bytes(content)
    (tmp_path / "faces" / "stray.jpg").write_bytes(encoded())
    table, out = prepared(tmp_path, [tmp_path / "faces"], file_pattern=None)

    assert len(table) == len(cases) + 1
    for name, (_, kept, reason) in cases.items():
        row = table.loc[f"faces/anna/{name}"]
        expected = "duplicate" if reason == "duplicate" else reason
        if name in ("good.jpg", "copy of good.jpg"):
            continue  # which of the two is the copy follows from their order, below
        assert (row["kept"], row["reason"]) == (kept, expected), name
    copies = table.loc[["faces/anna/copy of good.jpg", "faces/anna/good.jpg"]]
    assert copies["kept"].tolist() == [True, False]
    assert copies["reason"].iloc[1] == "duplicate of faces/anna/copy of good.jpg"
    stray = table.loc["faces/stray.jpg"]
    assert (stray["kept"], stray["reason"]) == (
        False,
        "not in a participant's folder (prepare.participant_level)",
    )

    kept = table[table["kept"]]
    assert sorted(out / file for file in kept["file"]) == sorted((out / "images").rglob("*.png"))
    assert table[~table["kept"]]["file"].isna().all()
    assert all(file.isascii() and " " not in file for file in kept["file"])
    upright = read_image(out / table.loc["faces/anna/alpha.png"]["file"]).astype(int)
    for name in ("turned.jpg", "cmyk.jpg", "two.png"):
        image = read_image(out / table.loc[f"faces/anna/{name}"]["file"]).astype(int)
        assert np.abs(image - upright).mean() < 20, name


def test_names_outside_the_pattern_are_rows_too(tmp_path):
    members = {
        "S/1/TD_RGB_A_1_1.jpg": brighter(0),
        "S/1/IMG_0001.jpg": brighter(1),
        "S/1/TD_RGB_A_1_1.jpg.png": brighter(2),
    }
    table, _ = prepared(tmp_path, [archive(tmp_path / "s.zip", members)])
    assert table["reason"].to_dict() == {
        "s.zip/S/1/IMG_0001.jpg": "odd name (prepare.file_pattern)",
        "s.zip/S/1/TD_RGB_A_1_1.jpg": "",
        "s.zip/S/1/TD_RGB_A_1_1.jpg.png": "odd name (prepare.file_pattern)",
    }


def test_members_with_unsafe_paths_are_rows_and_nothing_is_written_for_them(tmp_path):
    members = {"../1/TD_RGB_A_1_1.jpg": brighter(0), "S/2/TD_RGB_A_1_1.jpg": brighter(1)}
    table, out = prepared(tmp_path, [archive(tmp_path / "s.zip", members)])
    assert table.loc["s.zip/../1/TD_RGB_A_1_1.jpg", "reason"] == "unsafe path"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "s.zip"]
    assert [path.name for path in (out / "images").iterdir()] == ["ID_2"]


def test_identities_without_a_usable_photograph_are_named_and_the_others_are_done(tmp_path):
    root = tmp_path / "faces"
    for folder, content in {"1": encoded(), "2": encoded(CAT), "3": b"", "12": None}.items():
        (root / folder).mkdir(parents=True)
        if content is not None:
            (root / folder / "a.jpg").write_bytes(content)
    table, out = prepared(tmp_path, [root], file_pattern=None)
    assert [row["identity"] for row in identities(out)] == ["ID_1"]
    assert table.loc["faces/2/a.jpg", "reason"] == "no face (prepare.detector)"

    def checked(reaction):
        settings = CheckDatasetSettings(on_empty_identity=reaction)
        return check_dataset.run(Frozen("test", "check_dataset", 0, settings), dataset=out)

    named = r"ID_2 \(no face \(prepare.detector\)\); ID_3 \(empty file\); ID_12 \(empty folder\)"
    with pytest.raises(StepError, match=f"3 of 4 identities: {named}"):
        checked("error")
    assert not (out / "complete.json").exists()
    assert checked("skip")["left_out"] == {
        "ID_2": ["no face (prepare.detector)"],
        "ID_3": ["empty file"],
        "ID_12": [],
    }


def test_own_photographs_under_the_default_pattern_name_the_setting_that_decides(tmp_path):
    source = archive(tmp_path / "s.zip", {"S/anna/IMG_1.jpg": encoded()})
    with pytest.raises(StepError, match=r"reasons: odd name \(prepare.file_pattern\)"):
        prepared(tmp_path, [source])


def test_a_folder_without_images_is_a_person_without_any_and_is_named(tmp_path):
    members = {"S/anna/a.jpg": encoded(), "S/bob/a.mov": b"moov", "S/李雷/a.txt": b"x"}
    _, out = prepared(tmp_path, [archive(tmp_path / "s.zip", members)], file_pattern=None)
    report = json.loads((out / "report.json").read_text())
    assert report["without_image"]["ID_bob"] == ["no image among 1 files"]
    assert len(report["without_image"]) == 2
    assert report["sources"][0]["folders_of_nobody"].keys() == {"S"}
    named = [one["which"] for one in report["findings"] if "are no images" in one["finding"]]
    assert named == [["s.zip/S/bob/a.mov", "s.zip/S/李雷/a.txt"]]


def test_no_photograph_at_all_is_an_error(tmp_path):
    (tmp_path / "faces").mkdir()
    with pytest.raises(StepError, match="there are no photographs"):
        prepared(tmp_path, [tmp_path / "faces"])
    with pytest.raises(StepError, match=r"gone\.zip does not exist"):
        prepared(tmp_path, [tmp_path / "gone.zip"])


def test_workers_and_repetition_change_no_byte_and_withdrawn_images_go(tmp_path):
    root = tmp_path / "faces"
    for identity in "123":
        (root / identity).mkdir(parents=True)
        for step in range(3):
            (root / identity / f"{step}.jpg").write_bytes(brighter(step + 10 * int(identity)))
    settings = PrepareSettings(
        sources=(str(root),), file_pattern=None, resolution=64, detection_side=192
    )
    frozen = Frozen("test", "prepare", 0, settings)
    for name, workers in (("a", 1), ("b", 3)):
        prepare.run(frozen, out=tmp_path / name, device="cpu", workers=workers)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 9 + 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    (root / "1" / "0.jpg").unlink()
    for path in (root / "3").iterdir():
        path.unlink()
    (root / "3").rmdir()
    prepare.run(frozen, out=tmp_path / "a", device="cpu")
    left = {path.relative_to(tmp_path / "a/images").as_posix() for path in files_of(tmp_path / "a")}
    assert left == {"ID_1/1.png", "ID_1/2.png", "ID_2/0.png", "ID_2/1.png", "ID_2/2.png"}
    assert not (tmp_path / "a/images/ID_3").exists()


def test_only_new_photographs_are_looked_at_again(tmp_path, monkeypatch):
    searched = []
    detect = Detector.detect

    def watched(detector, images, **options):
        searched.append(len(images))
        return detect(detector, images, **options)

    monkeypatch.setattr(Detector, "detect", watched)
    root = tmp_path / "faces"
    for identity in "12":
        (root / identity).mkdir(parents=True)
        (root / identity / "a.jpg").write_bytes(brighter(int(identity)))

    def again(**changes):
        searched.clear()
        prepared(tmp_path, [root], **{"file_pattern": None, **changes})
        return sum(searched)

    assert again() == 2
    first = {path: path.read_bytes() for path in files_of(tmp_path / "dataset")}
    (tmp_path / "dataset/manifest.parquet").unlink()  # as Snakemake does before it runs a rule
    assert again(consent="research") == 0
    assert first == {path: path.read_bytes() for path in files_of(tmp_path / "dataset")}
    (root / "2" / "a.jpg").write_bytes(brighter(9))
    assert again() == 1
    assert again(margin=1.5) == 2
    assert again(margin=1.5) == 0
    assert again(margin=1.5, code="edited") == 2


def files_of(out):
    return (out / "images").rglob("*.png")


def test_command_line(tmp_path, capsys):
    source = archive(tmp_path / "s.zip", {"S/1/TD_RGB_A_1_1.jpg": encoded()})
    config = tmp_path / "prepare.json"
    settings = {"sources": [str(source)], "resolution": 64}
    frozen = {"study": "t", "step": "prepare", "seed": 0, "weights": {}, "variant": {}}
    config.write_text(json.dumps(frozen | {"settings": settings}))
    out = tmp_path / "dataset"
    assert prepare.main(["--config", str(config), "--out", str(out)]) == 0
    assert (out / "images/ID_1/TD_RGB_A_1_1.png").is_file()
    config.write_text(json.dumps(frozen | {"settings": settings | {"margn": 2}}))
    with pytest.raises(StepError, match="unknown key 'margn'"):
        prepare.main(["--config", str(config), "--out", str(out)])
