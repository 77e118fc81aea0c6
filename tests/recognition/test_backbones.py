"""Backbones by name, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline_steps.recognition.backbones import (
    Architecture,
    load_backbone,
    save_backbone,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.recognition import RecogniseSettings


@pytest.mark.parametrize(
    ("name", "millions"), [("iresnet18", 24.0), ("iresnet34", 34.1), ("iresnet50", 43.6)]
)
def test_named_backbones_have_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = Architecture.of(RecogniseSettings(backbone=name)).build()
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_saved_backbone_loads_with_the_same_output(tmp_path: Path) -> None:
    built_as = Architecture((1, 1, 1, 1), (16, 16, 16, 16, 32), 24, 32, dropout=0.4)
    network = built_as.build()
    network(torch.randn(8, 3, 32, 32))  # moves the running statistics
    path = tmp_path / "model.safetensors"
    save_backbone(path, network, built_as, {"validation": "lfw"})
    loaded, described, metadata = load_backbone(path)
    assert described == built_as
    assert metadata["validation"] == "lfw"
    assert not loaded.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), network.eval()(x))


def test_broken_files_are_refused_with_a_sentence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, content in (("absent", None), ("text", b"nothing"), ("short", b"\x08")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StepError, match=f"{name}.*recognise step again"):
            load_backbone(path)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other, metadata={"architecture": "{}"})
    with pytest.raises(StepError, match="no model of the recognise step"):
        load_backbone(other)
