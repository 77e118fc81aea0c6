"""Photographs in archives and folders: what is listed, what is refused."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipeline_steps.identities import photographs
from pipeline_steps.identities.photographs import file_stem, list_photographs, unique_stems
from pipeline_steps.io.images import BadImage
from pipeline_steps.runtime.errors import StepError


def jpeg(value=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_archive_and_folder_list_the_same_in_natural_order(tmp_path):
    names = ["S/10/a.jpg", "S/2/b.JPG", "S/2/c.png"]
    zipped = archive(tmp_path / "set.zip", dict.fromkeys(names, jpeg()))
    root = tmp_path / "set"
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    for source in (zipped, root):
        listing = list_photographs(source)
        found = [(item.folder, item.name) for item in listing.photographs]
        assert found == [("2", "b.JPG"), ("2", "c.png"), ("10", "a.jpg")]
        assert all(item.read() == jpeg() for item in listing.photographs)
    assert list_photographs(zipped).photographs[2].source == "set.zip/S/10/a.jpg"


def test_system_files_are_passed_over_and_other_files_counted(tmp_path):
    members = {
        "S/1/a.jpg": jpeg(),
        "S/1/.DS_Store": b"x",
        "S/1/._a.jpg": b"x",
        "__MACOSX/S/1/a.jpg": b"x",
        "S/1/Thumbs.db": b"x",
        "S/readme.txt": b"x",
        "S/empty/": b"",
    }
    listing = list_photographs(archive(tmp_path / "s.zip", members))
    assert [item.source for item in listing.photographs] == ["s.zip/S/1/a.jpg"]
    assert listing.ignored == 1
    assert listing.empty_folders == ("empty",)


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
def test_members_that_would_leave_the_archive_are_refused(tmp_path, name):
    source = archive(tmp_path / "s.zip", {name: jpeg(), "1/good.jpg": jpeg()})
    listed = {item.name: item for item in list_photographs(source).photographs}
    assert listed.pop("good.jpg").read() == jpeg()
    (evil,) = listed.values()
    assert evil.folder == ""
    with pytest.raises(BadImage) as caught:
        evil.read()
    assert caught.value.reason == "unsafe path"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s.zip"]


def test_oversized_and_damaged_members_are_refused(tmp_path, monkeypatch):
    source = archive(tmp_path / "s.zip", {"1/a.jpg": jpeg(), "1/b.jpg": jpeg(200)})
    content = bytearray(source.read_bytes())
    content[content.index(jpeg(200)) + 300] ^= 0xFF
    source.write_bytes(content)
    a, b = list_photographs(source).photographs
    assert a.read() == jpeg()
    with pytest.raises(BadImage, match="unreadable"):
        b.read()
    monkeypatch.setattr(photographs, "LARGEST_MEMBER", 100)
    with pytest.raises(BadImage, match="too large"):
        list_photographs(source).photographs[0].read()


def test_missing_and_broken_sources_are_named(tmp_path):
    with pytest.raises(StepError, match=r"nowhere\.zip does not exist"):
        list_photographs(tmp_path / "nowhere.zip")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"not a zip archive")
    with pytest.raises(
        StepError, match=r"broken\.zip is incomplete: 17 bytes that are no zip archive"
    ):
        list_photographs(broken)


def test_stems_are_safe_and_unique():
    assert file_stem("a b/ü\n?.jpg") == "___"
    assert file_stem("...jpg") == "_"
    assert file_stem("TD_RGB_A_1_3.jpg") == "TD_RGB_A_1_3"
    pairs = [("1", "a.jpg"), ("1", "A.png"), ("2", "a.jpg"), ("1", "a.bmp"), ("1", "a_2.jpg")]
    assert unique_stems(pairs) == ["a", "A_2", "a", "a_3", "a_2_2"]
