"""iResNet: published sizes, layout, one block; read from ONNX it answers as onnxruntime does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline_steps.faces import iresnet
from pipeline_steps.faces.iresnet import IResNet, state_dict_of_onnx
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from tests.registry import entry


def n_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def tiny(**options: object) -> iresnet.IResNet:
    torch.manual_seed(0)
    return iresnet.IResNet((1, 2, 1, 1), (4, 4, 6, 8, 8), embedding_dim=16, **options).eval()


@pytest.mark.parametrize(
    ("name", "count"),
    # Counted on InsightFace's arcface_torch networks.
    [
        ("iresnet18", 24_025_600),
        ("iresnet34", 34_139_328),
        ("iresnet50", 43_590_848),
        ("iresnet100", 65_156_160),
    ],
)
def test_published_networks_have_the_published_parameter_counts(name, count):
    with torch.device("meta"):
        assert n_parameters(iresnet.IResNet(iresnet.NAMED_LAYERS[name])) == count


def test_state_dict_has_the_published_layout():
    with torch.device("meta"):
        state = iresnet.IResNet(iresnet.NAMED_LAYERS["iresnet100"]).state_dict()
    expected = {
        "conv1.weight": (64, 3, 3, 3),
        "prelu.weight": (64,),
        "layer1.0.downsample.0.weight": (64, 64, 1, 1),
        "layer1.0.downsample.1.running_var": (64,),
        "layer3.29.bn3.bias": (256,),
        "layer4.0.conv2.weight": (512, 512, 3, 3),
        "bn2.running_mean": (512,),
        "fc.weight": (512, 25088),
        "features.weight": (512,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    # 49 blocks: three batch norms (5 entries), two convolutions, one slope; four shortcuts of 6;
    # stem 1 + 5 + 1; bn2 5; fc 2; features 5.
    assert len(state) == 49 * 18 + 4 * 6 + 7 + 5 + 2 + 5


def test_quality_head_reads_the_embedding_and_leaves_it_unchanged():
    plain, judging = tiny(), tiny(quality_head=True)
    judging.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(3, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        embedding, quality = judging.forward_with_quality(x)
        torch.testing.assert_close(embedding, plain(x))
        assert judging.qs is not None
        torch.testing.assert_close(
            quality, embedding @ judging.qs.weight[0] + judging.qs.bias, rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match="quality_head"):
        plain.forward_with_quality(x)


def test_a_block_is_bn_conv_bn_prelu_conv_bn_plus_shortcut():
    torch.manual_seed(1)
    block = iresnet.IResidualBlock(4, 6, stride=2).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    x = torch.randn(2, 4, 9, 9)

    def normalise(values, layer):
        mean, var = layer.running_mean[:, None, None], layer.running_var[:, None, None]
        return (values - mean) / torch.sqrt(var + 1e-5)

    convolve = torch.nn.functional.conv2d
    y = convolve(normalise(x, block.bn1), block.conv1.weight, padding=1)
    y = normalise(y, block.bn2)
    y = torch.where(y > 0, y, 0.25 * y)
    y = normalise(convolve(y, block.conv2.weight, stride=2, padding=1), block.bn3)
    assert block.downsample is not None
    y = y + normalise(convolve(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), y, rtol=1e-5, atol=1e-5)


def test_input_size_sets_the_size_of_the_linear_layer():
    network = iresnet.IResNet((1, 1, 1, 1), (4, 4, 4, 4, 8), embedding_dim=16, input_size=56)
    assert network.fc.in_features == 8 * 4 * 4  # 56 -> 28 -> 14 -> 7 -> 4
    assert network.eval()(torch.zeros(1, 3, 56, 56)).shape == (1, 16)


def test_scale_of_the_last_normalisation_is_not_trained():
    frozen = [name for name, p in tiny().named_parameters() if not p.requires_grad]
    assert frozen == ["features.weight"]


def test_wrong_number_of_stages_is_refused():
    with pytest.raises(ValueError, match="4 stages"):
        iresnet.IResNet(layers=(1, 1, 1), widths=(4, 4, 4, 4))


LAYERS, WIDTHS = (2, 3, 2, 1), (4, 4, 6, 6, 8)


def random_network(layers: tuple[int, ...] = LAYERS) -> IResNet:
    """A network whose normalisations and slopes all do something."""
    torch.manual_seed(0)
    network = IResNet(layers, WIDTHS, embedding_dim=32)
    for name, values in network.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            values.normal_()
        elif values.ndim == 1 and values.is_floating_point():
            values.uniform_(0.5, 1.5)
    return network.eval()


def export(network: torch.nn.Module, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        # The other exporter needs a package more; InsightFace's files come from this one.
        warnings.simplefilter("ignore", DeprecationWarning)
        x = torch.zeros(1, 3, 112, 112)
        torch.onnx.export(
            network,
            (x,),
            str(path),
            dynamo=False,
            opset_version=11,
            dynamic_axes={"input.1": {0: "n"}},
            input_names=["input.1"],
            **options,
        )
    return path


def twin(path: Path, layers: tuple[int, ...] = LAYERS) -> Weights:
    sizes = {"layers": list(layers), "widths": list(WIDTHS), "embedding_dim": 32}
    return entry("recogniser", "iresnet", path, **sizes)


def faces(n: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, 112, 112, 3), dtype=np.uint8)


def answer_of_onnxruntime(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = (images.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
    raw: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


UNFOLDED = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}


@pytest.mark.parametrize("options", [{}, UNFOLDED], ids=["folded", "unfolded"])
def test_the_network_answers_as_its_onnx_twin(tmp_path: Path, options: dict[str, Any]) -> None:
    path = export(random_network(), tmp_path / "face.onnx", **options)
    ours = load_recogniser(twin(path)).embed(faces())
    cosine = (ours * answer_of_onnxruntime(path, faces())).sum(axis=1)
    assert cosine.min() >= 0.99999
    expected = Recogniser(random_network()).embed(faces())
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.abs(ours - np.roll(ours, 1, axis=0)).max() > 1e-3  # faces are told apart


def test_exporters_do_fold(tmp_path: Path) -> None:
    import onnx

    def count(path: Path) -> int:
        nodes = onnx.load(path).graph.node
        return sum(node.op_type == "BatchNormalization" for node in nodes)

    blocks = sum(LAYERS)
    assert count(export(random_network(), tmp_path / "a.onnx")) == blocks + 2
    unfolded = export(random_network(), tmp_path / "b.onnx", **UNFOLDED)
    assert count(unfolded) == 3 * blocks + 4 + 3


def test_it_is_differentiable(tmp_path: Path) -> None:
    path = export(random_network(), tmp_path / "face.onnx")
    x = (torch.rand(2, 3, 112, 112) * 2 - 1).requires_grad_()
    load_recogniser(twin(path)).embed_tensor(x)[:, 0].sum().backward()
    other = x.detach().clone().requires_grad_()
    random_network()(other)[:, 0].sum().backward()
    assert x.grad is not None and other.grad is not None
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_the_published_depth_is_found_in_the_graph(tmp_path: Path) -> None:
    layers = (3, 13, 30, 3)
    path = export(random_network(layers), tmp_path / "r100.onnx")
    state = state_dict_of_onnx(path)
    assert state.keys() == random_network(layers).state_dict().keys()
    with pytest.raises(StepError, match="is not this network's"):
        load_recogniser(twin(path))  # an entry that says another depth


def test_another_epsilon_is_made_up_for(tmp_path: Path) -> None:
    network = random_network()
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.eps = 2e-2
    path = export(network, tmp_path / "face.onnx", **UNFOLDED)
    cosine = load_recogniser(twin(path)).embed(faces()) * answer_of_onnxruntime(path, faces())
    assert cosine.sum(axis=1).min() >= 0.99999


class Strided(IResNet):
    """The stride at the first convolution of a block: the same tensors, other answers."""

    def __init__(self) -> None:
        super().__init__(LAYERS, WIDTHS, embedding_dim=32)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)  # type: ignore


class Scaled(IResNet):
    """Preprocessing inside the network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x - 127.5) * (1 / 127.5))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Strided(), "strides"),
        (Scaled(LAYERS, WIDTHS, embedding_dim=32), r"found \['Sub'\]"),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()), "Relu"),
        (torch.nn.Sequential(IResNet(LAYERS, WIDTHS), torch.nn.Sigmoid()), "left over"),
    ],
    ids=["strides", "preprocessing", "another network", "further layers"],
)
def test_other_networks_are_refused(tmp_path: Path, network: Any, message: str) -> None:
    path = export(network.eval(), tmp_path / "face.onnx")
    with pytest.raises(StepError, match=f"no iResNet in ONNX.*{message}"):
        state_dict_of_onnx(path)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "face.onnx").write_bytes(b"not a graph")
    with pytest.raises(StepError, match="cannot be read as ONNX"):
        state_dict_of_onnx(tmp_path / "face.onnx")
