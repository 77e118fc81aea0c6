"""Training that may end at any step and goes on from there: one loop for all networks of the world.

Every step draws from a generator of its own, keyed by (seed, stage, step), so a run that was killed
and given again makes the weights of one that was not: bit for bit on a CPU. How far a stage is
counts in images, not in steps, so that small batches on a CPU and large ones on a GPU go on from
each other.

Two forms of the state, both safetensors with the training curve in their metadata:

* whole, `<stage>.safetensors`: weights, running averages and the optimiser's moments, float32;
* small, `<stage>-<part>.safetensors`: running averages in float16, in parts of a few MB, without
  what only training needs and what is not trained. Training that goes on from them warms up again;
  the moments, twice as large as the weights, are found within a few hundred steps. Of weights that
  ship, with which every training begins, only the curve is left, `<stage>.csv`.

Optimiser: AdamW (Loshchilov & Hutter, ICLR 2019). The learning rate's fall and the averages' length
follow EDM2 (Karras et al., CVPR 2024): neither needs to know when training will end.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline_steps.demo_world.pretraining.plan import Amounts
from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import seed_for

AVERAGED_OVER = 0.05  # half-life of the running average, of the images seen
PART_BYTES = 4_000_000
BETAS = (0.9, 0.99)
CLIP_NORM = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, as PyTorch names them
HEAD = "head."  # of names: what only training needs


@dataclass(frozen=True)
class Stage:
    """What is trained.

    Attributes:
        name: of its files.
        seed: of its draws.
        networks: everything trained, on the device it is trained on, in training mode.
        loss: (images, generator) to the mean loss of a batch of so many, all of whose draws come
            from the generator, which is on the networks' device.
        measure: numbers for the curve, of the averaged networks in evaluation mode.
        amounts: length, batch and learning rate.
        warm_up: images in which the learning rate rises, at the start and after a small state.
        hold: images after which it falls, as 1 / sqrt(images).
        decay: AdamW's, of weights with more than one axis.
    """

    name: str
    seed: int
    networks: nn.Module
    loss: Callable[[int, torch.Generator], Tensor]
    measure: Callable[[nn.Module], dict[str, float]]
    amounts: Amounts
    warm_up: int
    hold: int
    decay: float = 1e-2


class SingleAttention(TorchFunctionMode):
    """As a context: attention on a CPU is computed in float32, and rounded to its inputs' type.

    The gradient of PyTorch's fused attention in bfloat16 takes nine times as long there, which is
    more than bfloat16 gains in everything else.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))

        def single(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.float() if floating else value

        given = {name: single(value) for name, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(single, args), **given).to(args[0].dtype)


@dataclass(frozen=True)
class Run:
    """How it is trained, and until when.

    Attributes:
        folder: of the whole states.
        start: folder of small states and curves, taken up where they are further than whole ones.
        device: "cpu" or "cuda".
        bfloat16: autocast; the weights stay float32.
        over: asked after every step.
        save_every: seconds between saves.
    """

    folder: Path
    start: Path | None
    device: str
    bfloat16: bool
    over: Callable[[], bool]
    save_every: float = 120.0

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """A context in which networks compute."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16), SingleAttention():
            yield


@dataclass
class State:
    """How far a stage is.

    Attributes:
        average: running averages of the networks, in evaluation mode.
        steps, images: done.
        warm: images since the optimiser's moments were empty.
        seconds: spent in training.
        curve: rows of steps, images, seconds, loss (mean since the last row), and what the stage
            measures.
    """

    average: nn.Module
    steps: int = 0
    images: int = 0
    warm: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def processor_has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is computed in hardware; without, PyTorch's emulation is ten times slower.

    Read from the processor's flags (AVX512-BF16 or AMX) or asked of the GPU.
    """
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def learning_rate_factor(stage: Stage, state: State) -> float:
    """Of the peak: a linear rise, a plateau, a fall as 1 / sqrt(images)."""
    rise = min(1.0, (state.warm + stage.amounts.batch) / stage.warm_up)
    return rise / math.sqrt(max(1.0, state.images / stage.hold))


def averaging(images: int, batch: int) -> float:
    """Weight of the past in the running average when a batch is added to `images` seen."""
    return float(0.5 ** (batch / (AVERAGED_OVER * (images + batch))))


def train(stage: Stage, run: Run) -> State:
    """Train until the stage is complete or the run over, and save.

    Returns:
        the state; its networks are `stage.networks`, changed in place.

    Raises:
        StepError: the loss is no number, or a state does not fit the networks.
    """
    log = get_logger("pretrain")
    trained = [p for p in stage.networks.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": stage.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=BETAS, fused=True)
    state = restore(stage, optimiser, run)
    log.info("%s: goes on from %d of %d images", stage.name, state.images, stage.amounts.images)
    losses: list[Tensor] = []
    started = saved = time.monotonic()
    spent = state.seconds
    while state.images < stage.amounts.images and not run.over():
        generator = torch.Generator(run.device)
        generator.manual_seed(seed_for(stage.seed, stage.name, state.steps))
        for group in optimiser.param_groups:
            group["lr"] = stage.amounts.learning_rate * learning_rate_factor(stage, state)
        loss = stage.loss(stage.amounts.batch, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimiser.step()
        _follow(state, stage)
        state.steps += 1
        state.images += stage.amounts.batch
        state.warm += stage.amounts.batch
        losses.append(loss.detach())
        state.seconds = spent + time.monotonic() - started
        if time.monotonic() - saved > run.save_every:
            _report(stage, state, _mean(stage, state, losses))
            save(stage, state, optimiser, run.folder)
            saved = time.monotonic()
    if losses:
        mean = _mean(stage, state, losses)
        save(stage, state, optimiser, run.folder)  # first: whoever asked to stop may not wait long
        _report(stage, state, mean)
        save(stage, state, optimiser, run.folder)
    return state


@torch.no_grad()
def _follow(state: State, stage: Stage) -> None:
    past = averaging(state.images, stage.amounts.batch)
    for mine, theirs in zip(
        state.average.state_dict().values(), stage.networks.state_dict().values(), strict=True
    ):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - past)
        else:
            mine.copy_(theirs)


def _mean(stage: Stage, state: State, losses: list[Tensor]) -> float:
    """Their mean; the list is emptied. Raises StepError where it is no number."""
    loss = float(torch.stack(losses).mean())
    losses.clear()
    if not math.isfinite(loss):
        raise StepError(
            f"the training of {stage.name} diverged before step {state.steps}: its last saved "
            "state is kept; lower the learning rate in pretraining/plan.py and run again"
        )
    return loss


def _report(stage: Stage, state: State, loss: float) -> None:
    """Add a row to the curve."""
    row = {"steps": state.steps, "images": state.images, "seconds": round(state.seconds, 1)}
    with torch.no_grad():
        measured = stage.measure(state.average)
    row |= {"loss": round(loss, 5), **{name: round(value, 4) for name, value in measured.items()}}
    state.curve.append(row)
    get_logger("pretrain").info("%s %s", stage.name, " ".join(f"{k} {v}" for k, v in row.items()))


# Files --------------------------------------------------------------------------------------------


def save(stage: Stage, state: State, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Write the whole state, atomically."""
    tensors = {f"weights/{name}": t for name, t in stage.networks.state_dict().items()}
    tensors |= {f"average/{name}": t for name, t in state.average.state_dict().items()}
    for name, p in stage.networks.named_parameters():
        for moment in (*MOMENTS, "step"):
            if p in optimiser.state:
                tensors[f"{moment}/{name}"] = optimiser.state[p][moment]
    _write(folder / f"{stage.name}.safetensors", tensors, state)


def save_small(stage: Stage, state: State, folder: Path) -> None:
    """Write the averages in float16, in parts of at most PART_BYTES, and the curve as CSV.

    A tensor that is larger is a part of its own. Parts of an earlier state are removed.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size, name, without = 0, stage.name, _left_out(stage)
    for key, tensor in state.average.state_dict().items():
        if key in without:
            continue
        kept = tensor.half() if tensor.is_floating_point() else tensor
        if size + kept.nbytes > PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][key] = kept
        size += kept.nbytes
    paths = [folder / f"{name}-{k}.safetensors" for k in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        _write(path, part, state)
    for old in set(folder.glob(f"{name}-*.safetensors")) - set(paths):
        old.unlink()
    columns = list(dict.fromkeys(key for row in state.curve for key in row))
    rows = [",".join(str(row.get(key, "")) for key in columns) for row in state.curve]
    write_text(folder / f"{name}.csv", "\n".join([",".join(columns), *rows, ""]))


def _write(path: Path, tensors: dict[str, Tensor], state: State) -> None:
    content = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    counts = {k: v for k, v in vars(state).items() if k != "average"}
    save_tensors(path, content, {"state": json.dumps(counts)})


def restore(stage: Stage, optimiser: torch.optim.Optimizer, run: Run) -> State:
    """Read what is furthest, the whole or the small state, into the networks and the optimiser.

    A small state without parts is the networks as they are.

    Raises:
        StepError: it does not fit the networks.
    """
    state = State(copy.deepcopy(stage.networks).eval().requires_grad_(False))
    whole = run.folder / f"{stage.name}.safetensors"
    small = sorted(run.start.glob(f"{stage.name}-*.safetensors")) if run.start else []
    counts = _counts([whole]) if whole.exists() else None
    curve = run.start / f"{stage.name}.csv" if run.start else None
    small_counts = _counts(small) if small else _counts_of(curve) if curve else None
    if small_counts and (counts is None or small_counts["images"] > counts["images"]):
        tensors = {k: t for path in small for k, t in load_file(path).items()}
        for networks in (stage.networks, state.average) if small else ():
            _fill(networks, tensors, small[0], without=_left_out(stage))
        vars(state).update(small_counts | {"warm": 0})
    elif counts:
        tensors = load_file(whole)
        _fill(stage.networks, _below(tensors, "weights"), whole)
        _fill(state.average, _below(tensors, "average"), whole)
        vars(state).update(counts)
        parameters = dict(stage.networks.named_parameters())
        for name, step in _below(tensors, "step").items():
            p = parameters[name]
            optimiser.state[p] = {"step": step.to(p.device)} | {
                moment: torch.empty_like(p).copy_(tensors[f"{moment}/{name}"]) for moment in MOMENTS
            }
    return state


@torch.no_grad()
def _fill(
    networks: nn.Module, tensors: dict[str, Tensor], path: Path, without: Container[str] = ()
) -> None:
    """Copy tensors into networks; those that a small state is without stay as they are."""
    own = networks.state_dict()
    missing = {name for name in own if name not in tensors and name not in without}
    unfit = {k for k, t in tensors.items() if k not in own or own[k].shape != t.shape}
    if missing or unfit:
        raise StepError(
            f"the state {path} is of other networks (first difference: "
            f"{sorted(missing | unfit)[0]}): move it away to train them anew"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _left_out(stage: Stage) -> set[str]:
    """Names of a stage's tensors that its small state is without: heads, and what is frozen."""
    frozen = {name for name, p in stage.networks.named_parameters() if not p.requires_grad}
    return frozen | {name for name in stage.networks.state_dict() if name.startswith(HEAD)}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: t for k, t in tensors.items() if k.startswith(f"{prefix}/")}


def _counts_of(curve: Path) -> dict[str, Any] | None:
    """What a curve's last row says; None where there is none."""
    if not curve.exists():
        return None
    rows = [
        {name: (int if name in ("steps", "images") else float)(v) for name, v in row.items() if v}
        for row in csv.DictReader(curve.read_text(encoding="utf-8").splitlines())
    ]
    return {name: rows[-1][name] for name in ("steps", "images", "seconds")} | {"curve": rows}


def _counts(paths: list[Path]) -> dict[str, Any]:
    """What the files' metadata says. Raises StepError where they are not of one state."""
    found = []
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                found.append(str((file.metadata() or {})["state"]))
        except (SafetensorError, OSError, KeyError) as error:
            raise StepError(f"{path} is no state of a training: delete it and run again") from error
    if len(set(found)) != 1:
        raise StepError(f"{paths[0].parent} mixes parts of several states of {paths[0].stem}")
    return dict(json.loads(found[0]))
