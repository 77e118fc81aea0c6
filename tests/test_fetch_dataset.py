"""Archives of photographs from the database's page, served here from this machine."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline_steps import fetch_dataset
from pipeline_steps.io import download as download_module
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.photographs import FetchDatasetSettings
from tests.io.local_server import LocalServer, local_server


def archive(number: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        undated = zipfile.ZipInfo(f"Set{number}/1/TD_RGB_A_1_1.jpg")  # equal bytes at any time
        file.writestr(undated, bytes(200_000))
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    with local_server() as running:
        for number in (1, 2):
            running.files[f"/Set{number}.zip"] = archive(number)
        yield running


def settings(server: LocalServer, **changes: object) -> FetchDatasetSettings:
    archives = {f"data/Set{number}.zip": f"{server.address}/Set{number}.zip" for number in (1, 2)}
    values = {"accept_terms": True, "terms": "research only", "archives": archives}
    return FetchDatasetSettings.model_validate(values | changes)


def test_nothing_is_fetched_before_the_terms_are_accepted(
    server: LocalServer, tmp_path: Path
) -> None:
    with pytest.raises(StepError, match=r"not accepted \(research only\)"):
        fetch_dataset.fetch(settings(server, accept_terms=False), tmp_path)
    assert server.requests == []
    assert not FetchDatasetSettings().accept_terms


def test_archives_are_fetched_once_and_go_on_after_a_cut(
    server: LocalServer, tmp_path: Path
) -> None:
    server.cut = 1
    fetched = fetch_dataset.fetch(settings(server), tmp_path)
    assert [path.read_bytes() for path in fetched] == [archive(1), archive(2)]
    assert any(wanted for _, wanted in server.requests)  # the rest of the cut one
    server.requests.clear()
    assert fetch_dataset.fetch(settings(server), tmp_path) == []
    assert server.requests == []


def test_an_incomplete_archive_that_is_there_is_fetched_anew(
    server: LocalServer, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Set1.zip").write_bytes(archive(1)[:1000])
    (tmp_path / "data" / "Set2.zip").write_bytes(archive(2))
    assert fetch_dataset.fetch(settings(server), tmp_path) == [tmp_path / "data" / "Set1.zip"]
    assert (tmp_path / "data" / "Set1.zip").read_bytes() == archive(1)


def test_a_page_instead_of_an_archive_and_a_wrong_hash_are_refused(
    server: LocalServer, tmp_path: Path
) -> None:
    server.files["/Set1.zip"] = b"<html>Sign in</html>"
    with pytest.raises(StepError, match="20 bytes that are no zip archive"):
        fetch_dataset.fetch(settings(server), tmp_path)
    assert not (tmp_path / "data" / "Set1.zip").exists()
    server.files["/Set1.zip"] = archive(2)
    pinned = {"data/Set1.zip": sha256_bytes(archive(1))}
    with pytest.raises(StepError, match="SHA-256"):
        fetch_dataset.fetch(settings(server, sha256=pinned), tmp_path)
    assert not (tmp_path / "data" / "Set1.zip").exists()


def test_command_line(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = settings(server).model_dump(mode="json")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"fetch_dataset": section}))
    (tmp_path / "study.yaml").write_text("name: mine\nprepare: {}\n")
    assert fetch_dataset.main(["--study", "study.yaml", "own.yaml"]) == 0
    assert (tmp_path / "data" / "Set2.zip").read_bytes() == archive(2)
