"""Fetching a study's weights from a server on this machine, by the command line."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from safetensors.torch import save

from pipeline_steps.fetch_models import main
from pipeline_steps.io import download as downloads
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.preflight.needs import missing_models
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan
from pipeline_steps.study.registry import missing_weights, read_models
from pipeline_steps.study.settings.study import read_study
from tests.io.local_server import LocalServer, local_server

ROOT = Path(__file__).parents[1]
UNET, FACE = b"unet " * 1000, b"face " * 1000


def checkpoint() -> bytes:
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, stream)
    return stream.getvalue()


PIXELS = checkpoint()
PLAIN = {"licence": "MIT", "commercial_use": True}
CLOSED = {"licence": "No sale", "commercial_use": False}


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"pack/{name}.onnx", content)
    return stream.getvalue()


def registry(address: str) -> dict[str, dict[str, Any]]:
    """A study's weights, each kind of source once."""
    return {
        "base": PLAIN
        | {
            "task": "base_model",
            "architecture": "stable-diffusion",
            "source": "hub:owner/base",
            "revision": "abc",
            "mirrors": ["hub:other/base"],
            "files": ["model_index.json", "unet/w.safetensors"],
            "sha256": {"unet/w.safetensors": sha256_bytes(UNET)},
            "options": {"resolution": 512},
            "components": {"vae": "vae"},
        },
        "vae": PLAIN
        | {
            "task": "autoencoder",
            "architecture": "autoencoder-kl",
            "source": "hub:owner/vae",
            "files": ["config.json"],
        },
        "face": CLOSED
        | {
            "task": "recogniser",
            "architecture": "iresnet50",
            "source": f"{address}/pack.zip",
            "files": ["face.onnx"],
            "sha256": {"face.onnx": sha256_bytes(FACE)},
        },
        "pixels": PLAIN
        | {
            "task": "features",
            "architecture": "inception-v3",
            "source": f"{address}/inception.pt",
        },
        "pose": PLAIN | {"task": "pose", "architecture": "landmarks", "source": "none"},
        "tone": PLAIN | {"task": "skin_tone", "architecture": "typology-angle", "source": "none"},
    }


class Scene:
    """A server, a registry, a study, and the folder of weights."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.weights = folder / "weights"
        self.entries = registry(server.address)
        self.accepted = ["MIT", "No sale"]
        server.files |= {
            "/owner/base/resolve/abc/model_index.json": b"{}",
            "/owner/base/resolve/abc/unet/w.safetensors": UNET,
            "/owner/vae/resolve/main/config.json": b"{}",
            "/pack.zip": zipped(face=FACE, other=b"o"),
            "/inception.pt": PIXELS,
        }

    def write(self) -> list[str]:
        study = {
            "name": "small",
            "base_models": ["base"],
            "recogniser": "face",
            "accept_licences": self.accepted,
            "prepare": {"consent": "yes"},
            "groups": {"skin_tone": "tone"},
            "score": {
                "identity": {"recognisers": ["face"]},
                "pose": {"extractor": "pose"},
                "quality": dict.fromkeys(
                    (
                        "frechet_extractor",
                        "cmmd_extractor",
                        "prdc_extractor",
                        "face_quality_extractor",
                    ),
                    "pixels",
                )
                | {"prompt_extractor": None},
            },
        }
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study))
        (self.folder / "models.yaml").write_text(yaml.safe_dump(self.entries))
        return [
            "--study",
            str(self.folder / "study.yaml"),
            "--models",
            str(self.folder / "models.yaml"),
        ]

    def fetch(self, *more: str) -> int:
        return main([*self.write(), *more])

    def files(self) -> dict[str, bytes]:
        found = (file for file in self.weights.rglob("*") if file.is_file())
        return {file.relative_to(self.weights).as_posix(): file.read_bytes() for file in found}


WHOLE = {
    "base/model_index.json": b"{}",
    "base/unet/w.safetensors": UNET,
    "vae/config.json": b"{}",
    "face/face.onnx": FACE,
    "pixels/inception.pt": PIXELS,
}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setenv("CONSENTED_FACES_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with local_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
        yield Scene(server, tmp_path)


def test_everything_a_study_needs_is_fetched_once(scene: Scene) -> None:
    assert scene.fetch() == 0
    assert scene.files() == WHOLE
    asked = len(scene.server.requests)
    assert asked == 5
    assert scene.fetch() == 0
    assert len(scene.server.requests) == asked
    models = read_models(scene.folder / "models.yaml")
    study = read_study(yaml.safe_load((scene.folder / "study.yaml").read_text()), "study")
    assert missing_weights(study, models) == []


def test_named_entries_bring_their_components(scene: Scene) -> None:
    scene.fetch("base")
    assert scene.files().keys() == {name for name in WHOLE if name.startswith(("base", "vae"))}
    with pytest.raises(StepError, match="no entry 'sd9'"):
        scene.fetch("sd9")


def test_every_connection_cut_at_half_resumes(scene: Scene) -> None:
    scene.server.cut_first = True
    assert scene.fetch() == 0
    assert scene.files() == WHOLE
    assert sum(wanted is None for _, wanted in scene.server.requests) == 5
    assert sum(wanted is not None for _, wanted in scene.server.requests) == 5


def test_half_a_copy_in_the_hubs_cache_does_not_count(scene: Scene) -> None:
    cache = scene.folder / "hub" / "models--owner--base"
    commit = "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "abc").write_text(commit)
    (cache / "snapshots" / commit / "unet").mkdir(parents=True)
    (cache / "snapshots" / commit / "model_index.json").write_text("{}")
    scene.fetch("base")
    assert scene.files().keys() == {name for name in WHOLE if name.startswith(("base", "vae"))}


def test_a_whole_copy_in_the_hubs_cache_is_enough(scene: Scene) -> None:
    cache = scene.folder / "hub" / "models--owner--base"
    commit = "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "abc").write_text(commit)
    (cache / "snapshots" / commit / "unet").mkdir(parents=True)
    (cache / "snapshots" / commit / "model_index.json").write_text("{}")
    (cache / "snapshots" / commit / "unet" / "w.safetensors").write_bytes(UNET)
    scene.fetch("base")
    assert scene.files().keys() == {"vae/config.json"}


def test_a_wrong_hash_stops_and_keeps_what_is_there(scene: Scene) -> None:
    scene.fetch()
    old = scene.weights / "base" / "unet" / "w.safetensors"
    old.write_bytes(b"an older version")
    scene.server.files["/owner/base/resolve/abc/unet/w.safetensors"] = b"tampered"
    with pytest.raises(StepError, match=r"'base' were not fetched: .*SHA-256"):
        scene.fetch()
    assert old.read_bytes() == b"an older version"
    scene.server.files["/owner/base/resolve/abc/unet/w.safetensors"] = UNET
    scene.fetch()
    assert scene.files() == WHOLE


EXCUSE = b'{"error": "Not found", "message": "no such repository here"}'
SAFE, WRONG = save({"w": torch.ones(3)}), b"<!DOCTYPE html><title>Sign in</title>"
GRAPH = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
ONNX = onnx.helper.make_model(GRAPH).SerializeToString()
OLD = io.BytesIO()
torch.save({"w": torch.zeros(3)}, OLD, _use_new_zipfile_serialization=False)
SENT = {
    "safetensors": ("w.safetensors", SAFE, [SAFE[:-4], SAFE + b"x", SAFE[:6]]),
    "onnx": ("w.onnx", ONNX, [ONNX[:9], onnx.ModelProto().SerializeToString()]),
    "checkpoint": ("w.pth", PIXELS, [PIXELS[:200], zipped(face=b"1")]),
    "old checkpoint": ("w.bin", OLD.getvalue(), [b"\x80\x04N."]),
    "json": ("config.json", b'{"_class_name": "AutoencoderKL"}', [b"{"]),
    "text": ("merges.txt", b"#version: 0.2", []),
}


@pytest.mark.parametrize("kind", SENT)
def test_what_is_no_such_file_is_not_kept_where_no_hash_is_pinned(scene: Scene, kind: str) -> None:
    name, right, broken = SENT[kind]
    scene.entries["vae"]["files"] = [name]
    address = f"/owner/vae/resolve/main/{name}"
    for content in [EXCUSE, WRONG, b"", *broken]:
        scene.server.files[address] = content
        with pytest.raises(StepError, match=rf"gave {len(content)} bytes that are no {name}"):
            scene.fetch("vae")
        assert scene.files() == {}
    scene.server.files[address] = right
    scene.fetch("vae")
    assert scene.files() == {f"vae/{name}": right}
    (scene.weights / "vae" / name).write_bytes(EXCUSE)  # as an earlier version kept it
    scene.fetch("vae")
    assert scene.files() == {f"vae/{name}": right}


def test_a_file_much_smaller_than_the_registry_says_is_not_kept(scene: Scene) -> None:
    scene.entries["pixels"]["size"] = 157_000_000
    with pytest.raises(StepError, match=rf"{len(PIXELS)} bytes, where 157000000 were expected"):
        scene.fetch("pixels")
    assert scene.files() == {}


def test_a_file_of_an_archive_is_looked_into_where_no_hash_is_pinned(scene: Scene) -> None:
    scene.entries["face"]["sha256"] = {}
    with pytest.raises(StepError, match=r"pack\.zip holds 5000 bytes that are no face\.onnx"):
        scene.fetch("face")
    assert scene.files() == {}


def test_weights_that_are_a_servers_excuse_are_told_of_by_check_study(scene: Scene) -> None:
    scene.fetch()
    (scene.weights / "pixels/inception.pt").write_bytes(EXCUSE)
    models = read_models(scene.folder / "models.yaml")
    study = read_study(yaml.safe_load((scene.folder / "study.yaml").read_text()), "study")
    (item,) = missing_models(Plan(study, models, {}))
    assert item.what == "weights pixels (features)" and "are no inception.pt" in item.how


def test_an_archive_with_a_wrong_file_is_refused(scene: Scene) -> None:
    scene.server.files["/pack.zip"] = zipped(face=b"tampered")
    with pytest.raises(StepError, match=r"face\.onnx of .*pack\.zip has SHA-256"):
        scene.fetch("face")
    assert scene.files() == {}


def test_nothing_is_fetched_before_every_licence_is_accepted(scene: Scene) -> None:
    scene.accepted = ["MIT"]
    with pytest.raises(StepError) as caught:
        scene.fetch()
    assert "licences not accepted: 'No sale' (face)." in str(caught.value)
    assert scene.server.requests == []
    scene.accepted = ["base", "vae", "face", "pixels"]  # entry by entry
    assert scene.fetch() == 0


def test_a_package_comes_from_pips_own_index_and_only_with_the_hash_that_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as ball:
        for name, content in {
            "setup.py": b"from setuptools import setup; setup(name='faces', version='1.0')",
            "faces/face.onnx": FACE,
        }.items():
            member = tarfile.TarInfo(f"faces-1.0/{name}")
            member.size = len(content)
            ball.addfile(member, io.BytesIO(content))
    scene.server.files |= {
        "/simple/faces/": b'<a href="/faces-1.0.tar.gz">faces-1.0.tar.gz</a>',
        "/faces-1.0.tar.gz": packed.getvalue(),
    }
    monkeypatch.setenv("PIP_INDEX_URL", f"{scene.server.address}/simple")
    entry = scene.entries["face"]
    for source, told in (
        ("pypi:faces==1.0", "pypi:<name>==<version> --hash=sha256:<hash> expected"),
        (f"pypi:faces==1.0 --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES"),
    ):
        entry["source"] = source
        with pytest.raises(StepError, match=re.escape(told)):
            scene.fetch("face")
        assert not (scene.weights / "face/face.onnx").exists()
    entry["source"] = f"pypi:faces==1.0 --hash=sha256:{sha256_bytes(packed.getvalue())}"
    scene.fetch("face")
    assert [path.name for path in (scene.weights / "face").iterdir()] == ["face.onnx"]
    assert (scene.weights / "face/face.onnx").read_bytes() == FACE


def test_a_withdrawn_model_comes_from_its_mirror(scene: Scene) -> None:
    for name in ("model_index.json", "unet/w.safetensors"):
        content = scene.server.files.pop(f"/owner/base/resolve/abc/{name}")
        scene.server.files[f"/other/base/resolve/main/{name}"] = content
    assert scene.fetch() == 0
    assert scene.files() == WHOLE


def test_a_model_that_no_source_has_names_them_all(scene: Scene) -> None:
    scene.server.files = {}
    with pytest.raises(StepError, match=r"owner/base/.* 404 .*other/base/.* 404") as caught:
        scene.fetch("base")
    assert "\n" not in str(caught.value)


def test_what_has_no_address_is_asked_for_after_the_rest_was_fetched(scene: Scene) -> None:
    by_hand = {"source": "resources/weights/face/f.pth", "page": "https://example.org/zoo"}
    scene.entries["face"] |= by_hand | {"files": [], "sha256": {}}
    with pytest.raises(StepError, match=r"from https://example\.org/zoo and put it at .*f\.pth"):
        scene.fetch()
    assert scene.files().keys() == WHOLE.keys() - {"face/face.onnx"}
    (scene.weights / "face").mkdir()
    (scene.weights / "face" / "f.pth").write_bytes(PIXELS)
    assert scene.fetch() == 0


def test_a_hub_source_without_a_list_of_files_asks_for_one(scene: Scene) -> None:
    scene.entries["vae"]["files"] = []
    with pytest.raises(StepError, match="list the needed files of hub:owner/vae"):
        scene.fetch("vae")


def test_the_table_says_what_is_there(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.fetch("vae")
    (scene.weights / "base").mkdir()
    (scene.weights / "base" / "model_index.json").write_text("{}")
    scene.entries["pixels"] |= {"source": "nowhere/p.pt", "page": "https://example.org"}
    capsys.readouterr()
    assert scene.fetch("--list") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("pixels: ") and "from https://example.org" in last
    rows = {line.split()[0]: line for line in lines}
    assert rows.keys() == {"name", "base", "vae", "face", "pixels", "pose", "tone"}
    assert "lacks 1 files" in rows["base"]
    assert " yes " in rows["vae"]
    assert " no " in rows["face"] and "No sale" in rows["face"]


def test_the_command_says_it_in_one_sentence_where_there_is_no_network(scene: Scene) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    command = [sys.executable, "-m", "pipeline_steps.fetch_models", *scene.write(), "vae"]
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "'vae' were not fetched" in line
    assert "refused" in line
    assert "Traceback" not in result.stderr


def test_fetching_needs_a_study(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="--study is missing"):
        main(["sd21"])
    (tmp_path / "study.yaml").write_text("[")
    with pytest.raises(StepError, match="is not YAML"):
        main(["--study", str(tmp_path / "study.yaml")])
