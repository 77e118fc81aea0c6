"""How much of everything the embedded weights are trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline_steps.io.hashes import sha256_json


@dataclass(frozen=True)
class RecogniserPlan:
    """One recogniser.

    Attributes:
        name: of its folder.
        seed_offset: added to the plan's seed; another one means other people.
        layers: blocks of the four stages.
        widths: channels of the stem and the four stages.
        loss, margin: see `train_recogniser`.
        with_quality_head: whether it also predicts the quality of a face image.
        embedding_dim: to which 512-d embeddings are shortened after training; 512: not at all.
    """

    name: str
    seed_offset: int
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    loss: str
    margin: float
    with_quality_head: bool
    embedding_dim: int


# The second judges what the first helped to train: other people, architecture and loss.
RECOGNISERS = (
    RecogniserPlan(
        name="recogniser",
        seed_offset=0,
        layers=(1, 1, 1, 1),
        widths=(16, 16, 32, 64, 64),
        loss="cosface",
        margin=0.35,
        with_quality_head=True,
        embedding_dim=512,
    ),
    RecogniserPlan(
        name="recogniser_b",
        seed_offset=1,
        layers=(1, 1, 2, 1),
        widths=(16, 16, 32, 64, 64),
        loss="arcface",
        margin=0.3,
        with_quality_head=False,
        embedding_dim=256,
    ),
)


@dataclass(frozen=True)
class Plan:
    """Amounts of everything; the defaults are those of the shipped weights.

    Attributes:
        seed: of everything that is drawn.
        identities: rendered people.
        images_each: photographs of each.
        named: identities that carry a name of their own in captions.
        autoencoder_cycles: steps of each learning-rate cycle.
        autoencoder_batch, denoiser_batch: images per step.
        recognisers: which.
        recogniser_epochs, attribute_steps, denoiser_steps: lengths.
        threads: of the CPU.
    """

    seed: int = 2026
    identities: int = 4000
    images_each: int = 6
    named: int = 500
    autoencoder_cycles: tuple[int, ...] = (1600, 1500, 1000)
    autoencoder_batch: int = 16
    recognisers: tuple[RecogniserPlan, ...] = RECOGNISERS
    recogniser_epochs: int = 11
    attribute_steps: int = 1500
    denoiser_steps: int = 2700
    denoiser_batch: int = 32
    threads: int = 2

    def stages_key(self) -> str:
        """Name of the folder of this plan's stages: another plan reuses nothing of it.

        The denoiser's length and the threads are left out: its checkpoint may go on for longer.
        """
        amounts = asdict(self)
        for name in ("denoiser_steps", "threads"):
            del amounts[name]
        return sha256_json(amounts)[:12]
