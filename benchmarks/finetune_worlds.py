"""What `finetune.py` trains: networks, images and faces that both sides share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reference_loop import ReferenceLoop
from torch import Tensor

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning, Runtime, to_signed
from pipeline_steps.diffusion.guide import FaceGuide, Guide
from pipeline_steps.diffusion.training.data import LatentSet
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.recogniser import Recogniser, load_recogniser
from pipeline_steps.study.settings.diffusion import FinetuneSettings

PROMPTS = ("photo of sks person", "photo of a person")
IMAGES, PRIOR_IMAGES = 4, 16
PEOPLE = 8  # rendered; fleets of more train some of them twice
TOKENS = 77


@dataclass
class World:
    """A base model with the images of some people.

    Attributes:
        base: On its device.
        recogniser: Judge of the identity terms.
        faces: What the fleet finds and embeds faces with.
        images: Person to images, float [n, 3, s, s] in [-1, 1] on the CPU, the prior images last.
        embeddings: Of the same images, [n, d].
        settings: The recipe.
        runtime: How the fleet runs.
        default_box: See ReferenceLoop.
    """

    base: BaseModel
    recogniser: Recogniser
    guide: Guide
    images: list[Tensor]
    embeddings: list[Tensor]
    settings: FinetuneSettings
    runtime: Runtime
    default_box: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.latents = [
            LatentSet(mean.cpu().float(), std.cpu().float(), rows, "")
            for (mean, std), rows in zip(
                map(self.base.encode_images, self.images), self.embeddings, strict=True
            )
        ]

    def subjects(self, count: int) -> dict[str, LatentSet]:
        """That many identities."""
        people = len(self.latents) - 1
        return {f"ID_{k}": _named(self.latents[k % people], PROMPTS[0]) for k in range(count)}

    @property
    def prior(self) -> LatentSet:
        """The prior images."""
        return _named(self.latents[-1], PROMPTS[1])

    def reference(self, method: str) -> ReferenceLoop:
        """The plain loop for the first person."""
        return ReferenceLoop(
            self.base,
            self.images[0],
            self.images[-1],
            None if method == "dreambooth" else (self.embeddings[0], self.embeddings[-1]),
            PROMPTS,
            self.recogniser,
            self.settings,
            default_box=self.default_box,
        )


def _named(images: LatentSet, prompt: str) -> LatentSet:
    return LatentSet(images.mean, images.std, images.embeddings, prompt)


def embedded_world(seed: int, device: str = "cpu", precision: str = "fp32") -> World:
    """The embedded base model and recogniser with rendered faces, and the demo's settings."""
    import yaml

    from pipeline_steps.study.registry import read_models

    models = read_models(Path("config/models.yaml"))
    base = load_base_model(models["demo"], device, precision)
    recogniser = load_recogniser(models["demo_recogniser"], device)
    settings = yaml.safe_load(Path("config/demo.yaml").read_text(encoding="utf-8"))["finetune"]
    guide = FaceGuide(Detector(device), recogniser)
    numbers = [*([k] * IMAGES for k in range(PEOPLE)), list(range(PEOPLE, PEOPLE + PRIOR_IMAGES))]
    images = [to_signed(photographs(seed, people, base.resolution)) for people in numbers]
    whole = torch.tensor([[0.0, 0.0, base.resolution, base.resolution]], device=device)
    with torch.no_grad():
        embeddings = [
            guide.embed(part.to(device), whole.expand(len(part), 4)).cpu() for part in images
        ]
    return World(
        base=base,
        recogniser=recogniser,
        guide=guide,
        images=images,
        embeddings=embeddings,
        settings=FinetuneSettings(**settings | {"precision": precision}),
        runtime=Runtime(),
    )


def photographs(seed: int, people: Sequence[int], side: int) -> Tensor:
    """A photograph of each of the numbered people, uint8 [n, 3, side, side]."""
    from pipeline_steps.demo_world.rendering.population import HELD_OUT, person, wild_nuisance

    pictures = [
        person(seed, HELD_OUT, number)
        .photograph(wild_nuisance(seed, HELD_OUT, number, index, max_yaw=20.0), side, supersample=1)
        .image
        for index, number in enumerate(people)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


class MiddleFace(FaceGuide):
    """Searches each image, at full cost, and takes the middle half where it finds nothing.

    Networks with random weights draw no faces; a step should cost what it costs with faces.
    """

    def boxes(self, images: Tensor) -> list[NDArray[np.float32] | None]:
        found = super().boxes(images)
        return [middle_box(images.shape[-1]) if box is None else box for box in found]


def middle_box(side: int) -> NDArray[np.float32]:
    """The middle half of an image."""
    return np.array([side / 4, side / 4, 3 * side / 4, 3 * side / 4], dtype=np.float32)


def random_world(name: str, device: str) -> World:
    """A published architecture at its size, random weights, with an iResNet-100 as guide."""
    from diffusers import DDPMScheduler
    from random_models import build, read_architecture

    from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet

    architecture = read_architecture(name)
    side = int(architecture["resolution"])
    parts = [part for part in ("text_encoder", "text_encoder_2") if part in architecture]
    encoders = [build(architecture[part], device) for part in parts]
    schedule = DDPMScheduler.from_config(architecture["scheduler"])
    base = BaseModel(
        name=name,
        resolution=side,
        unet=build(architecture["unet"], device),
        vae=build(architecture["vae"], device),
        text_encoders=encoders,
        scheduler_config=dict(schedule.config),
        alphas_cumprod=schedule.alphas_cumprod.double(),
        encode=lambda prompts: _encode(encoders, len(prompts), side),
    ).to(device, "bf16")
    recogniser = Recogniser(IResNet(NAMED_LAYERS["iresnet100"]), device)
    generator = torch.Generator().manual_seed(0)
    counts = [IMAGES] * 2 + [PRIOR_IMAGES]
    return World(
        base=base,
        recogniser=recogniser,
        guide=MiddleFace(Detector(device), recogniser),
        images=[torch.rand(n, 3, side, side, generator=generator) * 2 - 1 for n in counts],
        embeddings=[torch.randn(n, recogniser.embedding_dim, generator=generator) for n in counts],
        settings=FinetuneSettings(precision="bf16"),
        runtime=Runtime(),
        default_box=middle_box(side),
    )


@torch.no_grad()
def _encode(encoders: Sequence[Any], count: int, side: int) -> Conditioning:
    """Prompts of random words, encoded at full cost."""
    hidden: list[Any] = []
    for encoder in encoders:
        words = encoder.config.vocab_size
        ids = torch.randint(words, (count, TOKENS), device=next(encoder.parameters()).device)
        output = encoder(ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2] if len(encoders) > 1 else output[0])
    if len(encoders) == 1:
        return Conditioning(hidden[0])
    size = output.text_embeds.new_tensor([[side, side, 0, 0, side, side]]).expand(count, -1)
    added = {"text_embeds": output.text_embeds, "time_ids": size}
    return Conditioning(torch.cat(hidden, dim=-1), added)
