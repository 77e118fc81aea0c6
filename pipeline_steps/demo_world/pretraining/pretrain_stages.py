"""The stages of pretraining: each keeps its result in a folder and is not repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_steps.demo_world.pretraining.pretrain_plan import Plan, RecogniserPlan
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.runtime.logs import get_logger

if TYPE_CHECKING:
    import torch

    from pipeline_steps.demo_world.pretraining.training_images import TrainingImages

IMAGE_SIZE = 128  # pixels; the diffusion model sees half of it
ATTRIBUTE_BATCH = 64
BLOCK = 1000  # images in memory at a time
SHORTENED_BY = 3000  # images that show which directions of an embedding matter


def stored(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """A memory-mapped array, made first when the file is not there."""
    if not path.exists():
        made = make()
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, made, allow_pickle=False)
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def half_size(images: np.ndarray) -> np.ndarray:
    """Box-average uint8 images [n, 2h, 2w, 3] to [n, h, w, 3], a block of images at a time."""
    from pipeline_steps.demo_world.pretraining.autoencoder_training import halve

    return np.concatenate(
        [halve(np.asarray(images[i : i + BLOCK])) for i in range(0, len(images), BLOCK)]
    )


def save_half(
    path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a state dict as safetensors in float16 (integers as they are); atomic."""
    from safetensors.torch import save_file

    kept = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(kept, str(temporary), metadata=metadata)


def train_autoencoder_stage(plan: Plan, work: Path, images: np.ndarray) -> Path:
    """Train the autoencoder on uint8 [n, 64, 64, 3]; its folder below `work`."""
    from diffusers import AutoencoderKL

    from pipeline_steps.demo_world.pretraining.autoencoder_training import train_autoencoder

    model = None
    folder = work / "autoencoder"
    for cycle, steps in enumerate(plan.autoencoder_cycles):
        folder = work / f"autoencoder_{cycle}"
        if not (folder / "config.json").exists():
            model = train_autoencoder(
                images,
                steps=steps,
                batch=plan.autoencoder_batch,
                seed=plan.seed,
                start=model,
                cycle=cycle,
            )
            model.save_pretrained(folder)
        else:
            model = AutoencoderKL.from_pretrained(folder)
    return folder


def render_stage(plan: Plan, folder: Path, seed_offset: int) -> TrainingImages:
    """Render the people of one seed, or open them."""
    from pipeline_steps.demo_world.pretraining.training_images import load_or_render
    from pipeline_steps.demo_world.rendering.population import PRETRAINING

    return load_or_render(
        folder,
        seed=plan.seed + seed_offset,
        population=PRETRAINING,
        identities=plan.identities,
        images_each=plan.images_each,
        size=IMAGE_SIZE,
        workers=plan.threads,
    )


def train_recogniser_stage(plan: Plan, recogniser: RecogniserPlan, work: Path) -> None:
    """Train a recogniser and write it among the stages where it is not there.

    Args:
        plan: the amounts.
        recogniser: which.
        work: folder of the stages.
    """
    from pipeline_steps.demo_world.pretraining.recogniser_training import (
        shorten_embeddings,
        train_recogniser,
    )
    from pipeline_steps.demo_world.rendering.crops import face_crops

    path = work / f"{recogniser.name}.safetensors"
    if path.exists():
        return
    folder = work / (f"images_{recogniser.seed_offset}" if recogniser.seed_offset else "images")
    seed = plan.seed + recogniser.seed_offset
    facts = render_stage(plan, folder, recogniser.seed_offset)
    crops = stored(folder / "crops.npy", lambda: face_crops(facts, seed))
    log = get_logger("pretrain")

    def report(step: int, n_steps: int, loss: float) -> None:
        if step % 25 == 0:
            log.info("%s %d of %d, loss %.3f", recogniser.name, step, n_steps, loss)

    network = train_recogniser(
        np.asarray(crops),
        np.asarray(facts.identity),
        layers=recogniser.layers,
        widths=recogniser.widths,
        loss=recogniser.loss,
        margin=recogniser.margin,
        with_quality_head=recogniser.with_quality_head,
        epochs=plan.recogniser_epochs,
        seed=seed,
        threads=plan.threads,
        compiled=shutil.which("g++") is not None,
        on_step=report,
    )
    if recogniser.embedding_dim < network.embedding_dim:
        network = shorten_embeddings(
            network,
            np.array(crops[:: max(1, len(crops) // SHORTENED_BY)]),
            recogniser.embedding_dim,
            layers=recogniser.layers,
            widths=recogniser.widths,
        )
    save_half(path, network.state_dict())


def train_attributes_stage(
    plan: Plan, path: Path, images: np.ndarray, facts: TrainingImages
) -> None:
    """Train the attribute network on uint8 [n, 64, 64, 3] and write it where it is not there."""
    from pipeline_steps.demo_world.pretraining.attributes_training import train_attributes

    if path.exists():
        return
    network = train_attributes(
        images, facts, steps=plan.attribute_steps, batch=ATTRIBUTE_BATCH, seed=plan.seed
    )
    save_half(path, network.state_dict())


def train_denoiser_stage(
    plan: Plan, work: Path, out: Path, facts: TrainingImages, images: np.ndarray
) -> None:
    """Train denoiser and text encoder, and write the pipeline's folder.

    Args:
        plan: the amounts.
        work: folder of the stages, the denoiser's checkpoint among them.
        out: folder of the pipeline.
        facts: of the photographs.
        images: the photographs, uint8 [n, 64, 64, 3].
    """
    import torch
    from diffusers import AutoencoderKL

    from pipeline_steps.demo_world.pretraining.autoencoder_training import latent_moments
    from pipeline_steps.demo_world.pretraining.denoiser_training import train_denoiser
    from pipeline_steps.demo_world.pretraining.pipeline_folder import write_pipeline
    from pipeline_steps.demo_world.rendering.vocabulary import build_tokenizer, names

    folder = train_autoencoder_stage(plan, work, images)
    autoencoder = AutoencoderKL.from_pretrained(folder).eval()
    moments = stored(
        work / "moments.npy",
        lambda: torch.stack(latent_moments(autoencoder, images)).to(torch.float16).numpy(),
    )
    mean, std = (torch.from_numpy(np.array(part)).float() for part in moments)
    words = names(plan.named, plan.seed)
    tokenizer = build_tokenizer(work / "tokenizer", words)
    model = train_denoiser(
        mean,
        std,
        autoencoder.config.scaling_factor,
        facts,
        tokenizer,
        words,
        steps=plan.denoiser_steps,
        batch=plan.denoiser_batch,
        seed=plan.seed,
        checkpoint=work / "denoiser.pt",
    )
    model.use_average()
    write_pipeline(
        out,
        autoencoder=autoencoder,
        unet=model.unet,
        text=model.text,
        tokenizer_folder=work / "tokenizer",
    )
