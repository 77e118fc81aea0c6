"""Stacked adapters against PEFT, one identity at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_steps.diffusion.lora import AdapterBank, load_lora, save_lora
from pipeline_steps.runtime.errors import StepError

TARGETS = ("to_q", "to_out.0")


class Attention(nn.Module):
    """A stand-in network with a layer that is no target."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 4)
        self.to_out = nn.ModuleList([nn.Linear(4, 5, bias=False)])
        self.proj = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.proj(self.to_out[0](torch.tanh(self.to_q(x))))
        return result


def filled_bank(network: nn.Module, count: int = 3) -> AdapterBank:
    bank = AdapterBank(network, count=count, rank=2, alpha=3.0, targets=TARGETS)
    with torch.no_grad():
        bank.weights.normal_(generator=torch.Generator().manual_seed(5))
    return bank


def peft_output(network: nn.Module, bank: AdapterBank, k: int, x: torch.Tensor) -> torch.Tensor:
    """The output of PEFT's own layers with identity k's matrices; ``network`` is a fresh copy."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, lora_alpha=3, target_modules=list(TARGETS))
    model = inject_adapter_in_model(config, network)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (down, up) in bank.adapter(k).items():
            parameters[f"{name}.lora_A.default.weight"].copy_(down)
            parameters[f"{name}.lora_B.default.weight"].copy_(up)
    result: torch.Tensor = model(x)
    return result


def copy_of(network: nn.Module) -> nn.Module:
    clone = Attention().double()
    clone.load_state_dict(network.state_dict())
    return clone


@pytest.mark.parametrize("rows", [None, [2, 0], [1]])
def test_each_group_gets_its_own_adapter_as_peft_computes_it(rows: list[int] | None) -> None:
    network = Attention().double()
    original = copy_of(network)
    bank = filled_bank(network)
    bank.activate(rows)
    order = rows or [0, 1, 2]
    x = torch.randn(len(order) * 4, 7, 6, dtype=torch.float64)
    result = network(x)
    for place, k in enumerate(order):
        part = slice(place * 4, place * 4 + 4)
        expected = peft_output(copy_of(original), bank, k, x[part])
        torch.testing.assert_close(result[part], expected)


def test_gradients_land_in_the_identitys_own_row() -> None:
    network = Attention().double()
    bank = filled_bank(network)
    x = torch.randn(6, 7, 6, dtype=torch.float64)
    network(x)[2:4].square().sum().backward()
    once = bank.collect_gradients()
    norms = once.norm(dim=1)
    assert norms[1] > 0
    assert norms[0] == 0
    assert norms[2] == 0
    assert network.proj.weight.grad is None
    for _ in range(2):
        network(x)[2:4].square().sum().backward()
    torch.testing.assert_close(bank.collect_gradients(), 2 * once)


def test_a_fresh_adapter_changes_nothing_and_has_the_wanted_spread() -> None:
    network = nn.ModuleDict({"to_q": nn.Linear(400, 300)})
    x = torch.randn(2, 400)
    expected = network["to_q"](x)
    bank = AdapterBank(network, count=2, rank=4, alpha=4.0, targets=("to_q",))
    for k in range(2):
        bank.initialise(k, torch.Generator().manual_seed(k))
    torch.testing.assert_close(network["to_q"](x), expected)
    down, up = bank.adapter(1)["to_q"]
    assert up.abs().max() == 0
    assert down.std().item() == pytest.approx(1 / 4, rel=0.1)
    assert not torch.equal(down, bank.adapter(0)["to_q"][0])


def test_removing_the_bank_restores_the_network() -> None:
    network = Attention()
    names = list(network.state_dict())
    bank = filled_bank(network)
    assert list(network.state_dict()) != names
    bank.remove()
    assert list(network.state_dict()) == names


def test_an_adapter_survives_the_file(tmp_path: Path) -> None:
    bank = filled_bank(Attention())
    save_lora(tmp_path, bank.adapter(1), rank=2, alpha=3.0, targets=TARGETS)
    adapter, rank, alpha = load_lora(tmp_path)
    assert (rank, alpha) == (2, 3.0)
    bank.load(0, adapter)
    torch.testing.assert_close(bank.weights[0], bank.weights[1])


def test_foreign_adapters_are_refused(tmp_path: Path) -> None:
    bank = filled_bank(Attention())
    adapter = bank.adapter(0)
    with pytest.raises(ValueError, match="not this network's"):
        bank.load(0, {"elsewhere.to_q": adapter["to_q"]})
    down, up = adapter["to_q"]
    with pytest.raises(ValueError, match="expected"):
        bank.load(0, adapter | {"to_q": (down[:1], up)})
    with pytest.raises(ValueError, match="to_nowhere"):
        AdapterBank(Attention(), count=1, rank=2, alpha=2.0, targets=("to_nowhere",))
    with pytest.raises(StepError, match="missing"):
        load_lora(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"broken")
    with pytest.raises(StepError, match="broken"):
        load_lora(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapters_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    adapter = filled_bank(Attention()).adapter(0)
    adapter["to_q"][1][0, 0] = value
    save_lora(tmp_path, adapter, rank=2, alpha=3.0, targets=TARGETS)
    with pytest.raises(StepError, match="NaN or infinity in layer to_q"):
        load_lora(tmp_path)


def test_older_key_names_are_read_with_alpha_equal_to_rank(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    down, up = torch.randn(2, 6), torch.randn(4, 2)
    save_file(
        {"unet.a.to_q.lora.down.weight": down, "unet.a.to_q.lora.up.weight": up},
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    adapter, rank, alpha = load_lora(tmp_path)
    assert (rank, alpha) == (2, 2.0)
    torch.testing.assert_close(adapter["a.to_q"], (down, up))
