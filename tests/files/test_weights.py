from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.hashes import sha256_bytes
from pipeline_steps.files.weights import content_hashes, locate, verify
from pipeline_steps.settings.base import Weights


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
        ("hub:owner/name", "hf download owner/name --revision abc --local-dir"),
        ("https://example.org/a/backbone.pth", "curl --location --create-dirs --output"),
        ("nowhere/at/all", "put the file or folder there"),
    ],
)
def test_absent_weights_say_where_from_how_and_under_what_licence(source: str, fetch: str) -> None:
    with pytest.raises(StepError) as caught:
        locate(entry(source, revision="abc"))
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
