"""Train the weights of the embedded world, from where the last training ended.

    make pretrain-demo-world DEVICE=cuda MINUTES=8
    python -m pipeline_steps.demo_world.pretrain --device cpu --minutes 30

Everything is rendered; no photograph of a real person is involved. Stages: photographs, rendered on
all cores; autoencoder; recognisers; attribute network; denoiser with its text encoder;
Face Fusion's weights and ID3's, for the base model and judges of config/models.yaml. Each begins
with the weights that ship and goes on until it has seen as many images as its plan says
(pretraining/plan.py), or its share of --minutes is over where the plan gives shares; then comes the
next.

The command ends by itself after --minutes, on SIGTERM and on Ctrl-C, and the same command goes on.
Whole states lie below --work. Where there are none, or older ones, the small states below --start
are taken up, which `--keep FOLDER` writes: they come with the code, and of weights that ship, their
curve alone. Weights in the formats of the real ones, as good as they are by now, lie in `weights`
below --work.

Needs NumPy, SciPy, OpenCV, Pillow, pydantic, tqdm, PyTorch, safetensors, diffusers and
transformers, and nothing of the workflow.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_steps.demo_world.pretraining.images import Photographs, load, render
from pipeline_steps.demo_world.pretraining.plan import PLANS, Plan
from pipeline_steps.demo_world.rendering.population import HELD_OUT, PRETRAINING
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline_steps.demo_world.pretraining.denoiser import Encoded
    from pipeline_steps.demo_world.pretraining.training import Run, Stage
    from pipeline_steps.io.weights import Weights

TRAININGS = (
    *("autoencoder", "recogniser", "recogniser_b", "attributes", "denoiser"),
    *("face_fusion", "id3"),
)
UNSEEN_EACH = 6  # photographs of each unseen person
SAVE_EVERY = {"cpu": 300.0, "cuda": 60.0}  # seconds

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One call of the command.

    Attributes:
        plan: the amounts.
        work: folder of photographs, whole states and weights.
        start: folder of small states to take up.
        device: "cpu" or "cuda".
        over: asked between files and after every step; once it is true, what there is is saved.
        minutes: length of the call, of which trainings get their shares.
        keep: folder for small states, or None.
        workers: processes that render.
    """

    plan: Plan
    work: Path
    start: Path
    device: str = "cpu"
    over: Callable[[], bool] = lambda: False
    minutes: float = math.inf
    keep: Path | None = None
    workers: int = 1

    def photographs(self, seed_offset: int = 0) -> tuple[Photographs, Photographs]:
        """Those of the trainings with that offset to the seed, and those they are measured on."""
        plan = self.plan
        return (
            Photographs(plan.seed + seed_offset, PRETRAINING, plan.people, plan.each),
            Photographs(plan.seed, HELD_OUT, plan.unseen, UNSEEN_EACH),
        )

    def render(self, what: Photographs) -> bool:
        """Render what is missing; whether all is there."""
        return render(self.work / "photographs", what, workers=self.workers, over=self.over)

    def columns(self, *names: str, seed_offset: int = 0) -> list[Columns]:
        """Columns of both, see images.py."""
        both = self.photographs(seed_offset)
        return [load(self.work / "photographs", what, *names) for what in both]


def pretrain(call: Call, trainings: Sequence[str] = TRAININGS) -> bool:
    """Go on with trainings in their order; whether all are complete, or had their share.

    Raises:
        StepError: a kept state is of other networks, or a training diverged.
    """
    people, unseen = call.photographs()
    if not (call.render(unseen) and call.render(people)):
        return False
    with ThreadPoolExecutor(1) as background:
        others = None
        if call.device != "cpu" and "recogniser_b" in trainings:  # the cores are free meanwhile
            others = background.submit(call.render, call.photographs(1)[0])
        for name in trainings:
            if name == "recogniser_b" and not (
                others.result() if others else call.render(call.photographs(1)[0])
            ):
                return False
            if not train(name, call):
                return False
    return True


def train(name: str, call: Call) -> bool:
    """Go on with one training and write its weights; whether it is complete, or had its share."""
    from pipeline_steps.demo_world.pretraining import training

    share = call.plan.shares.get(name, math.inf)
    end = time.monotonic() + 60 * call.minutes * share
    run = training.Run(
        call.work,
        call.start,
        call.device,
        training.processor_has_bfloat16(call.device),
        over=lambda: call.over() or time.monotonic() > end,
        save_every=SAVE_EVERY[call.device],
    )
    stage = stage_of(name, call, run)
    state = training.train(stage, run)
    if call.keep is not None:
        training.save_small(stage, state, call.keep)
    write_weights(name, state.average, call, run)
    return state.images >= stage.amounts.images or (share < 1 and not call.over())


def stage_of(name: str, call: Call, run: Run) -> Stage:
    """The stage of a training's name."""
    from pipeline_steps.demo_world.pretraining import attributes, autoencoder, denoiser, recogniser
    from pipeline_steps.faces.extractors import AttributeNet
    from pipeline_steps.faces.recogniser import load_network, load_recogniser

    plan = call.plan
    if name == "autoencoder":
        seen, unseen = call.columns("pictures", "landmarks")
        return autoencoder.stage(seen, unseen, run, seed=plan.seed, amounts=plan.autoencoder)
    if name == "attributes":
        seen, unseen = call.columns("pictures", *attributes.CLASSES, *attributes.NUMBERS)
        reader = load_network(shipped()["demo_attributes"], AttributeNet.from_state_dict)
        return attributes.stage(reader, seen, unseen, run, seed=plan.seed, amounts=plan.attributes)
    if name == "denoiser":
        latents, unseen_latents = encoded(call, run)
        return denoiser.stage(
            base_model(), latents, unseen_latents, run, seed=plan.seed, amounts=plan.denoiser
        )
    if name in ("face_fusion", "id3"):
        return stage_on_shipped(name, call, run)
    kind = next(kind for kind in plan.recognisers if kind.name == name)
    seen, unseen = call.columns("crops", "identity", seed_offset=kind.seed_offset)
    seed = plan.seed + kind.seed_offset
    network = load_recogniser(shipped()[f"demo_{name}"], run.device).network
    return recogniser.stage(kind, network, seen, unseen, run, seed=seed, amounts=plan.recogniser)


def stage_on_shipped(name: str, call: Call, run: Run) -> Stage:
    """The training of a whole method's weights, on the weights that are shipped by now."""
    from safetensors.torch import load_file

    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.faces.recogniser import load_recogniser, weights_file

    models = shipped()
    judges = [models[f"demo_{kind.name}"] for kind in call.plan.recognisers]
    module: Any = import_module(f"pipeline_steps.demo_world.pretraining.{name}")
    seen, unseen = call.columns(*module.COLUMNS)
    stage: Stage = module.stage(
        load_base_model(models["demo"], run.device),
        [load_recogniser(judge, run.device) for judge in judges],
        load_file(weights_file(models[f"demo_{name.replace('_', '')}"])),
        seen,
        unseen,
        run,
        each=[what.each for what in call.photographs()],
        seed=call.plan.seed,
        amounts=getattr(call.plan, name),
    )
    return stage


def shipped() -> dict[str, Weights]:
    """The weights that ship by now, by their names in config/models.yaml."""
    from pipeline_steps.io.weights import PROJECT_ROOT
    from pipeline_steps.study.registry import read_models

    return read_models(PROJECT_ROOT / "config" / "models.yaml")


def base_model() -> Path:
    """Folder of the base model that ships by now."""
    from pipeline_steps.io.weights import PROJECT_ROOT

    return PROJECT_ROOT / shipped()["demo"].source


def autoencoder_of(call: Call) -> Path:
    """Folder of the autoencoder: the one trained below --work, or the one that ships."""
    own = call.work / "autoencoder"
    return own if (own / "config.json").exists() else base_model() / "vae"


def encoded(call: Call, run: Run) -> list[Encoded]:
    """Latents and captions of both sets of photographs and of their mirror images.

    The latents of one autoencoder are kept.
    """
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    from pipeline_steps.demo_world.pretraining import autoencoder, denoiser
    from pipeline_steps.demo_world.pretraining.captions import names

    folder = autoencoder_of(call)
    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(run.device).eval()
    kind = sha256_file(folder / "diffusion_pytorch_model.safetensors")[:12]
    words = names(call.plan.named, call.plan.seed)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(base_model() / "tokenizer"))
    sets = []
    both = call.columns("pictures", *denoiser.CAPTION_FACTS)
    for what, columns in zip(call.photographs(), both, strict=True):
        path = call.work / f"latents-{what.population}.safetensors"
        label = f"{kind} {what} mirrored"
        if not path.exists() or _label(path) != label:
            pictures = np.concatenate([columns["pictures"], columns["pictures"][:, :, ::-1]])
            mean, std = autoencoder.latent_moments(model, pictures, run)
            save_tensors(path, {"mean": mean, "std": std}, {"of": label})
        named = words if what.population == PRETRAINING else ()
        tokens = denoiser.caption_tokens(columns, tokenizer, named, seed=call.plan.seed)
        kept = load_file(path)
        factor = float(model.config.scaling_factor)
        sets.append(denoiser.Encoded(kept["mean"], kept["std"], factor, tokens.repeat(2, 1, 1)))
    return sets


def _label(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return str((file.metadata() or {}).get("of"))


def write_weights(name: str, average: nn.Module, call: Call, run: Run) -> None:
    """Write averaged networks in half precision, as the study reads them, below `weights`.

    The autoencoder goes to `autoencoder`, in full precision, and from there into the base model
    that the denoiser makes of it.
    """
    from pipeline_steps.demo_world.pretraining import autoencoder, denoiser, face_fusion, id3
    from pipeline_steps.diffusion.face_fusion import FILE_NAME as FACE_FUSION_FILE
    from pipeline_steps.diffusion.id3 import ATTRIBUTES
    from pipeline_steps.diffusion.id3 import FILE_NAME as ID3_FILE

    weights: Any = average
    half: dict[str, Tensor]
    out = call.work / "weights"
    if name == "autoencoder":
        sample = call.columns("pictures")[0]["pictures"][: autoencoder.MOMENT_SAMPLE]
        autoencoder.scale(weights, *autoencoder.latent_moments(weights, sample, run))
        weights.save_pretrained(call.work / "autoencoder")
    elif name == "denoiser":
        denoiser.write_pipeline(
            out / "base_model",
            base_model(),
            autoencoder_of(call),
            weights["unet"],
            weights["text"],
        )
    elif name == "id3":
        told = id3.weights_of(average, call.columns(*ATTRIBUTES)[0])
        save_tensors(out / name / ID3_FILE, {k: v.cpu() for k, v in told.items()})
    elif name == "face_fusion":
        half = {k: v.half() for k, v in face_fusion.by_layer(weights).items()}
        save_tensors(out / name / FACE_FUSION_FILE, half)
    else:
        network = weights.network if name.startswith("recogniser") else weights
        half = {
            k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
            for k, v in network.state_dict().items()
        }
        save_tensors(out / name / "model.safetensors", half)
    if out.is_dir():
        hashes = {
            p.relative_to(out).as_posix(): sha256_file(p)
            for p in sorted(out.rglob("*"))
            if p.is_file() and p.name != "hashes.json"
        }
        write_json(out / "hashes.json", {"plan": asdict(call.plan), "sha256": hashes})


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Refuse a second training in one folder. Raises StepError."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = f"another training works in {work}: wait for its end or name another --work"
            raise StepError(told) from error
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted(PLANS), default="cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after them")
    parser.add_argument("--work", type=Path, default=Path("tmp/pretrain"), metavar="FOLDER")
    start = Path("resources/pretraining")
    parser.add_argument("--start", type=Path, default=start, metavar="FOLDER")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write small states there")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS)
    parser.set_defaults(trainings=TRAININGS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    try:
        with stop_requested() as request, alone(args.work):
            call = Call(
                PLANS[args.device],
                args.work,
                args.start,
                args.device,
                over=lambda: bool(request) or time.monotonic() > end,
                minutes=args.minutes,
                keep=args.keep,
                workers=args.workers,
            )
            complete = pretrain(call, args.trainings)
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    why = "complete" if complete else f"ended by {request.name or '--minutes'}"
    get_logger("pretrain").info("%s; the same command goes on; states: %s", why, args.work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
