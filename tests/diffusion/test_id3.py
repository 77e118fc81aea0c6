"""ID3's network and objective: what is told arrives, and the loss pulls towards the person."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.id3 import ConditionNetwork, Id3
from pipeline_steps.diffusion.objectives import (
    add_noise,
    id_weight,
    likeness_loss,
    noise_prediction_loss,
    predict_x0,
    reconstruction_loss,
)
from pipeline_steps.diffusion.training.id3 import Batch, Objective
from tests.diffusion.toy_fleet import CentreFace

WIDTH, NAN = 32, float("nan")
ALL = Objective(reconstruction=1.0, likeness=1.0, looked_at=4, snr_cap=None, nearest=0.7, drop=0.0)


@pytest.fixture
def network(base: BaseModel) -> Id3:
    torch.manual_seed(0)
    return Id3(base.unet, ConditionNetwork(WIDTH, base.unet.config.cross_attention_dim, 16, 3))


@pytest.fixture
def batch(base: BaseModel) -> Batch:
    draw = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 4, *base.latent_shape, generator=draw)
    y = torch.randn(4, WIDTH, generator=draw)
    s = torch.tensor([[30.0, 5.0, -20.0, NAN]]).expand(4, 4)
    box = torch.tensor([[8.0, 8.0, 24.0, 24.0]]).expand(4, 4)
    return Batch(clean, noise, torch.tensor([0, 300, 600, 999]), y, s, box)


def test_the_terms_are_their_closed_forms(batch: Batch, base: BaseModel) -> None:
    abar = base.alphas_cumprod[batch.timesteps]
    wrong = batch.noise + 0.1
    noisy = add_noise(batch.clean.double(), batch.noise.double(), abar)
    estimate = predict_x0(noisy, wrong.double(), abar, "epsilon")
    # Of a noise prediction the reconstruction is (1 - abar) of the noise's error.
    expected = (1 - abar) * noise_prediction_loss(wrong.double(), batch.noise.double())
    found = reconstruction_loss(batch.clean.double(), estimate, abar)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    a, b = torch.tensor([[3.0, 4.0]] * 2).double(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    weights = id_weight(torch.tensor([0, 1000]))
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.1344707]).double(), atol=1e-6, rtol=0)
    expected = torch.tensor([-0.25 * 0.6, -0.1344707 * 0.8]).double()
    torch.testing.assert_close(likeness_loss(a, b, weights), expected, atol=1e-6, rtol=0)


def test_what_is_not_known_has_tokens_of_its_own() -> None:
    network = ConditionNetwork(8, 16)
    torch.nn.init.normal_(network.unknown, generator=torch.Generator().manual_seed(0))
    y, s = torch.ones(2, 8), torch.full((2, 4), 10.0)
    y[1, 0] = s[1, 2] = torch.nan
    known, some = network(y, s)
    own = network.norm(network.unknown)
    untold = torch.tensor([*[True] * 4, False, False, True, False])
    assert torch.equal(some[untold], own[untold])
    assert torch.equal(some[~untold], known[~untold])
    assert not torch.isclose(known, own).all(dim=1).any()
    torch.testing.assert_close(network(5 * y[:1], s[:1])[0], known)


def test_a_step_down_the_gradient_raises_the_likeness(
    base: BaseModel, network: Id3, batch: Batch
) -> None:
    only = Objective(
        reconstruction=0.0, likeness=1e4, looked_at=4, snr_cap=None, nearest=1.0, drop=0.0
    )
    guide = CentreFace()

    def value() -> tuple[Tensor, Tensor]:
        stream = torch.Generator().manual_seed(3)
        loss, terms = only.of(base, network, guide.embed, batch, stream)
        return loss, terms["likeness"]

    loss, before = value()
    loss.backward()
    with torch.no_grad():
        for p in network.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad / 1e4
    assert value()[1] < before < 1


def test_told_embeddings_lie_beside_the_image_s_own(batch: Batch) -> None:
    y, _ = ALL.told(batch, torch.Generator().manual_seed(0))
    cosine = torch.cosine_similarity(y, batch.embeddings)
    assert 0.7 - 1e-6 <= cosine.min() < cosine.max() <= 1
    dropped = Objective(1.0, 1.0, 4, None, 0.7, drop=1.0).told(batch, torch.Generator())
    assert all(told.isnan().all() for told in dropped)


def test_weights_are_the_trained_part_and_fit_their_base_model_alone(
    base: BaseModel, network: Id3, batch: Batch
) -> None:
    attention = Id3(base.unet, network.condition, "attention")
    names = {name for name in attention.state() if name.startswith("unet.")}
    assert names and all(".attentions." in name for name in names)
    assert len(network.state()) > len(attention.state())
    again = Id3.of(base.unet, {k: 2 * t for k, t in attention.state().items()})
    assert all(torch.equal(2 * t, again.get_parameter(k)) for k, t in attention.state().items())
    told = again.tell(base, batch.embeddings, batch.attributes)
    assert told.hidden.shape == (4, 3 + 4, base.unet.config.cross_attention_dim)
    with pytest.raises(ValueError, match="conv_in"):
        Id3.of(base.unet, attention.state() | {"unet.conv_in.bias": torch.ones(1)})
    with pytest.raises(ValueError, match="missing"):
        Id3.of(base.unet, {"unet.conv_in.bias": torch.ones(1)})
