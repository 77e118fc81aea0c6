"""Whether a device computes what the CPU computes: what training, sampling and judging consist of.

Each check computes one thing with the embedded world's weights, which come with the code: on the
CPU in single precision, and on the device. ``on_gpu.py`` prints how far apart they are before it
times anything; tests/gpu asserts it wherever there is a card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from finetune_worlds import World, embedded_world, photographs
from torch import Tensor, nn

from pipeline_steps.diffusion.base_models.base import Runtime, compiled_predict
from pipeline_steps.diffusion.sampling.sampler import (
    SCHEDULERS,
    ImageRequest,
    Sampling,
    sample_latents,
)
from pipeline_steps.diffusion.training.data import Recipe
from pipeline_steps.diffusion.training.fleet import Fleet
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.extractors import AlignedFaces, load_extractor
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.weights import Weights
from pipeline_steps.metrics.verification import identity_error_rates
from pipeline_steps.recognition.backbones import Architecture, to_device
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.recognition.training import train
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.recognition import RecogniseSettings

IDENTITIES = 3
METHODS = ("dreambooth", "portraitbooth", "idbooth")
EAGER, COMPILED = Runtime(compile="off"), Runtime(compile="on")


@dataclass(frozen=True)
class Check:
    """One computation.

    Attributes:
        compute: device and whether in 16 bits or compiled, as ``options`` say -> the numbers.
        tolerance: largest relative L2 distance from the CPU's numbers.
        options: keyword arguments on the device; on the CPU there are none.
    """

    compute: Callable[..., Tensor]
    tolerance: float
    options: dict[str, object] = field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        return "runtime" in self.options or "compiled" in self.options

    def distance(self, device: str) -> float:
        """|device - CPU| / |CPU|, by L2 norms."""
        expected = self.compute("cpu").double()
        found = self.compute(device, **self.options).double()
        return float((found - expected).norm() / expected.norm())


@cache
def world(device: str, precision: str = "fp32") -> World:
    return embedded_world(0, device, precision)


def fleet(device: str, method: str, precision: str, runtime: Runtime) -> Fleet:
    of = world(device, precision)
    recipe = Recipe(method, of.settings.resolved("demo", method), 0)
    return Fleet(of.base, of.subjects(IDENTITIES), of.prior, recipe, of.guide, runtime)


def gradients(
    device: str, *, method: str, precision: str = "fp32", runtime: Runtime = EAGER, steps: int = 1
) -> Tensor:
    """Of the first training steps, without the optimiser's, which would turn noise into signs."""
    with fleet(device, method, precision, runtime) as trained:
        rows = []
        for step in range(steps):
            trained.loss.backward(trained.noise(step))
            rows.append(trained.bank.collect_gradients().float().cpu().clone())
        return torch.stack(rows)


def resumed(device: str) -> Tensor:
    """Weights after a step on the CPU and one on the device, from the first one's state."""
    with fleet("cpu", "idbooth", "fp32", EAGER) as trained:
        trained.step()
        state = trained.state()
    with fleet(device, "idbooth", "fp32", EAGER) as trained:
        trained.load_state(state)
        trained.step()
        return trained.state()["weights"]


def sampled(
    device: str, *, scheduler: str, precision: str = "fp32", compiled: bool = False
) -> Tensor:
    """Latents of three images."""
    base = world(device, precision).base
    requests = [ImageRequest("a", i, "photo of a person", "drawing", seed=i) for i in range(3)]
    predict = compiled_predict(base, "on") if compiled else None
    how = Sampling(steps=8, guidance=3.0, scheduler=scheduler, batch_size=4)
    parts = [part.float().cpu() for _, part in sample_latents(base, requests, how, predict=predict)]
    return torch.cat(parts)


@cache
def faces(side: int = 112) -> np.ndarray:
    """Rendered photographs, uint8 [12, side, side, 3]."""
    images = photographs(1, list(range(12)), side)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def detected(device: str) -> Tensor:
    """Boxes and landmarks, zero where there is no face."""
    found = Detector(device).detect(list(faces(160)))
    rows = [np.zeros(14) if f is None else np.r_[f.box, f.landmarks.ravel()] for f in found]
    return torch.from_numpy(np.stack(rows))


def embedded(device: str, *, entry: str = "demo_recogniser") -> Tensor:
    return torch.from_numpy(load_recogniser(_models()[entry], device).embed(faces()))


def features(device: str, *, entry: str = "demo_attributes") -> Tensor:
    extractor = load_extractor(_models()[entry], device)
    return torch.from_numpy(extractor.extract(AlignedFaces(faces(), np.zeros((12, 5, 2)))))


def recogniser_trained(device: str) -> Tensor:
    """A backbone's weights after three steps."""
    settings = RecogniseSettings(
        backbone="custom",
        layers=(1, 1, 1, 1),
        widths=(16, 16, 32, 64, 128),
        embedding_dim=64,
        input_size=64,
        batch_size=4,
        epochs=1,
        dropout=0.0,
        learning_rate_per_512=0.1,
    )
    built_as = Architecture.of(settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = built_as.build()
        head = MarginHead(64, 4)
    network, head = to_device(network, device), head.to(device)
    before = _flat(network)
    train(network, head, faces(), np.arange(12) % 4, settings, validate=lambda _: 0.5, seed=0)
    return _flat(network) - before


def error_rates(device: str) -> Tensor:
    """Of embeddings computed on the device."""
    rows = embedded(device).numpy()
    rates = identity_error_rates(rows, [str(i % 3) for i in range(len(rows))])
    return torch.tensor([rates.eer, rates.fdr, rates.genuine_mean, rates.impostor_mean])


CHECKS: dict[str, Check] = {
    **{
        f"gradients, {method}": Check(partial(gradients, method=method, steps=2), 1e-3)
        for method in METHODS
    },
    "gradients, dreambooth, bf16": Check(
        partial(gradients, method="dreambooth"), 0.1, {"precision": "bf16"}
    ),
    "gradients, dreambooth, compiled": Check(
        partial(gradients, method="dreambooth", steps=3), 1e-3, {"runtime": COMPILED}
    ),
    "gradients, idbooth, compiled": Check(
        partial(gradients, method="idbooth", steps=3), 1e-3, {"runtime": COMPILED}
    ),
    "a step from a state of the CPU": Check(resumed, 1e-3),
    **{f"sampling, {name}": Check(partial(sampled, scheduler=name), 1e-3) for name in SCHEDULERS},
    "sampling, ddim, bf16": Check(partial(sampled, scheduler="ddim"), 0.1, {"precision": "bf16"}),
    "sampling, ddim, compiled": Check(partial(sampled, scheduler="ddim"), 1e-3, {"compiled": True}),
    "faces found": Check(detected, 1e-3),
    "embeddings": Check(embedded, 1e-4),
    "features": Check(features, 1e-4),
    "quality": Check(partial(features, entry="demo_quality"), 1e-4),
    "a recogniser's first steps": Check(recogniser_trained, 1e-2),
    "error rates": Check(error_rates, 1e-4),
}


def _models() -> dict[str, Weights]:
    return read_models(Path("config/models.yaml"))


def _flat(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([value.float().cpu().ravel() for value in network.parameters()])
