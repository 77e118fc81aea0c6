"""Recognisers: file formats, input checks, colour order, batching."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError

LAYERS, WIDTHS = [1, 1, 1, 1], [4, 4, 4, 6, 8]


def network(*, quality_head=True, seed=0):
    torch.manual_seed(seed)
    return IResNet(LAYERS, WIDTHS, quality_head=quality_head).eval()


def entry(path, **changes):
    fields = {
        "name": "small",
        "task": "recogniser",
        "architecture": "iresnet",
        "source": str(path),
        "licence": "Apache-2.0",
        "commercial_use": True,
        "options": {"layers": LAYERS, "widths": WIDTHS},
    }
    return Weights(**{**fields, **changes})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(network().state_dict(), path)
    return path


@pytest.fixture
def faces():
    return np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)


def test_embeddings_are_the_networks_normalised_output(saved, faces):
    x = torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        raw, quality = network().forward_with_quality(x)
    recogniser = load_recogniser(entry(saved))
    embeddings = recogniser.embed(faces)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(embeddings, raw / raw.norm(dim=1, keepdim=True), atol=1e-5)
    np.testing.assert_allclose(recogniser.quality(faces), quality, rtol=1e-4, atol=1e-4)


def test_batch_size_changes_nothing(saved, faces):
    recogniser = load_recogniser(entry(saved))
    np.testing.assert_allclose(
        recogniser.embed(faces, batch_size=2), recogniser.embed(faces), atol=1e-5
    )
    np.testing.assert_allclose(
        recogniser.quality(faces, batch_size=1), recogniser.quality(faces), rtol=1e-4, atol=1e-4
    )
    assert recogniser.embed(faces[:0]).shape == (0, 512)
    assert recogniser.quality(faces[:0]).shape == (0,)


def test_colour_order_matters(saved, faces):
    recogniser = load_recogniser(entry(saved))
    swapped = recogniser.embed(np.ascontiguousarray(faces[..., ::-1]))
    assert np.abs(swapped - recogniser.embed(faces)).max() > 1e-3


def test_tensor_embedding_is_differentiable_and_raw(saved, faces):
    recogniser = load_recogniser(entry(saved))
    x = (torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1).requires_grad_()
    raw = recogniser.embed_tensor(x)
    raw.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    unit = torch.nn.functional.normalize(raw.detach())
    np.testing.assert_allclose(unit, recogniser.embed(faces), atol=1e-5)
    assert not any(p.requires_grad for p in recogniser.network.parameters())


def test_pth_files_of_data_parallel_training_are_read(tmp_path, saved, faces):
    path = tmp_path / "backbone.pth"
    torch.save({f"module.{name}": value for name, value in network().state_dict().items()}, path)
    np.testing.assert_allclose(
        load_recogniser(entry(path)).embed(faces), load_recogniser(entry(saved)).embed(faces)
    )


def test_network_without_quality_head_says_so(tmp_path, faces):
    path = tmp_path / "model.safetensors"
    save_file(network(quality_head=False).state_dict(), path)
    recogniser = load_recogniser(entry(path))
    assert not recogniser.has_quality
    with pytest.raises(ValueError, match="quality head"):
        recogniser.quality(faces)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 96, 112, 3), np.uint8),
        np.zeros((1, 112, 112, 3), np.float32),
        np.zeros((1, 3, 112, 112), np.uint8),
        np.zeros((112, 112, 3), np.uint8),
    ],
)
def test_other_sizes_and_types_are_refused(saved, images):
    with pytest.raises(ValueError, match="expected uint8 RGB faces"):
        load_recogniser(entry(saved)).embed(images)


def test_tensors_of_other_sizes_and_types_are_refused(saved):
    recogniser = load_recogniser(entry(saved))
    with pytest.raises(ValueError, match="floating-point"):
        recogniser.embed_tensor(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))
    with pytest.raises(ValueError, match="112, 112"):
        recogniser.embed_tensor(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"layers": [1, 1, 1, 1], "widths": [4, 4, 4, 6, 16]}}, "does not fit"),
        ({"options": {"layers": LAYERS, "widths": WIDTHS, "depth": 3}}, "depth"),
        ({"architecture": "vit"}, "unknown recogniser architecture"),
        ({"architecture": "iresnet18", "options": {}}, "does not fit"),
        ({"sha256": {"model.safetensors": "0" * 64}}, "SHA-256"),
        ({"source": "nowhere/model.safetensors"}, "nowhere/model.safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, changes, message):
    with pytest.raises(StepError, match=message):
        load_recogniser(entry(saved, **changes))


def test_pinned_hash_is_accepted(saved):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert load_recogniser(entry(saved, sha256={"model.safetensors": digest})).has_quality


def test_broken_and_executable_files_are_refused(tmp_path):
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"not weights")
    with pytest.raises(StepError, match="cannot be read"):
        load_recogniser(entry(broken))
    pickled = tmp_path / "model.pth"
    torch.save({"conv1.weight": print}, pickled)
    with pytest.raises(StepError, match="cannot be read"):
        load_recogniser(entry(pickled))
