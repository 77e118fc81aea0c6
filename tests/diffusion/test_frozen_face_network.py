"""The recogniser made ready for gradients computes what the recogniser computes."""

from __future__ import annotations

import torch
from torch import nn

from pipeline_steps.diffusion.guide import frozen_copy
from pipeline_steps.faces.iresnet import IResNet


def recogniser() -> IResNet:
    """Normalisations and slopes that all do something."""
    torch.manual_seed(0)
    network = IResNet((2, 1, 1, 1), (8, 8, 12, 8, 8), embedding_dim=16, input_size=32)
    for name, values in network.state_dict().items():
        if values.is_floating_point() and values.ndim == 1:
            values.uniform_(0.3, 1.5) if "mean" not in name else values.normal_()
    return network.double().eval()


def test_embeddings_and_gradients_are_the_networks_own() -> None:
    network = recogniser()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frozen = frozen_copy(network)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    expected = network(x)
    result = frozen(x)
    torch.testing.assert_close(result, expected)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    (gradient,) = torch.autograd.grad(result.square().sum(), x)
    torch.testing.assert_close(gradient, wanted)
    assert not any(isinstance(layer, nn.PReLU) for layer in frozen.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
