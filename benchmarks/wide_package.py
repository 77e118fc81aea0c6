"""Face Fusion at the width of SD-2.1: python benchmarks/wide_package.py

A random denoising network of SD-2.1's widths (866 million weights; autoencoder and text encoder are
small, images 128 pixels) takes one training step and paints one image; the package of both, opened
by plain diffusers in a process that cannot import this project, has to paint the same to 1e-4.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from random_models import read_architecture, reduced, write_pipeline
from safetensors.torch import load_file

from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.face_fusion import FILE_NAME
from pipeline_steps.diffusion.packaging import write_package
from pipeline_steps.diffusion.sampling.references import OnePersonEach, keys_of
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample_latents
from pipeline_steps.diffusion.training.generator import Training, list_pictures
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.io.weights import Weights
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.diffusion import GeneratorSettings

SIDE = 128
PLAIN = """
import sys, torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
sys.modules["pipeline_steps"] = None
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
found = pipe("a face", faces=[Image.open(path) for path in sys.argv[3:]], num_inference_steps=2,
             guidance_scale=3.0, output_type="latent", generator=torch.Generator().manual_seed(5))
save_file({"latents": found.images}, sys.argv[2])
"""


def main() -> None:
    """Train, paint, pack, open again and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), read_architecture("sd21")
        small = reduced(whole, SIDE)
        wide = whole["unet"] | {"sample_size": small["unet"]["sample_size"]}
        write_pipeline(folder / "base", small | {"unet": wide})
        draw = np.random.default_rng(0)
        for k in range(2):
            (folder / "images" / "anna").mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / "anna" / f"{k}.png")
        weights = Weights(
            name="wide",
            task="base_model",
            architecture="stable-diffusion",
            source=str(folder / "base"),
            licence="Apache-2.0",
            commercial_use=True,
            options={"resolution": SIDE},
        )
        base = load_base_model(weights)
        settings = GeneratorSettings(steps=1, batch_size=1, references=1, warm_up=0)
        frozen = Frozen("wide", "train_generator", 0, settings)
        training = Training(base, list_pictures(folder / "images", "a face"), frozen)
        training.step()
        fusion = training.fusion
        print(f"one training step: loss {training.losses[0]:.4f}", flush=True)
        save_tensors(folder / FILE_NAME, fusion.state())
        photographs = [folder / "images" / "anna" / f"{k}.png" for k in range(2)]
        images = torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in photographs]))
        with torch.no_grad():
            keys = keys_of(base, fusion, images.permute(0, 3, 1, 2))
        how = Sampling(steps=2, guidance=3.0, scheduler="ddim", batch_size=1)
        [(_, ours)] = sample_latents(
            base,
            [ImageRequest("anna", 0, "a face", "", 5, 0)],
            how,
            bank=OnePersonEach(fusion, keys, guide_away=True),
        )
        fusion.look(None)
        del base, training, fusion, keys
        write_package(weights, folder / FILE_NAME, folder / "package")
        environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
        words = [sys.executable, "-c", PLAIN, folder / "package", folder / "out.safetensors"]
        told = [str(word) for word in (*words, *photographs)]
        subprocess.run(told, check=True, cwd=folder, env=environment)
        off = float((load_file(folder / "out.safetensors")["latents"] - ours).abs().max())
        print(f"largest difference of a latent: {off:.2g} (at most 1e-4 is wanted)")
        sys.exit(off > 1e-4)


if __name__ == "__main__":
    main()
