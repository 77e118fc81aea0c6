"""Judges: dlib's network held against dlib itself, real photographs, facenet-pytorch's network.

dlib's weights (22 MB) do not come with the code; `.ci/run` fetches them, as docs/weights.md says.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import _dlib_pybind11 as dlib  # which the package dlib hands on
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline_steps.faces.alignment import (
    ARCFACE_TEMPLATE,
    align_to_template,
    similarity_transform,
    transform_points,
)
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.extractors import AlignedFaces, Extractor, load_extractor, unmarked
from pipeline_steps.faces.judges import (
    DLIB_TEMPLATE,
    DlibResNet,
    dlib_chips,
    read_dlib_resnet,
)
from pipeline_steps.io.weights import found_place
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import read_models
from tests.registry import entry

DLIB = read_models(Path(__file__).parents[2] / "config" / "models.yaml")["dlib_resnet"]
WEIGHTS = found_place(DLIB)
with_weights = pytest.mark.skipif(
    WEIGHTS is None, reason="dlib_resnet is not fetched, so real photographs are left out"
)
# Photographs that installed packages ship, and where in them a face is: left, top, right, bottom.
PHOTOGRAPHS = {
    "Collins": ("skimage", "data/astronaut.png", (0, 0, 512, 512)),
    "Hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (0, 0, 512, 600)),
    **{
        f"of six, {number}": ("insightface", "data/images/t1.jpg", window)
        for number, window in enumerate(
            (
                (13, 232, 221, 440),
                (231, 135, 406, 310),
                (390, 238, 639, 486),
                (682, 313, 889, 521),
                (831, 37, 1039, 244),
                (1062, 232, 1269, 440),
            )
        )
    },
}


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def shrunk(image: Image.Image) -> Image.Image:
    """To a face of some forty pixels."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def darker(image: Image.Image) -> Image.Image:
    return image.point(lambda level: level * 0.6)


LOOKS = {"as it is": lambda image: image, "mirrored": mirrored, "shrunk": shrunk, "darker": darker}


def photograph(package: str, file: str, window: tuple[int, int, int, int]) -> Image.Image:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    with Image.open(Path(spec.origin).parent / file) as image:
        return image.convert("RGB").crop(window)


@pytest.fixture(scope="module")
def faces() -> tuple[list[str], AlignedFaces]:
    """Every person in every look, and whom each image shows."""
    names, images = [], []
    for name, where in PHOTOGRAPHS.items():
        taken = photograph(*where)
        names += [name] * len(LOOKS)
        images += [np.asarray(look(taken)) for look in LOOKS.values()]
    found = [face for image in images for face in Detector("cpu").detect([image])]
    assert None not in found
    aligned = [align_to_template(i, f.landmarks) for i, f in zip(images, found, strict=True) if f]
    return names, unmarked(aligned)


@pytest.fixture(scope="module")
def judge() -> Extractor:
    return load_extractor(DLIB)


def test_chips_are_dlibs_own_cut_of_the_mean_face() -> None:
    # A face whose points stand as in dlib's mean face is cut by dlib to where the template says.
    scale, corner = 3.0, np.array([70.0, 50.0])
    own = np.array(  # dlib's five points: corners of the eyes, and below the nose
        [
            [0.8595674595992, 0.2134981538014],
            [0.6460604764104, 0.2289674387677],
            [0.1205750620789, 0.2137274526848],
            [0.3340850613712, 0.2290642403242],
            [0.4901123135679, 0.6277975316475],
        ]
    )
    places = [dlib.point(*map(round, p)) for p in own * 100 * scale + corner]
    shape = dlib.full_object_detection(dlib.rectangle(0, 0, 500, 500), places)
    rows, columns = np.mgrid[:500, :500]
    image = np.stack([columns // 2, rows // 2, columns], axis=2).astype(np.uint8)  # where it is
    chip = dlib.get_face_chip(image, shape, size=150, padding=0.25).astype(float) * 2
    for x, y in DLIB_TEMPLATE:
        expected = (np.array([x, y]) / 100 - 0.25) * 100 * scale + corner
        np.testing.assert_allclose(chip[round(y), round(x), :2], expected, atol=2 * scale)


def test_the_mapped_crop_has_the_points_on_dlibs_template() -> None:
    matrix = similarity_transform(ARCFACE_TEMPLATE, DLIB_TEMPLATE)
    assert np.abs(transform_points(matrix, ARCFACE_TEMPLATE) - DLIB_TEMPLATE).max() < 2.6  # pixels
    image = np.full((112, 112, 3), 255, np.uint8)
    (chip,) = dlib_chips(image[None])
    assert chip.shape == (150, 150, 3)
    black = (chip[:, 75] == 0).all(axis=1)
    assert not black[:132].any() and black[134:].all()  # below the crop there is nothing
    assert dlib_chips(image[None][:0]).shape == (0, 150, 150, 3)


def serialised(*tensors: NDArray[np.float32]) -> bytes:
    """Tensors between other things, as dlib writes them."""

    def whole(number: int) -> bytes:
        content = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "little")
        return bytes([len(content)]) + content

    parts = [b"\1\1\1\r"]
    for tensor in tensors:
        sizes = [*tensor.shape, 1, 1, 1][:4]
        parts += [b"affine_\1\2\1\2", b"".join(map(whole, (2, *sizes)))]
        parts += [tensor.astype("<f4").tobytes(), b"\1\2\1\0\1\0\1\0\1\0"]
    return b"".join(parts)


def of_file(network: DlibResNet) -> list[NDArray[np.float32]]:
    """The tensors of a network's file: weights and biases together, scales and shifts together."""
    own = [parameter.detach().numpy() for parameter in network.trunk.parameters()]
    pairs = [
        np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(own[::2], own[1::2], strict=True)
    ]
    return [*pairs, network.projection.detach().numpy()]


def test_parameters_are_found_in_dlibs_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DlibResNet()
    torch.nn.init.normal_(network.projection)
    tensors = of_file(network)
    (tmp_path / "net.dat").write_bytes(serialised(*tensors))
    read = read_dlib_resnet(tmp_path / "net.dat").state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(read[name], value), name
    for name, content in {
        "cut.dat": serialised(*tensors)[:-200_000],
        "other.dat": serialised(*tensors, tensors[0]),
        "page.dat": b"<html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StepError, match=rf"{name} holds \d+ parameters, dlib's .* has 5614592"):
            read_dlib_resnet(tmp_path / name)


@with_weights
def test_the_network_answers_as_dlib_does(faces: tuple[list[str], AlignedFaces]) -> None:
    chips = dlib_chips(faces[1].images[::5])
    own = dlib.face_recognition_model_v1(str(WEIGHTS))
    expected = np.array(own.compute_face_descriptor(list(chips)))
    network = read_dlib_resnet(Path(str(WEIGHTS)))
    with torch.inference_mode():
        found = network(torch.from_numpy(chips).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    lengths = np.linalg.norm(expected, axis=1)  # near 1.5: cosines and distances tell the same
    assert lengths.min() > 1.25 and lengths.max() < 1.7


@with_weights
def test_every_pair_of_one_person_is_above_every_pair_of_two(
    faces: tuple[list[str], AlignedFaces], judge: Extractor
) -> None:
    names, images = faces
    rows = judge.extract(images)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    cosine = rows @ rows.T
    pairs = list(combinations(range(len(names)), 2))
    genuine = {pair: cosine[pair] for pair in pairs if names[pair[0]] == names[pair[1]]}
    impostor = {pair: cosine[pair] for pair in pairs if names[pair[0]] != names[pair[1]]}
    told = (
        f"{len(genuine)} genuine pairs from {min(genuine.values()):.3f}, {len(impostor)} impostor "
        f"pairs to {max(impostor.values()):.3f}"
    )
    print(told)
    assert min(genuine.values()) > max(impostor.values()), told


@with_weights
def test_batches_and_landmarks_change_nothing(
    faces: tuple[list[str], AlignedFaces], judge: Extractor
) -> None:
    images = faces[1].images
    whole = judge.extract(unmarked(images[:3]))
    one = judge.extract(replace(unmarked(images[2:3]), landmarks=np.zeros((1, 5, 2))))
    np.testing.assert_allclose(one, whole[2:], atol=1e-5)


def test_other_weights_under_dlibs_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSENTED_FACES_WEIGHTS", str(tmp_path))
    with pytest.raises(StepError, match=r"fetch_models dlib_resnet"):
        load_extractor(DLIB)
    (tmp_path / DLIB.name).mkdir()
    (tmp_path / DLIB.name / DLIB.files[0]).write_bytes(b"other")
    with pytest.raises(StepError, match="has SHA-256"):
        load_extractor(DLIB)


def test_facenets_file_is_read_without_its_classes(tmp_path: Path) -> None:
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(0)
    network = InceptionResnetV1(classify=True, num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "facenet.pt")
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    weights = entry("recogniser", "inception-resnet-v1", tmp_path / "facenet.pt")
    found = load_extractor(weights).extract(unmarked(images))
    resized = [
        Image.fromarray(image).resize((160, 160), Image.Resampling.BILINEAR) for image in images
    ]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)
    network.classify = False
    with torch.inference_mode():
        expected = network((x - 127.5) / 128)
    assert found.shape == (2, 512)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    state = network.state_dict()
    del state["last_bn.bias"]
    torch.save(state, tmp_path / "facenet.pt")
    with pytest.raises(StepError, match=r"lacks 1 tensors \(last_bn.bias\)"):
        load_extractor(weights)
