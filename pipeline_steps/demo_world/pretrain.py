"""Train the weights of the embedded world from a seed: `make pretrain-demo-world`.

Everything is rendered; no photograph of a real person is involved. Stages keep their results below
--work and are not repeated when the command is given again; the finished weights are written below
--out, in half precision, with their hashes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_steps.files.atomic import atomic_path, write_bytes, write_json
from pipeline_steps.files.errors import run_main
from pipeline_steps.files.hashes import sha256_file, sha256_json
from pipeline_steps.files.logs import get_logger

if TYPE_CHECKING:
    import torch

    from pipeline_steps.demo_world.training_images import TrainingImages

IMAGE_SIZE = 128  # pixels; the diffusion model sees half of it
RECOGNISER_LAYERS = (1, 1, 1, 1)
ATTRIBUTE_BATCH = 64
BLOCK = 1000  # images in memory at a time


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
        recogniser_widths: channels of the stem and the four stages.
        recogniser_epochs, attribute_steps, denoiser_steps: lengths.
        threads: of the CPU.
    """

    seed: int = 2026
    identities: int = 4000
    images_each: int = 6
    named: int = 500
    autoencoder_cycles: tuple[int, ...] = (1600, 1500, 1000)
    autoencoder_batch: int = 16
    recogniser_widths: tuple[int, ...] = (16, 16, 32, 64, 64)
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


def _array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """A memory-mapped array, made first when the file is not there."""
    if not path.exists():
        made = make()
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, made, allow_pickle=False)
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def half_size(images: np.ndarray) -> np.ndarray:
    """Box-average uint8 images [n, 2h, 2w, 3] to [n, h, w, 3], a block of images at a time."""
    from pipeline_steps.demo_world.autoencoder_training import halve

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

    from pipeline_steps.demo_world.autoencoder_training import train_autoencoder

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


def train_recogniser_stage(plan: Plan, path: Path, crops: np.ndarray, labels: np.ndarray) -> None:
    """Train the recogniser with its quality head, and write it to `path` where it is not there.

    Args:
        plan: the amounts.
        path: the .safetensors file, among the stages.
        crops: uint8 [n, 112, 112, 3].
        labels: int64 [n].
    """
    from pipeline_steps.demo_world.recogniser_training import train_recogniser

    if path.exists():
        return
    log = get_logger("pretrain")

    def report(step: int, n_steps: int, loss: float) -> None:
        if step % 25 == 0:
            log.info("recogniser %d of %d, loss %.3f", step, n_steps, loss)

    network = train_recogniser(
        np.asarray(crops),
        labels,
        layers=RECOGNISER_LAYERS,
        widths=plan.recogniser_widths,
        epochs=plan.recogniser_epochs,
        seed=plan.seed,
        threads=plan.threads,
        compiled=shutil.which("g++") is not None,
        on_step=report,
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

    from pipeline_steps.demo_world.autoencoder_training import latent_moments
    from pipeline_steps.demo_world.denoiser_training import train_denoiser
    from pipeline_steps.demo_world.pipeline_folder import write_pipeline
    from pipeline_steps.demo_world.vocabulary import build_tokenizer, names

    folder = train_autoencoder_stage(plan, work, images)
    autoencoder = AutoencoderKL.from_pretrained(folder).eval()
    moments = _array(
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


def run(plan: Plan, *, work: Path, out: Path) -> None:
    """Go through all stages.

    Args:
        plan: the amounts.
        work: folder of stages in progress, about 3 GB with the default plan; each plan has a
            folder of its own in it.
        out: folder of the finished weights and of hashes.json, which names plan and files.
    """
    import torch

    from pipeline_steps.demo_world.attributes_training import train_attributes
    from pipeline_steps.demo_world.crops import face_crops
    from pipeline_steps.demo_world.population import PRETRAINING
    from pipeline_steps.demo_world.training_images import load_or_render

    torch.set_num_threads(plan.threads)
    work = work / plan.stages_key()
    facts = load_or_render(
        work / "images",
        seed=plan.seed,
        population=PRETRAINING,
        identities=plan.identities,
        images_each=plan.images_each,
        size=IMAGE_SIZE,
        workers=plan.threads,
    )
    images = _array(work / "images64.npy", lambda: half_size(facts.images))
    crops = _array(work / "crops.npy", lambda: face_crops(facts, plan.seed))
    labels = np.asarray(facts.identity)
    recogniser, attributes = work / "recogniser.safetensors", work / "attributes.safetensors"
    train_recogniser_stage(plan, recogniser, crops, labels)
    if not attributes.exists():
        network = train_attributes(
            images, facts, steps=plan.attribute_steps, batch=ATTRIBUTE_BATCH, seed=plan.seed
        )
        save_half(attributes, network.state_dict())
    for finished in (recogniser, attributes):
        write_bytes(out / finished.stem / "model.safetensors", finished.read_bytes())
    train_denoiser_stage(plan, work, out / "base_model", facts, images)
    files = sorted(
        p for p in out.rglob("*") if p.is_file() and p.name not in ("hashes.json", "README.md")
    )
    hashes = {p.relative_to(out).as_posix(): sha256_file(p) for p in files}
    write_json(out / "hashes.json", {"plan": asdict(plan), "sha256": hashes})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("tmp/pretrain"), help="stages in progress (3 GB)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("resources/demo_world"), help="the finished weights"
    )
    parser.add_argument(
        "--seed", type=int, default=Plan.seed, help="seed of everything that is drawn"
    )
    parser.add_argument(
        "--denoiser-steps",
        type=int,
        default=Plan.denoiser_steps,
        help="length of the longest stage",
    )
    args = parser.parse_args(argv)
    run(Plan(seed=args.seed, denoiser_steps=args.denoiser_steps), work=args.work, out=args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
