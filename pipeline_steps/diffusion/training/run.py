"""Training from where it is to the last step, safe against any interruption.

The state of identities in training lies on disk while it lasts. It is written every few minutes,
when somebody asks the process to stop, and at the last step, so that the writing of results can be
repeated without training.
"""

from __future__ import annotations

import glob
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline_steps.diffusion.base_models.base import Runtime, Switch
from pipeline_steps.diffusion.training.choice import Trials, split_state
from pipeline_steps.diffusion.training.data import Recipe, TrainingData
from pipeline_steps.diffusion.training.fleet import FineTuned, Fleet, State, join_rows, take_rows
from pipeline_steps.diffusion.training.memory import Backoff, plan_size
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.io.checkpoint import Checkpoint
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.runtime.signals import StopRequest

LINES = 10  # of the log, per fleet


@dataclass(frozen=True)
class Pace:
    """How training proceeds; changes no result beyond float error.

    Attributes:
        at_once: Most identities trained together; None: as many as pay and fit.
        compile: See ``Runtime.compile``.
        save_seconds: Time between two savings of the state.
    """

    at_once: int | None
    compile: Switch
    save_seconds: float


@dataclass(frozen=True)
class Trained:
    """What came of one identity: the result, and how its step was chosen (JSON) if it was."""

    identity: str
    result: FineTuned
    choice: dict[str, Any] | None


def train(
    data: TrainingData, recipe: Recipe, saved: SavedStates, pace: Pace, stop: StopRequest
) -> Iterator[Trained]:
    """Train all identities of the data, fleet by fleet.

    Args:
        data: Networks and images.
        recipe: Method, settings and seed.
        saved: States of these identities, which are gone on from and kept up to date; an
            identity's are deleted when the next one is asked for.
        pace: How it proceeds.
        stop: Whether somebody asked the process to stop.

    Yields:
        Each identity when its fleet is finished.

    Raises:
        Interrupted: somebody asked to stop; the states are saved.
        StepError: not even one identity fits into the memory.
    """

    def open_fleet(identities: Sequence[str], runtime: Runtime) -> Fleet:
        images = {identity: data.images[identity] for identity in identities}
        return Fleet(data.base, images, data.prior, recipe, data.guide, runtime)

    trials = None
    if recipe.settings.choice is not None and data.guide is not None:
        held_out = {identity: rows for identity, (_, rows) in data.held_out.items()}
        trials = Trials(recipe, held_out, data.guide)

    def finish(fleet: Fleet) -> None:
        run_fleet(fleet, recipe.method, saved, pace.save_seconds, stop, trials)

    identities, device = list(data.images), data.base.device
    most = plan_size(identities, open_fleet, device=device, at_once=pace.at_once)
    backoff = Backoff(open_fleet, device, Runtime(compile=pace.compile))
    for members, state in plan_fleets(identities, saved, at_once=most):
        if state is not None:
            state, tried = split_state(state)
            if trials is not None and tried is not None:
                trials.load_state(members, tried)
        for identity, result in backoff.run(members, finish, state).items():
            choice = None
            if trials is not None and result.finite:
                choice = trials.record(identity) | {"held_out": data.held_out[identity][0]}
            yield Trained(identity, result, choice)
            saved.remove(identity)  # whoever took the result has kept it


def run_fleet(
    fleet: Fleet,
    method: str,
    saved: SavedStates,
    save_seconds: float,
    stop: StopRequest,
    trials: Trials | None,
) -> None:
    """Step a fleet until it is finished; ``trials`` chooses the step that is kept, None: the last.

    Raises:
        Interrupted: somebody asked to stop; the state is saved.
    """
    identities = list(fleet.subjects)
    report = LossReport(method, identities, fleet.settings.steps)
    saved_at = time.monotonic()
    if trials is not None:
        trials(fleet)  # of the first step, or of one at which the memory did not suffice
    while not fleet.finished:
        report(fleet, fleet.step())
        if trials is not None:
            trials(fleet)
        if time.monotonic() - saved_at >= save_seconds or stop or fleet.finished:
            more = {} if trials is None else trials.state(identities)
            saved.save(identities, {**fleet.state(), **more})
            saved_at = time.monotonic()
        if stop and not fleet.finished:
            raise Interrupted(
                f"{stop.name}: {len(identities)} identities are saved at step "
                f"{fleet.step_number} of {fleet.settings.steps}; run again to go on"
            )
    if trials is not None:
        trials.apply(fleet)


def plan_fleets(
    identities: Sequence[str], saved: SavedStates, *, at_once: int
) -> list[tuple[list[str], State | None]]:
    """Who is trained together: identities of the same step, in their order, those furthest first.

    What remains of an interrupted share gets the same fleets as the whole share had, because
    float arithmetic depends in its last bits on how many train together.

    Args:
        identities: Those that are still to be trained.
        saved: Their states, and those of who was to be trained before any was finished.
        at_once: Most identities of a fleet.

    Returns:
        The members of each fleet, and their state where they have one.
    """
    size = at_once
    if len(identities) > at_once:  # as few fleets as can be, all but the last equally large
        size = -(-len(saved) // max(1, -(-len(saved) // at_once)))
    states = {identity: saved.latest(identity) for identity in identities}
    by_step: dict[int, list[str]] = {}
    for identity, state in states.items():
        by_step.setdefault(0 if state is None else int(state["step"]), []).append(identity)
    plans: list[tuple[list[str], State | None]] = []
    for step, members in sorted(by_step.items(), reverse=True):
        if step:
            get_logger("finetune").info("%s: going on from step %d", ", ".join(members), step)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            known = [state for name in part if (state := states[name]) is not None]
            plans.append((part, join_rows(known) if known else None))
    return plans


class LossReport:
    """Called after each step; waits for the device only when it writes a line."""

    def __init__(self, method: str, identities: Sequence[str], steps: int) -> None:
        names = identities[0] + (f"..{identities[-1]}" if len(identities) > 1 else "")
        self._bar = progress(range(0), description=f"{method} {names}", total=steps, unit="step")
        self._steps = steps
        self._recent: list[Tensor] = []

    def __call__(self, fleet: Fleet, losses: Tensor) -> None:
        """Take the losses [K, 4] of the step that the fleet has just done."""
        done = fleet.step_number
        self._bar.update(done - self._bar.n)  # the first time, by what was done before
        self._recent.append(losses.mean(dim=0))
        if done % max(1, self._steps // LINES) == 0 or done == self._steps:
            instance, prior, identity, found = torch.stack(self._recent).mean(dim=0).tolist()
            get_logger("finetune").info(
                f"step {done}/{self._steps} instance {instance:.4f} prior {prior:.4f} "
                f"identity {identity:.3f} faces {100 * found:.0f} %"
            )
            self._recent = []
        if done == self._steps:
            self._bar.close()


class SavedStates:
    """States of identities in training, on disk, each valid for one key only.

    Layout: ``<folder>/<generation>/<identity>.safetensors``. A generation is one state of one
    fleet; it appears by a single rename, so that all its members are of the same step whenever the
    process ends. Each identity has a file of its own all the same: it may go on in a fleet of other
    members, or be deleted alone. Nothing here is a result, and nothing here outlives the training.

    Args:
        folder: Where they lie; made when the first is written.
        keys: Identity to its key. What was written under another key is never read.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str]) -> None:
        self._folder = folder
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def latest(self, identity: str) -> State | None:
        """The identity's whole state of most steps, as of a fleet of one; None: there is none."""
        found = [Checkpoint(path, self._keys[identity]).load() for path in self._files(identity)]
        states = [state for state, _ in filter(None, found)]
        return max(states, key=lambda state: int(state["step"]), default=None)

    def save(self, identities: Sequence[str], state: State) -> None:
        """Write a fleet's state, its rows those of ``identities``; then delete what was before."""
        before = [path for identity in identities for path in self._files(identity)]
        # A name never used before: replacing a folder would not be one rename.
        name = f"{int(state['step'].max()):07d}-{secrets.token_hex(4)}"
        with atomic_path(self._folder / name) as folder:
            for k, identity in enumerate(identities):
                path = folder / f"{identity}.safetensors"
                Checkpoint(path, self._keys[identity]).save(take_rows(state, [k]))
        _delete(before)

    def remove(self, identity: str) -> None:
        """Delete every state of an identity, of whatever key."""
        _delete(self._files(identity, unfinished=True))

    def _files(self, identity: str, *, unfinished: bool = False) -> list[Path]:
        """The identity's files; those of a generation that never appeared only on demand."""
        found = sorted(self._folder.glob(f"*/{glob.escape(identity)}.safetensors"))
        return [path for path in found if unfinished or not path.parent.name.startswith(".")]


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # folders go with their last file
            path.parent.rmdir()
            path.parent.parent.rmdir()
