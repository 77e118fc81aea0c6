"""What only concerns speed and memory changes no result."""

from __future__ import annotations

import logging

import pytest
import torch

from pipeline_steps.diffusion.base_models.base import BaseModel, Runtime
from pipeline_steps.diffusion.training.fleet import FineTuned
from tests.diffusion.toy_fleet import NAMES, CentreFace, a_fleet, finish, relative


def trained(base: BaseModel, runtime: Runtime) -> dict[str, FineTuned]:
    with a_fleet(
        base, runtime=runtime, guide=CentreFace(lambda image: int(image[0, 0, 0]) % 4 != 0)
    ) as fleet:
        return finish(fleet)


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(decode_chunk=3),
        Runtime(decode_chunk=2, redecode=True),
        Runtime(checkpointing=True),
    ],
    ids=str,
)
def test_memory_for_time_changes_no_result(base: BaseModel, runtime: Runtime) -> None:
    base.to("cpu", torch.float64)
    plain = trained(base, Runtime(decode_chunk=1))
    shares = [sum(plain[name].losses["face_found"]) for name in NAMES]
    assert 0 < sum(shares) < 6 * len(NAMES)
    other = trained(base, runtime)
    for name in NAMES:
        assert relative(other[name], plain[name]) < 1e-12
    assert not base.unet.is_gradient_checkpointing


def test_graphs_of_decoded_images_are_held_piece_by_piece(base: BaseModel) -> None:
    """With ``redecode``, what is decoded for the detection has no graph."""
    decode, graphs = base.decode, []

    def watched(latents: torch.Tensor) -> torch.Tensor:
        images = decode(latents)
        graphs.append(images.requires_grad)
        return images

    base.decode = watched  # type: ignore[method-assign]
    with a_fleet(base, runtime=Runtime(decode_chunk=1, redecode=True)) as fleet:
        fleet.step()
    assert graphs == [False] * len(NAMES) + [True] * len(NAMES)


def test_where_compiling_fails_training_goes_on_without(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **options: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            raise RuntimeError("no compiler")

        return call

    expected = trained(base, Runtime())
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        result = trained(base, Runtime(compile="on"))
    for name in NAMES:
        assert relative(result[name], expected[name]) == 0
    assert trained(base, Runtime(compile="off"))  # and "auto" compiles nothing on a CPU
