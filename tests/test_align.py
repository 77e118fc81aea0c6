"""The align step on real photographs, from manifests, archives and folders."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data
from skimage.transform import SimilarityTransform, warp

from pipeline_steps import align, features
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE
from pipeline_steps.faces.detection import Detector
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import encode_png, read_image, write_png
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.shards import pack
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FeaturesSettings
from pipeline_steps.study.settings.photographs import AlignSettings
from tests.registry import entry

FACE = np.ascontiguousarray(data.astronaut()[40:200, 140:300])  # NASA, public domain
CAT = np.ascontiguousarray(data.chelsea()[:160, :160])
FROZEN = Frozen("test", "align", 0, AlignSettings())
POSE = entry("pose", "landmarks", "none")


def from_manifest(tmp_path, rows):
    manifest = tmp_path / "in" / "manifest.parquet"
    write_manifest(manifest, rows)
    align.run(FROZEN, manifest=manifest, out=tmp_path / "out", device="cpu")
    return read_manifest(tmp_path / "out/manifest.parquet").set_index("source_file")


def test_faces_come_to_stand_on_the_template(tmp_path):
    write_png(tmp_path / "in/ID_1/0.png", FACE)
    table = from_manifest(tmp_path, [{"identity": "ID_1", "file": "ID_1/0.png"}])
    row = table.loc["ID_1/0.png"]
    assert (row["identity"], row["file"], row["kept"], row["reason"]) == (
        "ID_1",
        "ID_1/0.png",
        True,
        "",
    )
    assert row["sha256"] == sha256_file(tmp_path / "out/ID_1/0.png")
    aligned = read_image(tmp_path / "out/ID_1/0.png")
    assert aligned.shape == (112, 112, 3)

    found = Detector().detect([FACE], padding=0.5)[0]
    np.testing.assert_allclose(row["landmarks"], found.landmarks.ravel(), atol=1e-3)
    np.testing.assert_allclose(row["box"], found.box, atol=1e-3)
    transform = SimilarityTransform.from_estimate(found.landmarks, ARCFACE_TEMPLATE)
    expected = warp(FACE, transform.inverse, output_shape=(112, 112), preserve_range=True)
    assert np.abs(aligned - expected).mean() < 0.6
    again = Detector().detect([aligned], padding=0.5)[0]
    np.testing.assert_allclose(again.landmarks, transform(found.landmarks), atol=3.0)


def test_every_miss_is_a_row_with_its_reason_and_harms_no_neighbour(tmp_path):
    root = tmp_path / "in"
    for name, image in {"a": FACE, "cat": CAT, "z": FACE[:, ::-1]}.items():
        write_png(root / f"ID_1/{name}.png", image)
    (root / "ID_1/cut.png").write_bytes(encode_png(FACE)[:9000])
    (root / "ID_1/text.png").write_bytes(b"text")
    names = ["a", "cat", "cut", "gone", "text", "z"]
    rows = [{"identity": "ID_1", "file": f"ID_1/{name}.png", "kept": True} for name in names]
    rows.append({"identity": "ID_2", "file": None, "kept": False})
    table = from_manifest(tmp_path, rows)
    assert table["reason"].to_dict() == {
        "ID_1/a.png": "",
        "ID_1/cat.png": "no face",
        "ID_1/cut.png": "truncated",
        "ID_1/gone.png": "missing",
        "ID_1/text.png": "not an image",
        "ID_1/z.png": "",
    }
    assert table["kept"].tolist() == [True, False, False, False, False, True]
    missed = table[~table["kept"]]
    assert missed[["file", "sha256", "landmarks", "box"]].isna().all(axis=None)
    written = sorted(path.name for path in (tmp_path / "out/ID_1").iterdir())
    assert written == ["a.png", "z.png"]


def test_batches_and_other_identities_change_no_byte(tmp_path):
    root = tmp_path / "in"
    rows = []
    for identity in ("ID_1", "ID_2"):
        for index in range(3):
            write_png(root / f"{identity}/{index}.png", np.roll(FACE, 3 * index, axis=1))
            rows.append({"identity": identity, "file": f"{identity}/{index}.png"})
    from_manifest(tmp_path, rows)
    before = (tmp_path / "out/ID_2/2.png").read_bytes()
    from_manifest(tmp_path, rows[3:])
    assert (tmp_path / "out/ID_2/2.png").read_bytes() == before
    assert not (tmp_path / "out/ID_1/0.png").exists()  # no longer part of the source
    assert [len(batch) for batch in align.batches(align.inputs_of_images(root))] == [3, 3]


def test_archives_and_folders_of_images_in_the_wild(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(FACE).save(jpeg, "JPEG")
    members = {"00007.png": encode_png(FACE), "x/7.jpg": jpeg.getvalue(), "x/7.png": b""}
    with zipfile.ZipFile(tmp_path / "wild.zip", "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    align.run(FROZEN, images=tmp_path / "wild.zip", out=tmp_path / "out", device="cpu")
    table = read_manifest(tmp_path / "out/manifest.parquet").set_index("source_file")
    assert table.loc["wild.zip/00007.png", ["identity", "file"]].tolist() == ["00007", "00007.png"]
    assert table.loc["wild.zip/x/7.jpg", ["identity", "file"]].tolist() == ["x", "x/7.png"]
    assert pd.isna(table.loc["wild.zip/x/7.png", "file"])
    assert read_image(tmp_path / "out/00007.png").shape == (112, 112, 3)


def test_no_face_at_all_is_told_and_no_image_at_all_is_an_error(tmp_path, caplog):
    write_png(tmp_path / "in/a/0.png", CAT)
    table = from_manifest(tmp_path, [{"identity": "a", "file": "a/0.png"}])
    assert table["kept"].tolist() == [False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match="no image to align"):
        align.run(FROZEN, images=tmp_path / "empty", out=tmp_path / "out", device="cpu")
    with pytest.raises(StepError, match="--manifest, --images or --external"):
        align.run(FROZEN, out=tmp_path / "out", device="cpu")


def test_padding_is_a_setting(tmp_path):
    photograph = data.astronaut()
    face = Detector().detect([photograph])[0]
    # Cut through the eyebrows.
    write_png(tmp_path / "in/a/0.png", photograph[int(face.box[1]) + 40 :, 120:320])
    unpadded = Frozen("test", "align", 0, AlignSettings(padding=0.0))
    for name in "01":  # and one that counts for what was finished before
        (without,) = align.run(unpadded, images=tmp_path / "in", out=tmp_path / "0", device="cpu")
        (padded,) = align.run(FROZEN, images=tmp_path / "in", out=tmp_path / name, device="cpu")
    assert (without["kept"], padded["kept"]) == (False, True)


def test_command_line(tmp_path):
    write_png(tmp_path / "in/ID_1/0.png", FACE)
    write_manifest(tmp_path / "in/manifest.parquet", [{"identity": "ID_1", "file": "ID_1/0.png"}])
    config = tmp_path / "align.json"
    frozen = {"study": "t", "step": "align", "seed": 0, "settings": {}, "weights": {}}
    config.write_text(json.dumps(frozen | {"variant": {}}))
    arguments = ["--config", str(config), "--manifest", str(tmp_path / "in/manifest.parquet")]
    assert align.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    arguments = ["--config", str(config), "--images", str(tmp_path / "in")]
    assert align.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    one, other = (tmp_path / name / "ID_1/0.png" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_folders_that_only_sort_images_by_number_are_nobodys(tmp_path):
    names = [
        "00000/00007.png",
        "00000/00999.png",
        "69000/69001.png",
        "1000/a.png",
        "00001/00001.png",
    ]
    for name in names:
        write_png(tmp_path / "ffhq" / name, FACE)
    files = {item.source_file: item.file for item in align.inputs_of_images(tmp_path / "ffhq")}
    assert files == {
        "ffhq/00000/00007.png": "00007.png",
        "ffhq/00000/00999.png": "00999.png",
        "ffhq/69000/69001.png": "69001.png",
        "ffhq/1000/a.png": "1000/a.png",
        "ffhq/00001/00001.png": "00001/00001.png",
    }


def test_shards_of_a_webdataset_are_read_as_the_folder_of_their_images(tmp_path):
    images = {"000001": FACE, "000002": CAT, "000003": FACE}
    for number, keys in enumerate((["000001", "000002"], ["000003"])):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{number:05d}.tar", "w") as shard:
            for key in keys:
                for ending, content in ((".png", encode_png(images[key])), (".json", b"{}")):
                    member = tarfile.TarInfo(key + ending)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    for key, image in images.items():
        write_png(tmp_path / "folder" / f"{key}.png", image)
    rows = {}
    for name in ("shards", "folder"):
        out = tmp_path / f"{name}_out"
        rows[name] = align.run(FROZEN, images=tmp_path / name, out=out, device="cpu")
    plain = [[(row["file"], row["sha256"], row["reason"]) for row in rows[name]] for name in rows]
    assert plain[0] == plain[1]
    assert [row["source_file"] for row in rows["shards"]] == [
        "shards/00000.tar/000001.png",
        "shards/00000.tar/000002.png",
        "shards/00001.tar/000003.png",
    ]
    single = align.inputs_of_images(tmp_path / "shards" / "00001.tar")
    assert [item.file for item in single] == ["000003.png"]


class Killed(Exception):
    """The end of a process in the middle of its work."""


@pytest.fixture
def detected(monkeypatch):
    """Numbers of images in which a face is searched; the process is killed at a given search."""
    searched, last = [], [99]
    detect = Detector.detect

    def watched(detector, images, **options):
        if len(searched) == last[0]:
            raise Killed
        searched.append(len(images))
        return detect(detector, images, **options)

    monkeypatch.setattr(Detector, "detect", watched)
    monkeypatch.setattr(align, "NOTE_SECONDS", -1.0)
    return searched, last


def in_the_wild(folder, n):
    for index in range(n):
        write_png(folder / f"{index}.png", np.roll(FACE, 2 * index, axis=1))
    write_png(folder / "cat.png", CAT)


def files_of(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch, detected):
    searched, last = detected
    monkeypatch.setattr(align, "IMAGES_AT_ONCE", 2)
    in_the_wild(tmp_path / "in", 5)
    align.run(FROZEN, images=tmp_path / "in", out=tmp_path / "whole", device="cpu")
    assert searched == [2, 2, 2]
    last[0] = 5
    with pytest.raises(Killed):
        align.run(FROZEN, images=tmp_path / "in", out=tmp_path / "out", device="cpu")
    assert searched[3:] == [2, 2]
    last[0] = 99
    align.run(FROZEN, images=tmp_path / "in", out=tmp_path / "out", device="cpu")
    assert searched[5:] == [2]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_what_changed_is_aligned_again_and_nothing_else(tmp_path, monkeypatch, detected):
    searched, _ = detected
    monkeypatch.setattr(align, "IMAGES_AT_ONCE", 1)
    source, out = tmp_path / "in", tmp_path / "out"
    in_the_wild(source, 3)

    def again(frozen=FROZEN):
        searched.clear()
        align.run(frozen, images=source, out=out, device="cpu")
        return len(searched)

    assert again() == 4
    (out / "manifest.parquet").unlink()  # as Snakemake does before it runs a rule
    assert again() == 0
    write_png(source / "1.png", FACE[::-1])
    assert again() == 1
    (out / "2.png").write_bytes(b"")
    assert again() == 1
    assert again(Frozen("test", "align", 0, AlignSettings(), code="edited")) == 4


def test_images_in_shards_give_the_same_rows_and_features_and_faces_in_shards(tmp_path):
    rows = []
    for identity in ("ID_1", "ID_2"):
        for index in range(2):
            file = f"{identity}/{index}.png"
            write_png(tmp_path / "in" / file, np.roll(FACE, 3 * index, axis=1))
            rows.append({"identity": identity, "file": file, "prompt": "photo"})
            rows[-1]["sha256"] = sha256_file(tmp_path / "in" / file)
    shutil.copytree(tmp_path / "in", tmp_path / "shards/in")
    for identity in ("ID_1", "ID_2"):
        pack(tmp_path / "shards/in" / identity, ["0.png", "1.png"])
    assert not list((tmp_path / "shards").rglob("*.png"))

    made = []
    pose = Frozen("t", "features", 0, FeaturesSettings(), {"extractor": POSE})
    for place in (tmp_path, tmp_path / "shards"):
        from_manifest(place, rows)
        features.run([pose], aligned=place / "out", out=[place / "pose"], device="cpu")
        made.append([(place / name).read_bytes() for name in ("out/manifest.parquet", "pose")])

    assert made[0] == made[1]
    out = tmp_path / "shards/out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        *("ID_1/images.tar", "ID_2/images.tar", "items.json", "manifest.parquet")
    ]
    changed = (out / "ID_1/images.tar").stat().st_mtime_ns
    from_manifest(tmp_path / "shards", rows[:2])
    assert (out / "ID_1/images.tar").stat().st_mtime_ns == changed
    assert not (out / "ID_2/images.tar").exists()
