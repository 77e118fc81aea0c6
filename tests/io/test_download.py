from __future__ import annotations

import io
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io import download as module
from pipeline_steps.io.download import download, extract
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.runtime.errors import StepError
from tests.io.local_server import LocalServer, local_server

CONTENT = np.random.default_rng(0).bytes(5 * 2**20 + 17)
DIGEST = sha256_bytes(CONTENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with local_server() as running:
        running.files["/w.bin"] = CONTENT
        yield running


def left_over(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(
    server: LocalServer, tmp_path: Path
) -> None:
    download(f"{server.address}/w.bin", tmp_path / "a" / "w.bin", DIGEST)
    assert (tmp_path / "a" / "w.bin").read_bytes() == CONTENT
    assert left_over(tmp_path) == {"w.bin"}


def test_a_cut_connection_is_taken_up_where_it_ended(server: LocalServer, tmp_path: Path) -> None:
    server.cut = 2
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    three_quarters = half + (len(CONTENT) - half) // 2
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_a_later_run_asks_for_the_rest_only(server: LocalServer, tmp_path: Path) -> None:
    half = len(CONTENT) // 2
    server.cut = 1

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert (tmp_path / "w.bin.part").stat().st_size == half
    assert not (tmp_path / "w.bin").exists()
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert server.requests[-1] == ("/w.bin", f"bytes={half}-")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_a_part_of_another_version_is_not_continued(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "w.bin.part.version").write_text('"another"')
    download(f"{server.address}/w.bin", tmp_path / "w.bin")  # nothing pinned would notice
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    (tmp_path / "w.bin.part").write_bytes(b"x" * 1000)  # of unknown origin
    download(f"{server.address}/w.bin", tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_without_versions_a_download_starts_over(server: LocalServer, tmp_path: Path) -> None:
    server.versions, server.cut = False, 1
    (tmp_path / "w.bin.part").write_bytes(b"x" * 1000)
    download(f"{server.address}/w.bin", tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_a_part_that_is_whole_already_is_taken(server: LocalServer, tmp_path: Path) -> None:
    server.cut = 0
    (tmp_path / "w.bin.part").write_bytes(CONTENT)
    (tmp_path / "w.bin.part.version").write_text(f'"{DIGEST[:16]}"')
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert server.requests == [("/w.bin", f"bytes={len(CONTENT)}-")]
    assert left_over(tmp_path) == {"w.bin"}


def test_a_server_without_ranges_serves_the_whole_again(
    server: LocalServer, tmp_path: Path
) -> None:
    server.cut, server.ranges = 1, False
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_the_old_one_kept(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"old")
    server.files["/w.bin"] = b"<html>not found</html>"
    with pytest.raises(StepError, match=r"SHA-256 .* the registry says .* is kept"):
        download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert (tmp_path / "w.bin").read_bytes() == b"old"
    assert left_over(tmp_path) == {"w.bin"}


def test_passing_troubles_of_the_server_are_waited_out(server: LocalServer, tmp_path: Path) -> None:
    server.answers = [503, 429]
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert len(server.requests) == 3


def test_a_connection_that_brings_nothing_any_more_is_given_up(
    server: LocalServer, tmp_path: Path
) -> None:
    server.answers = [503] * 10
    with pytest.raises(StepError, match="the server answers 503"):
        download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert len(server.requests) == module.STALLS


def test_what_arrived_before_giving_up_is_kept(server: LocalServer, tmp_path: Path) -> None:
    server.cut = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", lambda _: server.answers.append(503))
        with pytest.raises(StepError, match=f"after {len(CONTENT) // 2} bytes: .* again to go on"):
            download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    server.answers = []
    download(f"{server.address}/w.bin", tmp_path / "w.bin", DIGEST)
    assert server.requests[-1] == ("/w.bin", f"bytes={len(CONTENT) // 2}-")


@pytest.mark.parametrize("status", [401, 404])
def test_a_file_that_is_gone_asks_for_another_source(
    server: LocalServer, tmp_path: Path, status: int
) -> None:
    server.answers = [status]
    with pytest.raises(StepError, match=rf"{status} .*gone, or asks for a login.*config/models"):
        download(f"{server.address}/w.bin", tmp_path / "w.bin")
    assert len(server.requests) == 1


def test_without_network_there_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(
        StepError, match=r"cannot be fetched after 0 bytes: .*refused; .*fetch on another machine"
    ):
        download(f"http://127.0.0.1:{port}/w.bin", tmp_path / "w.bin")
    with pytest.raises(
        StepError, match=r"cannot be fetched after 0 bytes: .*fetch on another machine"
    ):
        download("http://nowhere.invalid/w.bin", tmp_path / "w.bin")


def test_a_full_disk_is_noticed_before_the_transfer(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(StepError, match=r"0\.0 GB free, w\.bin needs 0\.0 GB more"):
        download(f"{server.address}/w.bin", tmp_path / "w.bin")


def test_two_programs_do_not_write_one_file(server: LocalServer, tmp_path: Path) -> None:
    with (
        module._alone(tmp_path / "w.bin.part"),
        pytest.raises(StepError, match=r"another program is fetching w\.bin"),
    ):
        download(f"{server.address}/w.bin", tmp_path / "w.bin")
    download(f"{server.address}/w.bin", tmp_path / "w.bin")


KINDS = pytest.mark.parametrize("kind", ["zip", "tar.gz"])


def pack(folder: Path, members: dict[str, bytes], kind: str) -> Path:
    place = folder / f"pack.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return place
    with tarfile.open(place, "w:gz") as ball:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            ball.addfile(member, io.BytesIO(content))
    return place


@KINDS
def test_files_come_out_of_an_archive_whatever_folder_they_lie_in(
    tmp_path: Path, kind: str
) -> None:
    archive = pack(tmp_path, {"antelope/face.onnx": b"face", "antelope/other.onnx": b"o"}, kind)
    extract(archive, tmp_path / "out", {"face.onnx": sha256_bytes(b"face")})
    assert left_over(tmp_path / "out") == {"face.onnx"}
    assert (tmp_path / "out" / "face.onnx").read_bytes() == b"face"


@KINDS
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../face.onnx": b"face"}, "holds the path '../face.onnx'"),
        ({"face.onnx": b"face", "/etc/x": b"y"}, "holds the path '/etc/x'"),
        ({"a\\..\\..\\face.onnx": b"face"}, "holds the path"),
        ({"a/face.onnx": b"face", "b/face.onnx": b"other"}, "holds 2 files named face.onnx"),
        ({"readme.txt": b""}, "holds 0 files named face.onnx"),
        ({"face.onnx": b"wrong"}, "SHA-256 .* nothing was replaced"),
    ],
)
def test_unfit_archives_are_refused_and_the_old_file_kept(
    tmp_path: Path, members: dict[str, bytes], message: str, kind: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "face.onnx").write_bytes(b"old")
    archive = pack(tmp_path, members, kind)
    with pytest.raises(StepError, match=message):
        extract(archive, tmp_path / "out", {"face.onnx": sha256_bytes(b"face")})
    assert left_over(tmp_path) == {archive.name, "face.onnx"}
    assert (tmp_path / "out" / "face.onnx").read_bytes() == b"old"


@KINDS
def test_what_is_no_archive_is_refused(tmp_path: Path, kind: str) -> None:
    whole = pack(tmp_path, {"face.onnx": bytes(range(256)) * 400}, kind).read_bytes()
    for content in (b"<html>", whole[: len(whole) // 2]):
        (tmp_path / f"pack.{kind}").write_bytes(content)
        with pytest.raises(StepError, match=rf"pack\.{kind} cannot be read as an archive"):
            extract(tmp_path / f"pack.{kind}", tmp_path, {"face.onnx": None})
    assert left_over(tmp_path) == {f"pack.{kind}"}


def test_a_link_in_an_archive_is_no_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pack.tar.gz", "w:gz") as ball:
        member = tarfile.TarInfo("face.onnx")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        ball.addfile(member)
    with pytest.raises(StepError, match=r"holds 0 files named face\.onnx"):
        extract(tmp_path / "pack.tar.gz", tmp_path, {"face.onnx": None})
