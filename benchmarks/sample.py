"""Sampling side by side: a loop as the paper's public code has it, against this pipeline's sampler.

    python benchmarks/sample.py                             embedded base model, CPU
    python benchmarks/sample.py --device cuda               SD-2.1, random weights at real size
    python benchmarks/sample.py --device cuda --model sdxl

Same model, adapters, prompts, seeds and steps in one run. The loop: a diffusers pipeline, opened
anew for every identity, ``load_lora_weights``, one prompt at a time, half precision on a GPU. The
sampler: one base model, all identities' adapters over it, static batches. Both are timed with and
without opening the model, in turns, and the images of both are compared. Speed does not depend on
the weights, so random ones serve where the published are not at hand.

Prints a table last, and adds the numbers to --out with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measured import hardware

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.lease import keep_freed_memory
from pipeline_steps.study.command import run_main

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4
NEGATIVE = "cartoon, cgi, render, illustration, painting, drawing, black and white"
PROMPT = "photo of sks person, close-up portrait"
PEAK = 790e12  # FLOP/s, dense bf16 matrix products measured on an H200
# FLOP of one image at 30 steps with guidance, counted on the published configurations.
WORK_AT_30_STEPS = {"sd21": 64e-3 * PEAK, "sdxl": 527e-3 * PEAK}


@dataclass(frozen=True)
class Task:
    """What both sample.

    Attributes:
        weights: Base model.
        loras: Folder with a folder of random adapters per identity.
        identities: Names.
        images: Per identity.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        device: "cpu" or "cuda".
        precision: Of the sampler: "fp32", "bf16" or "fp16".
        batch_size: Of the sampler.
    """

    weights: Weights
    loras: Path
    identities: tuple[str, ...]
    images: int
    steps: int
    guidance: float
    device: str
    precision: str
    batch_size: int

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """Identity, index and seed of every image."""
        return [
            (name, i, 1000 * k + i)
            for k, name in enumerate(self.identities)
            for i in range(self.images)
        ]


@dataclass(frozen=True)
class Timed:
    """Seconds to open the models, seconds to sample, and the images uint8 [n, h, w, 3]."""

    opening: float
    sampling: float
    images: np.ndarray


def reference_loop(task: Task) -> Timed:
    """A pipeline per identity, one prompt at a time."""
    import diffusers
    import torch

    sdxl = task.weights.architecture == "stable-diffusion-xl"
    kind = diffusers.StableDiffusionXLPipeline if sdxl else diffusers.StableDiffusionPipeline
    dtype = torch.float16 if task.device == "cuda" else torch.float32
    opening = sampling = 0.0
    made = []
    for identity in task.identities:
        start = time.perf_counter()
        pipe: Any = kind.from_pretrained(task.weights.source, torch_dtype=dtype)
        pipe.load_lora_weights(task.loras / identity)
        pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(task.device)
        _wait(task.device)
        opened = time.perf_counter()
        for name, _, seed in task.places:
            if name == identity:
                image = pipe(
                    PROMPT,
                    negative_prompt=NEGATIVE,
                    num_inference_steps=task.steps,
                    guidance_scale=task.guidance,
                    generator=torch.Generator().manual_seed(seed),
                    output_type="np",
                ).images[0]
                made.append((image * 255).round().astype(np.uint8))
        _wait(task.device)
        opening += opened - start
        sampling += time.perf_counter() - opened
    return Timed(opening, sampling, np.stack(made))


def our_sampler(task: Task) -> Timed:
    """One base model, all adapters, static batches."""
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.base_models.base import compiled_predict
    from pipeline_steps.diffusion.lora import load_bank
    from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample

    start = time.perf_counter()
    base = load_base_model(task.weights, task.device, task.precision)
    bank = load_bank(base.unet, [task.loras / name for name in task.identities])
    _wait(task.device)
    opened = time.perf_counter()
    made = {}
    wanted = [
        ImageRequest(name, i, PROMPT, NEGATIVE, seed, task.identities.index(name))
        for name, i, seed in task.places
    ]
    how = Sampling(task.steps, task.guidance, "ddpm", task.batch_size)
    predict = compiled_predict(base, "auto")
    for requests, images in sample(base, wanted, how, bank=bank, predict=predict):
        for request, image in zip(requests, images, strict=True):
            made[request.identity, request.index] = image.permute(1, 2, 0).numpy()
    _wait(task.device)
    end = time.perf_counter()
    pixels = np.stack([made[name, i] for name, i, _ in task.places])
    return Timed(opened - start, end - opened, pixels)


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def random_adapters(task_weights: Weights, folder: Path, identities: Sequence[str]) -> None:
    """Adapters of the paper's size, weak enough to leave half precision in its range."""
    import torch

    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.lora import AdapterBank, save_lora

    base = load_base_model(task_weights)
    bank = AdapterBank(base.unet, count=len(identities), rank=RANK, alpha=RANK, targets=TARGETS)
    with torch.no_grad():
        bank.weights.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    for k, name in enumerate(identities):
        save_lora(folder / name, bank.adapter(k), rank=RANK, alpha=RANK, targets=TARGETS)


def base_weights(model: str, folder: Path) -> Weights:
    """The embedded model's registry entry, or a random pipeline of a published architecture."""
    from random_models import read_architecture, write_pipeline

    from pipeline_steps.io.weights import PROJECT_ROOT, locate
    from pipeline_steps.study.registry import read_models

    if model == "demo":
        entry = read_models(PROJECT_ROOT / "config" / "models.yaml")["demo"]
        return entry.model_copy(update={"source": str(locate(entry)), "sha256": {}})
    architecture = read_architecture(model)
    return Weights(
        name=model,
        task="base_model",
        architecture="stable-diffusion-xl" if model == "sdxl" else "stable-diffusion",
        source=str(write_pipeline(folder / model, architecture)),
        licence="random weights",
        commercial_use=True,
        options={"resolution": architecture["resolution"]},
    )


def measure(task: Task, model: str, repeats: int) -> dict[str, Any]:
    """Both in turns; medians over the repeats."""
    runs: dict[str, list[Timed]] = {"reference-style loop": [], "sampler": []}
    for turn in range(repeats + 1):  # the first warms up
        for name, sampler in zip(runs, (reference_loop, our_sampler), strict=True):
            timed = sampler(task)
            if turn > 0 or repeats == 0:
                runs[name].append(timed)
    n = len(task.places)
    rows = []
    for name, timings in runs.items():
        sampling = statistics.median(t.sampling for t in timings)
        opening = statistics.median(t.opening for t in timings)
        row: dict[str, Any] = {
            "what": name,
            "images_per_second": n / sampling,
            "images_per_second_with_opening": n / (sampling + opening),
            "seconds_opening": opening,
        }
        if task.device == "cuda" and model in WORK_AT_30_STEPS:
            work = WORK_AT_30_STEPS[model] * task.steps / 30
            row["share_of_peak"] = n / sampling * work / PEAK
        rows.append(row)
    a, b = (timings[-1].images.astype(int) for timings in runs.values())
    return {"rows": rows, "largest_pixel_difference": int(np.abs(a - b).max())}


def facts(task: Task) -> dict[str, Any]:
    """Hardware, versions and amounts, so that the numbers can be read later."""
    import torch

    gpu = torch.cuda.get_device_name() if task.device == "cuda" else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "identities": len(task.identities),
        "images_per_identity": task.images,
        "steps": task.steps,
        "guidance": task.guidance,
        "precision": task.precision,
        "batch_size": task.batch_size,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text, with the ratio to the first."""
    lines = [f"{'':<22}{'images/s':>10}{'ratio':>8}{'with opening':>14}{'ratio':>8}{'of peak':>9}"]
    for row in rows:
        plain, opened = row["images_per_second"], row["images_per_second_with_opening"]
        share = f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else ""
        lines.append(
            f"{row['what']:<22}{plain:>10.3f}{plain / rows[0]['images_per_second']:>8.2f}"
            f"{opened:>14.3f}{opened / rows[0]['images_per_second_with_opening']:>8.2f}{share:>9}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("demo", "sd21", "sdxl"), help="default: demo, or sd21")
    parser.add_argument("--identities", type=int, help="default: 3, on a GPU 2")
    parser.add_argument("--images", type=int, help="per identity; default: 11, on a GPU 21")
    parser.add_argument("--steps", type=int, help="default: 20, on a GPU 30")
    parser.add_argument("--batch-size", type=int, help="default: 16, on a GPU 21")
    parser.add_argument("--repeats", type=int, default=1, help="timed turns after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sample.json"))
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    gpu = args.device == "cuda"
    if not gpu:
        keep_freed_memory()
    model = args.model or ("sd21" if gpu else "demo")
    count = args.identities or (2 if gpu else 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identities = tuple(f"ID_{k + 1}" for k in range(count))
        weights = base_weights(model, folder)
        random_adapters(weights, folder / "loras", identities)
        task = Task(
            weights=weights,
            loras=folder / "loras",
            identities=identities,
            images=args.images or (21 if gpu else 11),
            steps=args.steps or (30 if gpu else 20),
            guidance=5.0 if gpu else 3.0,
            device=args.device,
            precision="bf16" if gpu else "fp32",
            batch_size=args.batch_size or (21 if gpu else 16),
        )
        result = measure(task, model, args.repeats)
        part = f"{model}, {args.device}"
        results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
        write_json(args.out, results | {part: result | facts(task)})
    print(f"\n{part}: {len(task.places)} images, {task.steps} steps, {hardware()}")
    print(f"largest difference of a pixel: {result['largest_pixel_difference']} of 255")
    print(table(result["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
