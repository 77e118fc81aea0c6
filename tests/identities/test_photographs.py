"""Photographs in archives and folders: what is listed, what is refused, what is salvaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline_steps.identities import containers
from pipeline_steps.identities.containers import contents_of
from pipeline_steps.identities.photographs import (
    file_stem,
    list_photographs,
    unique_stems,
)
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
        found = [(item.where.folder, item.name) for item in listing.photographs]
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
    assert listing.others == ("s.zip/S/readme.txt",)
    assert [where.folder for where in listing.bare] == ["empty"]
    assert {*listing.nobody} == {"S", "__MACOSX", "__MACOSX/S", "__MACOSX/S/1"}


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
def test_members_that_would_leave_the_archive_are_refused(tmp_path, name):
    source = archive(tmp_path / "s.zip", {name: jpeg(), "1/good.jpg": jpeg()})
    listed = {item.name: item for item in list_photographs(source).photographs}
    assert listed.pop("good.jpg").read() == jpeg()
    (evil,) = listed.values()
    assert evil.where.folder == ""
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
    monkeypatch.setattr(containers, "LARGEST_MEMBER", 100)
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


FILES = {f"S/{n}/a.jpg": bytes([n]) * 500 + f"{n}".encode() * 300 for n in range(1, 6)}


class Unseekable(io.BytesIO):
    """A stream, into which sizes can only be written after the content."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


def zipped(compression, *, stream=False):
    buffer = Unseekable() if stream else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(zipfile.ZipInfo("S/"), b"")
        for name, content in FILES.items():
            with archive.open(name, "w", force_zip64=stream) as member:
                member.write(content)
    return buffer.getvalue()


def read_all(path):
    found, failed = {}, {}
    for entry in contents_of(path).entries:
        if not entry.is_folder:
            try:
                found[entry.path] = entry.read()
            except BadImage as error:
                failed[entry.path] = error.reason
    return found, failed


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("stream", [False, True])
def test_whole_files_of_a_cut_archive_are_read_at_every_length(tmp_path, compression, stream):
    whole = zipped(compression, stream=stream)
    path = tmp_path / "cut.zip"
    path.write_bytes(whole)
    assert read_all(path) == (FILES, {})
    fewest = 0
    for length in range(50, len(whole) - 22, 97):
        path.write_bytes(whole[:length])
        found, failed = read_all(path)
        assert found.items() <= FILES.items()
        assert len(failed) <= 1
        assert set(failed.values()) <= {"truncated"}
        assert fewest <= len(found)
        fewest = len(found)
        assert f"{length} bytes that end before" in contents_of(path).broken
    assert fewest == len(FILES)


def test_a_damaged_file_in_a_cut_archive_is_told_by_its_checksum(tmp_path):
    whole = bytearray(zipped(zipfile.ZIP_STORED))
    whole[whole.index(FILES["S/2/a.jpg"]) + 7] ^= 1
    path = tmp_path / "cut.zip"
    path.write_bytes(whole[:-30])
    found, failed = read_all(path)
    assert failed == {"S/2/a.jpg": "unreadable"}
    assert len(found) == len(FILES) - 1


def test_deflated_content_of_a_cut_archive_is_not_inflated_without_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "LARGEST_MEMBER", 10_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("S/1/bomb.jpg", bytes(1_000_000))
    assert len(buffer.getvalue()) < 10_000
    path = tmp_path / "cut.zip"
    path.write_bytes(buffer.getvalue()[:-30])
    assert read_all(path) == ({}, {"S/1/bomb.jpg": "too large"})


def test_an_incomplete_source_says_its_size_and_what_to_do(tmp_path):
    path = tmp_path / "TD_RGB_A_Set1.zip"
    whole = zipped(zipfile.ZIP_STORED)
    path.write_bytes(whole[: len(whole) // 2])
    message = rf"Set1\.zip is incomplete: {len(whole) // 2} bytes .* salvage"
    with pytest.raises(StepError, match=message):
        list_photographs(path)
    listing = list_photographs(path, salvage=True)
    assert 0 < len(listing.photographs) < len(FILES)
    assert "whole" in listing.broken
    path.write_bytes(b"<html>sign in first</html>")
    with pytest.raises(StepError, match="26 bytes that are no zip archive"):
        list_photographs(path)
    assert list_photographs(path, salvage=True).photographs == ()


def tarred(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("S/1/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_tar_archives_list_their_files_and_follow_no_links(tmp_path):
    evil = {"../9/a.jpg": b"x"}
    path = tarred(tmp_path / "set.tar", FILES | evil)
    assert read_all(path) == (
        FILES,
        {"../9/a.jpg": "unsafe path", "S/1/link.jpg": "no regular file"},
    )
    listing = list_photographs(path)
    assert [item.where.folder for item in listing.photographs] == ["", "1", "1", "2", "3", "4", "5"]


def test_a_cut_tar_archive_is_used_as_far_as_it_goes(tmp_path):
    path = tarred(tmp_path / "set.tar", FILES)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(FILES["S/3/a.jpg"]) + 100])
    with pytest.raises(StepError, match="end before the archive does"):
        list_photographs(path)
    assert read_all(path) == (
        {name: FILES[name] for name in ("S/1/a.jpg", "S/2/a.jpg")},
        {"S/3/a.jpg": "truncated"},
    )
    (tmp_path / "z.tar").write_bytes(zlib.compress(whole))
    with pytest.raises(StepError, match="no uncompressed tar archive"):
        list_photographs(tmp_path / "z.tar")


def test_other_files_are_no_sources(tmp_path):
    (tmp_path / "set.rar").write_bytes(b"Rar!")
    with pytest.raises(StepError, match=r"neither a folder nor a \.zip or \.tar"):
        list_photographs(tmp_path / "set.rar")
