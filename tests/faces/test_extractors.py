"""Extractors: preprocessing, and the networks of small local folders and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import Compose, Normalize, Pad, Resize, ToTensor

from pipeline_steps.faces import extractors
from pipeline_steps.faces.alignment import ARCFACE_TEMPLATE
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.extractors import AlignedFaces, AttributeNet, load_extractor
from pipeline_steps.faces.iresnet import IResNet
from pipeline_steps.faces.pixels import normalised, resized
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.runtime.errors import StepError
from tests.registry import entry

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
SMALL = {"layers": [1, 1, 1, 1], "widths": [4, 4, 4, 6, 8]}
FACES = AlignedFaces(IMAGES, np.repeat(ARCFACE_TEMPLATE[None], 3, axis=0))


def test_resizing_equals_clean_fids():
    clean = build_resizer("clean")
    expected = np.stack([clean(image) for image in IMAGES]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(resized(IMAGES, 299).numpy(), expected)


def test_normalisation_is_by_channel():
    pixels = torch.full((1, 3, 2, 2), 255.0)
    out = normalised(pixels, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert out[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]


def test_attribute_features_are_the_penultimate_activations(tmp_path):
    torch.manual_seed(0)
    network = AttributeNet({"place": 11, "gender": 2}, widths=(4, 6, 8)).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    extractor = load_extractor(entry("features", "attributes", tmp_path / "model.safetensors"))
    found = extractor.extract(FACES)
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        logits = network(x)
        features = torch.from_numpy(found)
        assert {name: tuple(rows.shape) for name, rows in logits.items()} == {
            "place": (3, 11),
            "gender": (3, 2),
        }
        for name, head in network.heads.items():
            torch.testing.assert_close(head(features), logits[name], rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 8)
    assert found.dtype == np.float32


class TinyInception(torch.nn.Module):
    """The interface of clean-fid's TorchScript file: a submodule `layers`."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_inception_sees_clean_fids_preprocessing(tmp_path):
    torch.manual_seed(0)
    network = TinyInception().eval()
    torch.jit.script(network).save(tmp_path / "inception.pt")
    extractor = load_extractor(entry("features", "inception-v3", tmp_path / "inception.pt"))
    clean = build_resizer("clean")
    x = torch.from_numpy(np.stack([clean(image) for image in IMAGES])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.layers((x - 128) / 128)
    np.testing.assert_allclose(extractor.extract(FACES), expected, atol=1e-5)


def test_clip_gives_projected_image_embeddings(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=12,
    )
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path / "clip")
    extractor = load_extractor(entry("features", "clip", tmp_path / "clip"))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.no_grad():
        x = normalised(resized(IMAGES, 56), mean, std)
        expected = network(pixel_values=x).image_embeds
    found = extractor.extract(FACES)
    assert found.shape == (3, 12)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "56x56" in extractor.preprocessing


def test_clip_is_found_in_the_whole_model_in_its_published_form(tmp_path):
    # Text and image part together, pickled tensors, as openai/clip-vit-large-patch14-336 has them.
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    part |= {"num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        text_config=part | {"vocab_size": 50},
        vision_config=part | {"image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    network = CLIPModel(config).eval()
    folder = tmp_path / "clip"
    config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.no_grad():
        x = normalised(resized(IMAGES, 28), mean, std)
        pooled = network.vision_model(pixel_values=x).pooler_output
        expected = network.visual_projection(pooled)
    found = load_extractor(entry("features", "clip", folder)).extract(FACES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dinov2_gives_the_class_token(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56
    )
    network = Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dino")
    extractor = load_extractor(entry("features", "dinov2", tmp_path / "dino"))
    with torch.no_grad():
        x = normalised(resized(IMAGES, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        expected = network(pixel_values=x).pooler_output
    np.testing.assert_allclose(extractor.extract(FACES), expected, atol=1e-5)


def test_recogniser_and_quality_share_a_file(tmp_path):
    torch.manual_seed(0)
    options = SMALL
    path = tmp_path / "model.safetensors"
    save_file(IResNet(**options, quality_head=True).state_dict(), path)
    embeddings = load_extractor(entry("recogniser", "iresnet", path, **options)).extract(FACES)
    quality = load_extractor(entry("quality", "iresnet", path, **options)).extract(FACES)
    assert (embeddings.shape, quality.shape) == ((3, 512), (3, 1))
    save_file(IResNet(**options).state_dict(), path)
    with pytest.raises(StepError, match="no quality head"):
        load_extractor(entry("quality", "iresnet", path, **options))


@pytest.mark.parametrize(
    ("task", "architecture", "message"),
    [
        ("features", "vgg", "there are features/attributes"),
        ("features", "attributes", "no tensors of an attribute network"),
        ("features", "inception-v3", "not clean-fid's TorchScript"),
        ("features", "dinov2", "is not this network's: it lacks"),
    ],
)
def test_unfit_weights_are_named(tmp_path, task, architecture, message):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    source = tmp_path if architecture == "dinov2" else path
    with pytest.raises(StepError, match=message):
        load_extractor(entry(task, architecture, source))


@pytest.mark.parametrize(
    ("task", "architecture", "network"),
    [
        ("recogniser", "iresnet", IResNet(**SMALL)),
        ("quality", "iresnet", IResNet(**SMALL, quality_head=True)),
        ("features", "attributes", AttributeNet({"place": 2}, widths=(4, 6))),
    ],
)
def test_weights_that_lack_tensors_or_hold_others_are_refused(
    tmp_path, task, architecture, network
):
    whole, path = network.state_dict(), tmp_path / "model.safetensors"
    weights = entry(task, architecture, path, **(SMALL if architecture == "iresnet" else {}))
    gone = next(name for name in reversed(whole) if name.endswith("running_mean"))
    save_file({name: value for name, value in whole.items() if name != gone}, path)
    with pytest.raises(StepError, match=rf"lacks 1 tensors \({gone}\)\. Fetch it again"):
        load_extractor(weights)
    save_file(whole | {f"odd{i}": torch.zeros(1) for i in range(4)}, path)
    with pytest.raises(StepError, match=r"no place for 4 tensors \(odd0, odd1, odd2, …\)"):
        load_extractor(weights)


def test_a_part_of_dinov2_is_refused(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    size = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    network = Dinov2Model(Dinov2Config(num_hidden_layers=1, **size))
    state = {
        name: value for name, value in network.state_dict().items() if name != "layernorm.bias"
    }
    network.config.save_pretrained(tmp_path)
    save_file(state | {"odd": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        StepError, match=r"1 tensors \(layernorm.bias\) and has .* 1 tensors \(odd\)"
    ):
        load_extractor(entry("features", "dinov2", tmp_path))


def test_another_releases_detector_is_refused(monkeypatch):
    real = torch.load

    def without_the_last(path, **options):
        return dict(list(real(path, **options).items())[:-1])

    monkeypatch.setattr(torch, "load", without_the_last)
    with pytest.raises(StepError, match=r"pnet.pt .* lacks 1 tensors .* Install facenet-pytorch"):
        Detector()


@pytest.fixture
def recogniser(tmp_path):
    torch.manual_seed(0)
    options = SMALL
    save_file(IResNet(**options).state_dict(), tmp_path / "model.safetensors")
    return load_extractor(entry("recogniser", "iresnet", tmp_path / "model.safetensors", **options))


def skin(n):
    """Faces of one colour each, redder than blue."""
    tones = np.linspace(60, 240, n)[:, None] * [1.0, 0.8, 0.65]
    return np.repeat(np.repeat(tones[:, None, None], 112, 1), 112, 2).astype(np.uint8)


def test_bgr_faces_are_refused_by_any_extractor(recogniser):
    images = skin(12)
    landmarks = np.repeat(ARCFACE_TEMPLATE[None], 12, axis=0)
    assert recogniser.extract(AlignedFaces(images, landmarks)).shape == (12, 512)
    swapped = np.ascontiguousarray(images[..., ::-1])
    pose = load_extractor(entry("pose", "landmarks", "none"))
    for extractor in (recogniser, pose):
        with pytest.raises(ValueError, match="look like BGR"):
            extractor.extract(AlignedFaces(swapped, landmarks))
    # Whoever judged the whole set before is not asked again.
    recogniser.extract(AlignedFaces(swapped, landmarks, colours_checked=True))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (skin(2).astype(np.float32), r"values from 39 to 240: round them, to uint8"),
        (skin(2) / np.float32(255), r"values from 0.153 to 0.941: round them, multiplied by 255"),
        (skin(2).astype(np.int64), r"expected uint8 RGB \[n, h, w, 3\], got int64"),
        (skin(2)[..., 0], r"got uint8 \[2, 112, 112\]"),
        (skin(2)[0], r"got uint8 \[112, 112, 3\]"),
        (skin(2).transpose(0, 3, 1, 2), r"got uint8 \[2, 3, 112, 112\]"),
        (skin(2)[:, :111, :111], "112x112 pixels, got 111x111: warp them to the template"),
        (skin(2)[:, :, :111], "got 111x112"),
    ],
)
def test_faces_of_another_kind_are_refused(recogniser, images, message):
    with pytest.raises(ValueError, match=message):
        recogniser.extract(AlignedFaces(images, np.repeat(ARCFACE_TEMPLATE[None], 2, axis=0)))


class Turned(torch.nn.Module):
    """Notes what it is shown, and sees no head turned."""

    def forward(self, x):
        self.shown = x
        return torch.eye(3).expand(len(x), 3, 3)


def test_6drepnet_is_shown_what_its_authors_show_it(monkeypatch):
    network = Turned()
    monkeypatch.setattr(extractors, "verify", lambda weights: None)
    monkeypatch.setattr(extractors, "load_network", lambda weights, build: network)
    load_extractor(entry("pose", "sixdrepnet", "weights.pth")).extract(FACES)
    theirs = Compose([Pad(30), Resize((224, 224)), ToTensor(), Normalize(*extractors.IMAGENET)])
    expected = torch.stack([theirs(Image.fromarray(image)) for image in IMAGES])
    torch.testing.assert_close(network.shown, expected)


def test_without_6drepnets_weights_the_other_estimator_is_named(tmp_path):
    with pytest.raises(StepError, match=r"landmark_pose as score\.pose\.extractor"):
        load_extractor(entry("pose", "sixdrepnet", tmp_path / "absent.pth"))


def test_tensors_in_another_range_are_refused(tmp_path):
    torch.manual_seed(0)
    options = SMALL
    save_file(IResNet(**options).state_dict(), tmp_path / "model.safetensors")
    weights = entry("recogniser", "iresnet", tmp_path / "model.safetensors", **options)
    x = torch.from_numpy(skin(2)).permute(0, 3, 1, 2).float()
    network = load_recogniser(weights)
    assert network.embed_tensor(x / 127.5 - 1).shape == (2, 512)
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got values up to 240: .* x / 127.5 - 1"):
        network.embed_tensor(x)


def test_resizing_takes_nothing_but_uint8_colour():
    with pytest.raises(ValueError, match="uint8"):
        resized(IMAGES.astype(np.float32), 299)
    with pytest.raises(ValueError, match="uint8"):
        resized(IMAGES[..., 0], 299)
