"""iResNet: parameter counts of the published networks, layout, mathematics of one block."""

from __future__ import annotations

import pytest
import torch

from pipeline_steps.faces import iresnet


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
