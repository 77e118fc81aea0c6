"""The embed step: the face region of the identity losses, on a real photograph."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch.nn import functional as F

from pipeline_steps import embed
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.identities.dataset import Subject, embeddings_file, read_embeddings
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import EmbedSettings
from tests.registry import entry

FACE = np.ascontiguousarray(data.astronaut()[40:200, 140:300])  # NASA, public domain
CAT = np.ascontiguousarray(data.chelsea()[:160, :160])
LAYERS, WIDTHS = [1, 1, 1, 1], [4, 4, 4, 6, 8]


def network():
    torch.manual_seed(0)
    return IResNet(LAYERS, WIDTHS).eval()


@pytest.fixture
def frozen(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(network().state_dict(), path)
    weights = entry("recogniser", "iresnet", path, layers=LAYERS, widths=WIDTHS)
    return Frozen("test", "embed", 0, EmbedSettings(), {"recogniser": weights})


def dataset(tmp_path, images):
    """A prepared dataset of identity to images; one excluded row without a file."""
    rows = [{"identity": "ID_1", "file": None, "kept": False}]
    for identity, pictures in images.items():
        for index, picture in enumerate(pictures):
            file = f"images/{identity}/{index}.png"
            write_png(tmp_path / "dataset" / file, picture)
            rows.append({"identity": identity, "file": file, "kept": True})
    write_manifest(tmp_path / "dataset" / "manifest.parquet", rows)
    return tmp_path / "dataset"


def test_embeddings_are_those_of_the_stretched_face_box(tmp_path, frozen):
    folder = dataset(tmp_path, {"ID_2": [FACE, FACE[:, ::-1]], "ID_10": [FACE]})
    index = embed.run(frozen, dataset=folder, device="cpu")

    rows = load_features(folder / "embeddings/ID_2.safetensors", key="embeddings")
    assert rows.files == ["images/ID_2/0.png", "images/ID_2/1.png"]
    assert rows.features.shape == (2, 512)
    np.testing.assert_allclose(np.linalg.norm(rows.features, axis=1), 1.0, rtol=1e-5)
    x1, y1, x2, y2 = Detector().detect([FACE])[0].box.astype(int)
    cut = torch.from_numpy(FACE[y1:y2, x1:x2]).permute(2, 0, 1)[None].double() / 127.5 - 1
    region = F.interpolate(cut, (112, 112), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = F.normalize(network()(region.float()))[0]
    np.testing.assert_allclose(rows.features[0], expected, atol=1e-5)

    assert json.loads((folder / "embeddings/index.json").read_text()) == index
    assert list(index["identities"]) == ["ID_2", "ID_10"]
    entry = index["identities"]["ID_2"]
    assert entry["sha256"] == sha256_file(folder / "embeddings/ID_2.safetensors")
    assert (entry["n"], entry["without_face"]) == (2, [])
    assert rows.metadata["weights_sha256"] == index["weights_sha256"]
    assert rows.metadata.items() >= embedded_by(frozen.weights["recogniser"]).items()
    assert "largest MTCNN box" in rows.metadata["face_region"]


def test_images_without_a_face_have_no_embedding_and_are_listed(tmp_path, frozen):
    folder = dataset(tmp_path, {"ID_1": [CAT, FACE]})
    index = embed.run(frozen, dataset=folder, device="cpu")
    assert index["identities"]["ID_1"]["without_face"] == ["images/ID_1/0.png"]
    rows = load_features(folder / "embeddings/ID_1.safetensors", key="embeddings")
    assert rows.files == ["images/ID_1/1.png"]


def test_an_identity_without_any_face_gets_an_empty_file_and_stops_nobody(tmp_path, frozen):
    folder = dataset(tmp_path, {"ID_1": [FACE], "ID_3": [CAT], "ID_4": [FACE]})
    index = embed.run(frozen, dataset=folder, device="cpu")
    assert {name: entry["n"] for name, entry in index["identities"].items()} == {
        "ID_1": 1,
        "ID_3": 0,
        "ID_4": 1,
    }
    with pytest.raises(StepError, match=r"ID_3\.safetensors is empty, for no face is found"):
        read_embeddings(folder / "embeddings/ID_3.safetensors", ["images/ID_3/0.png"], {})


def test_another_identity_changes_no_byte_and_a_withdrawn_one_goes(tmp_path, frozen):
    folder = dataset(tmp_path, {"ID_1": [FACE], "ID_2": [FACE[:, ::-1]]})
    embed.run(frozen, dataset=folder, device="cpu")
    before = (folder / "embeddings/ID_2.safetensors").read_bytes()
    dataset(tmp_path, {"ID_2": [FACE[:, ::-1]], "ID_3": [FACE]})
    embed.run(frozen, dataset=folder, device="cpu")
    assert (folder / "embeddings/ID_2.safetensors").read_bytes() == before
    assert not (folder / "embeddings/ID_1.safetensors").exists()


def test_another_chosen_face_of_the_same_image_is_embedded_anew(tmp_path, frozen):
    two = np.concatenate([FACE, FACE[:, ::-1]], axis=1)
    left, right = ([0.0 + x, 0.0, 160.0 + x, 160.0] for x in (0, 160))
    found = []
    for box in (left, right):
        folder = dataset(tmp_path, {"ID_1": [two]})
        rows = [{"identity": "ID_1", "file": "images/ID_1/0.png", "kept": True, "box": box}]
        write_manifest(folder / "manifest.parquet", rows)
        embed.run(frozen, dataset=folder, device="cpu")
        found.append(load_features(folder / "embeddings/ID_1.safetensors", key="embeddings"))
    assert not np.allclose(found[0].features, found[1].features, atol=1e-3)


def test_what_is_missing_is_named(tmp_path, frozen):
    with pytest.raises(StepError, match=r"manifest\.parquet is missing"):
        embed.run(frozen, dataset=tmp_path, device="cpu")
    folder = dataset(tmp_path, {"ID_1": [FACE]})
    (folder / "images/ID_1/0.png").write_bytes(b"")
    with pytest.raises(StepError, match=r"ID_1/0\.png cannot be read"):
        embed.run(frozen, dataset=folder, device="cpu")
    without = Frozen("test", "embed", 0, EmbedSettings())
    with pytest.raises(StepError, match="recogniser"):
        embed.run(without, dataset=folder, device="cpu")


def test_command_line(tmp_path, frozen):
    folder = dataset(tmp_path, {"ID_1": [FACE]})
    config = tmp_path / "embed.json"
    config.write_text(
        json.dumps(
            {
                "study": "t",
                "step": "embed",
                "seed": 0,
                "settings": {},
                "weights": {"recogniser": frozen.weights["recogniser"].model_dump()},
                "variant": {},
            }
        )
    )
    assert embed.main(["--config", str(config), "--dataset", str(folder)]) == 0
    assert (folder / "embeddings/index.json").is_file()


def test_who_is_the_same_is_not_embedded_again(tmp_path, frozen, monkeypatch):
    embedded = []

    def watched(images, *networks):
        embedded.append(len(images))
        return embed_images(images, *networks)

    embed_images = embed.embed_images
    monkeypatch.setattr(embed, "embed_images", watched)
    folder = dataset(tmp_path, {"ID_1": [FACE, CAT], "ID_2": [FACE]})
    first = embed.run(frozen, dataset=folder, device="cpu")
    assert embed.run(frozen, dataset=folder, device="cpu") == first
    assert embedded == [2, 1]
    dataset(tmp_path, {"ID_1": [FACE, CAT], "ID_2": [FACE[:, ::-1]]})
    embed.run(frozen, dataset=folder, device="cpu")
    assert embedded == [2, 1, 1]
    save_file({name: 2 * x for name, x in network().state_dict().items()}, tmp_path / "other")
    (tmp_path / "other").replace(frozen.weights["recogniser"].source)
    embed.run(frozen, dataset=folder, device="cpu")
    assert embedded == [2, 1, 1, 2, 1]
    embed.run(replace(frozen, code="edited"), dataset=folder, device="cpu")
    assert embedded == [2, 1, 1, 2, 1, 2, 1]


def test_base_models_below_the_prepared_size_get_embeddings_of_what_they_are_trained_on(
    tmp_path, frozen
):
    """Shrunk without aliasing first, as fine-tuning does; a face's box goes with it."""
    folder = dataset(tmp_path, {"ID_1": [FACE], "ID_2": [CAT]})
    settings = EmbedSettings(resolutions=(96,))
    index = embed.run(replace(frozen, settings=settings), dataset=folder, device="cpu")
    small = np.asarray(Image.fromarray(FACE).resize((96, 96), Image.Resampling.BILINEAR))
    alone = dataset(tmp_path / "alone", {"ID_1": [small]})
    embed.run(frozen, dataset=alone, device="cpu")

    first = Subject("ID_1", None, ("images/ID_1/0.png",), ("",))
    at = {side: embeddings_file(folder, first, side) for side in (96, 160)}
    assert [path.name for path in at.values()] == ["ID_1@96.safetensors", "ID_1.safetensors"]
    shrunk, prepared, wanted = (
        load_features(path, key="embeddings").features
        for path in (*at.values(), embeddings_file(alone, first, 96))
    )
    np.testing.assert_array_equal(shrunk, wanted)
    assert np.abs(shrunk - prepared).max() > 1e-3
    assert index["identities"]["ID_2@96"]["without_face"] == ["images/ID_2/0.png"]

    embed.run(frozen, dataset=folder, device="cpu")
    assert not at[96].exists()
    assert embeddings_file(folder, first, 96) == at[160]
