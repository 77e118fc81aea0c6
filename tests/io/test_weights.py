from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.weights import (
    Weights,
    absent_files,
    content_hashes,
    locate,
    verified_hashes,
    verify,
)
from pipeline_steps.runtime.errors import StepError


def entry(source: str, **more: object) -> Weights:
    return Weights(
        name="net",
        task="recogniser",
        architecture="iresnet",
        source=source,
        licence="CC BY-NC 4.0",
        commercial_use=False,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONSENTED_FACES_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "weights"


def test_local_sources_are_found(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"1")
    assert locate(entry(str(tmp_path / "w.safetensors"))) == tmp_path / "w.safetensors"


def test_local_sources_are_found_from_the_projects_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(entry("pipeline_steps/seeds.py")).is_file()


@pytest.mark.parametrize(
    ("source", "fetch"),
    [
        ("hub:owner/name", "python -m pipeline_steps.fetch_models net --study <configuration>"),
        ("https://example.org/a.pth", "pipeline_steps.fetch_models net --study <configuration>"),
        ("nowhere/at/all", "from https://example.org and put it at nowhere/at/all"),
    ],
)
def test_absent_weights_say_where_from_how_and_under_what_licence(source: str, fetch: str) -> None:
    with pytest.raises(StepError) as caught:
        locate(entry(source, page="https://example.org"))
    for part in ("'net'", source, fetch, "CC BY-NC 4.0", "commercial use not allowed"):
        assert part in str(caught.value)


def test_fetched_weights_are_found_where_the_message_said(weights_folder: Path) -> None:
    (weights_folder / "net").mkdir(parents=True)
    (weights_folder / "net" / "backbone.pth").write_bytes(b"1")
    url = entry("https://example.org/a/backbone.pth")
    assert locate(url) == weights_folder / "net" / "backbone.pth"
    assert locate(entry("hub:owner/name")) == weights_folder / "net"


def test_pinned_hashes_are_checked(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"abc")
    good = {"unet/w.safetensors": sha256_bytes(b"abc")}
    assert verify(entry(str(tmp_path), sha256=good)) == good
    assert content_hashes(entry(str(tmp_path))) == good
    with pytest.raises(StepError, match="has SHA-256"):
        verify(entry(str(tmp_path), sha256={"unet/w.safetensors": "0" * 64}))
    with pytest.raises(StepError, match=r"vae.* is missing"):
        verify(entry(str(tmp_path), sha256={"vae/w.safetensors": "0" * 64}))


def test_nothing_pinned_checks_nothing(tmp_path: Path) -> None:
    assert verify(entry(str(tmp_path))) == {}


def test_an_entrys_list_of_files_says_what_counts(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"abc")
    (tmp_path / "w.fp16.safetensors").write_bytes(b"another copy")
    listed = entry(str(tmp_path), files=["unet/w.safetensors"])
    assert content_hashes(listed) == {"unet/w.safetensors": sha256_bytes(b"abc")}
    assert absent_files(listed) == []
    more = entry(str(tmp_path), files=["unet/w.safetensors", "vae/w.safetensors"])
    assert absent_files(more) == ["vae/w.safetensors"]
    for opened in (content_hashes, verify, locate):
        with pytest.raises(StepError, match=r"lack vae/w\.safetensors\. Source: .*licence: CC BY"):
            opened(more)


def test_absent_entries_miss_everything(weights_folder: Path) -> None:
    assert absent_files(entry("hub:owner/name", files=["a.json", "b.json"])) == ["a.json", "b.json"]
    assert absent_files(entry("https://example.org/a/backbone.pth")) == ["backbone.pth"]
    assert absent_files(entry("none")) == []


def test_local_places_below_the_folder_of_fetched_weights_follow_it(weights_folder: Path) -> None:
    (weights_folder / "net").mkdir(parents=True)
    (weights_folder / "net" / "b.pth").write_bytes(b"1")
    assert locate(entry("resources/weights/net/b.pth")) == weights_folder / "net" / "b.pth"


def test_a_file_out_of_an_archive_is_looked_for_by_its_own_name(weights_folder: Path) -> None:
    pack = entry("https://example.org/pack.zip", files=["face.onnx"])
    assert absent_files(pack) == ["face.onnx"]
    (weights_folder / "net").mkdir(parents=True)
    (weights_folder / "net" / "face.onnx").write_bytes(b"1")
    assert locate(pack) == weights_folder / "net" / "face.onnx"


def test_hashes_cover_what_is_pinned_what_is_not_and_components(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "part.safetensors").write_bytes(b"part")
    part = entry(str(tmp_path / "part.safetensors"))
    whole = entry(
        str(tmp_path),
        files=["a.json", "b.json"],
        sha256={"a.json": sha256_bytes(b"a.json")},
        components={"vae": part},
    )
    expected = {
        "a.json": sha256_bytes(b"a.json"),
        "b.json": sha256_bytes(b"b.json"),
        "vae:part.safetensors": sha256_bytes(b"part"),
    }
    assert verified_hashes(whole) == content_hashes(whole) == expected
    assert verify(whole) == {"a.json": expected["a.json"]}
    wrong = part.model_copy(update={"sha256": {"part.safetensors": "0" * 64}})
    for check in (verify, verified_hashes):
        with pytest.raises(StepError, match="has SHA-256"):
            check(whole.model_copy(update={"components": {"vae": wrong}}))
    frozen = whole.with_contents().frozen()
    (tmp_path / "b.json").write_text("replaced")  # pinned nowhere
    assert whole.with_contents().frozen() != frozen
