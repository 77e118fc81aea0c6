"""One run on a graphics card: is everything right there, and how fast is it?

    PYTHONPATH=. python benchmarks/on_gpu.py              about six minutes on an H100 or H200
    PYTHONPATH=. python benchmarks/on_gpu.py --rehearse   the same code on the CPU, small models

Needs no network, no weights but those that come with the code, and of the project's dependencies
PyTorch (2.11 or later), diffusers, transformers, peft, facenet-pytorch, safetensors, pydantic,
pandas, SciPy, threadpoolctl, OpenCV and Pillow. In this order: whether the card computes the CPU's
numbers (``device_checks.py``); fine-tuning SD-2.1 and SDXL beside a plain loop; sampling;
detection, embeddings and error rates. Speed does not depend on weights, so random ones of the
published architectures stand in for them.

Prints each part when it is done and keeps all of it in --out, so that a run that is cut off has
told what it knew. A part that fails is told and kept too, and the next one runs. Parts that would
begin after --minutes are left out, and said. Exits with 1 where a number is wrong or a part failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import sample
import torch
from device_checks import CHECKS
from finetune_worlds import World, embedded_world, random_world
from measured import hardware

from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.iresnet import NAMED_LAYERS, IResNet
from pipeline_steps.faces.recogniser import Recogniser
from pipeline_steps.io.atomic import write_json
from pipeline_steps.metrics.verification import identity_error_rates
from pipeline_steps.runtime.lease import keep_freed_memory

VERSIONS = ("torch", "diffusers", "transformers", "peft", "facenet-pytorch")
FLEETS = {"sd21": (1, 8, 16), "sdxl": (4,), "demo": (2,)}
METHODS = ("dreambooth", "idbooth")

Rows = list[dict[str, Any]]
Part = Callable[[], Iterator[dict[str, Any]]]


def checks(device: str) -> Iterator[dict[str, Any]]:
    """Each check's distance from the CPU's numbers."""
    for name, check in CHECKS.items():
        if device == "cpu" and check.compiles:
            yield {"what": name, "left out": "compiling takes minutes on a CPU"}
            continue
        distance = check.distance(device)
        right = distance <= check.tolerance
        yield {"what": name, "distance": distance, "tolerance": check.tolerance, "right": right}
    if device == "cuda":
        yield {"what": "a DreamBooth step never waits for the host", "right": never_waits()}


def never_waits() -> bool:
    """Whether an eager training step of DreamBooth leaves the host free."""
    from device_checks import EAGER, fleet

    with fleet("cuda", "dreambooth", "fp32", EAGER) as trained:
        trained.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trained.step()
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return True


def fine_tuning(open_world: Callable[[], World]) -> Iterator[dict[str, Any]]:
    """Milliseconds per identity and step, beside the plain loop."""
    world = open_world()
    for method in METHODS:
        for count in FLEETS[world.base.name]:
            yield asdict(
                finetune.measure(world, method, count, rounds=3, steps=3, clock=time.perf_counter)
            )


def sampling(model: str, device: str) -> Iterator[dict[str, Any]]:
    """Images per second, beside a plain pipeline."""
    gpu = device == "cuda"
    with tempfile.TemporaryDirectory() as name:
        identities = ("ID_1", "ID_2")
        weights = sample.base_weights(model, Path(name))
        sample.random_adapters(weights, Path(name) / "loras", identities)
        task = sample.Task(
            weights=weights,
            loras=Path(name) / "loras",
            identities=identities,
            images={"sd21": 10, "sdxl": 2, "demo": 2}[model],
            steps=30 if gpu else 3,
            guidance=5.0,
            device=device,
            precision="bf16" if gpu else "fp32",
            batch_size=10 if gpu else 4,
        )
        found = sample.measure(task, model, repeats=1)
        for row in found["rows"]:
            yield {"model": model, **row}


def judging(device: str) -> Iterator[dict[str, Any]]:
    """Detection and embeddings per second of images, error rates per second of pairs."""
    gpu = device == "cuda"
    images, people = (2000, 2000) if gpu else (16, 100)
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.integers(0, 256, (images, 3, 512, 512), dtype=np.uint8))
    layers = NAMED_LAYERS["iresnet100" if gpu else "iresnet18"]
    recogniser = Recogniser(IResNet(layers), device)
    faces = rng.integers(0, 256, (images, 112, 112, 3), dtype=np.uint8)
    detector = Detector(device)
    for what, work in (
        ("faces searched, 512 px", lambda: detector.detect_tensor(pictures)),
        (f"embeddings, {len(layers)} stages of {layers}", lambda: recogniser.embed(faces, 256)),
    ):
        work()
        yield {"what": what, "per_second": images / _seconds(work)}
    rows = rng.standard_normal((people * 10, 512)).astype(np.float32)
    names = [str(k // 10) for k in range(len(rows))]
    pairs = len(rows) * (len(rows) - 1) / 2
    rates = pairs / _seconds(lambda: identity_error_rates(rows, names))
    yield {"what": "pairs, error rates with intervals", "per_second": rates}
    left = torch.from_numpy(rows)
    product = len(rows) ** 2 / 2 / _seconds(lambda: left @ left.T)
    yield {"what": "pairs, bare float32 matrix product on the CPU", "per_second": product}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parts(device: str) -> dict[str, Part]:
    """Name to part, in the order of their worth."""
    models = ("sd21", "sdxl") if device == "cuda" else ("demo",)
    found: dict[str, Part] = {"correctness": lambda: checks(device)}

    def of(model: str) -> None:
        opened = (lambda: random_world(model, device)) if model != "demo" else _demo
        found[f"fine-tuning {model}"] = lambda: fine_tuning(opened)
        found[f"sampling {model}"] = lambda: sampling(model, device)

    of(models[0])
    found["judging"] = lambda: judging(device)
    for model in models[1:]:
        of(model)
    return found


def _demo() -> World:
    return embedded_world(0)


def told(row: dict[str, Any]) -> str:
    """A row as one line."""
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if value is not None
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small models")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--parts", nargs="+", help="only those whose names begin so")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/on_gpu.json"))
    args = parser.parse_args(argv)
    device = "cpu" if args.rehearse else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is seen here; --rehearse runs the same code on the CPU")
        return 1
    torch.backends.cudnn.allow_tf32 = False
    keep_freed_memory()
    begun = time.monotonic()
    results: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else hardware(),
        "versions": {name: version(name) for name in VERSIONS},
        "parts": {},
    }
    fine = True
    for name, part in parts(device).items():
        if args.parts and not name.startswith(tuple(args.parts)):
            continue
        start = time.monotonic()
        if start - begun > args.minutes * 60:
            print(f"\n{name}: left out, {args.minutes:g} minutes are over", flush=True)
            continue
        print(f"\n{name}", flush=True)
        rows: Rows = []
        kept: dict[str, Any] = {"rows": rows}
        results["parts"][name] = kept
        try:
            for row in part():
                rows.append(row)
                fine &= row.get("right", True)
                print(f"  {told(row)}", flush=True)
                write_json(args.out, results)
        except Exception as error:
            fine = False
            kept["failed"] = repr(error)
            traceback.print_exc(file=sys.stdout)
        if device == "cuda":
            torch.cuda.empty_cache()
        kept["seconds"] = round(time.monotonic() - start, 1)
        print(f"  {kept['seconds']} s", flush=True)
        write_json(args.out, results)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
