"""How much of everything the embedded weights are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Amounts:
    """Length of one training: images in all, images per step, and the peak learning rate.

    Another length or batch goes on from the same state.
    """

    images: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class RecogniserPlan:
    """One recogniser; its network is that of the one that ships.

    Attributes:
        name: of its folder and its training.
        seed_offset: added to the plan's seed; another one means other people.
        loss, margin: names and sizes of recognition.margins.
        guides: whether fine-tuning follows it: it then learns what fine-tuning may show it, see
            recogniser.py, and to predict a face's quality.
    """

    name: str
    seed_offset: int
    loss: str
    margin: float
    guides: bool


# The second judges what the first helped to train: other people, architecture and loss.
RECOGNISERS = (
    RecogniserPlan("recogniser", seed_offset=0, loss="cosface", margin=0.35, guides=True),
    RecogniserPlan("recogniser_b", seed_offset=1, loss="arcface", margin=0.3, guides=False),
)


@dataclass(frozen=True)
class Plan:
    """Amounts of everything.

    Attributes:
        seed: of everything that is drawn.
        people: rendered people of each of the two populations, a multiple of 10.
        each: photographs of each.
        unseen: people of the held-out population, on whom training is measured.
        named: people that carry a name of their own in captions.
        recognisers: which.
        autoencoder, recogniser, attributes, denoiser, face_fusion, id3: lengths.
        shares: of a call's minutes, after which a training makes way for the next although it is
            not complete.
    """

    seed: int
    people: int
    each: int
    unseen: int
    named: int
    recognisers: tuple[RecogniserPlan, ...]
    autoencoder: Amounts
    recogniser: Amounts
    attributes: Amounts
    denoiser: Amounts
    face_fusion: Amounts
    id3: Amounts
    shares: Mapping[str, float] = field(default_factory=dict)


_CPU = Plan(
    seed=2026,
    people=4000,
    each=4,
    unseen=20,
    named=500,
    recognisers=RECOGNISERS,
    autoencoder=Amounts(1_000_000, 16, 1e-3),
    recogniser=Amounts(400_000, 64, 5e-4),
    attributes=Amounts(200_000, 64, 2e-3),
    denoiser=Amounts(20_000_000, 64, 6e-4),
    face_fusion=Amounts(400_000, 8, 2e-3),
    id3=Amounts(400_000, 16, 1e-3),
)
PLANS = {
    "cpu": _CPU,
    "cuda": replace(
        _CPU,
        people=5000,
        unseen=60,
        autoencoder=Amounts(1_500_000, 256, 2e-3),
        recogniser=Amounts(800_000, 512, 1e-3),
        attributes=Amounts(400_000, 512, 3e-3),
        denoiser=Amounts(20_000_000, 1024, 1.5e-3),
        face_fusion=Amounts(2_000_000, 128, 2e-3),
        id3=Amounts(2_000_000, 128, 2e-3),
        shares={"autoencoder": 0.2, "recogniser": 0.1, "recogniser_b": 0.08, "attributes": 0.05},
    ),
}
