"""Which step of a fine-tuning to keep: similarity to the identity against diversity.

At a few steps images are sampled with the adapters as they are, always from the same noise.
Similarity is the mean cosine of their faces to photographs that were not trained on; an image
without a face counts 0. Diversity is one minus the mean correlation of two images shrunk to 16 x 16
grey pixels: 0 where all look alike. Both first rise or hold; an adapter that has learned its
photographs by heart loses diversity, and in the end similarity to photographs it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline_steps.diffusion.guide import Guide, embed_largest
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.diffusion.training.data import Recipe
from pipeline_steps.diffusion.training.fleet import Fleet, State
from pipeline_steps.io.figures import STYLE, save_figure
from pipeline_steps.seeds import seed_for

SIDE = 16  # of the shrunk images, pixels
BATCH = 16  # images sampled together
WEIGHTS, SCORES = "trial_weights", "trial_scores"  # float [K, n, P] and float64 [K, n, 4]


@dataclass(frozen=True)
class Trial:
    """What was sampled at one step.

    Attributes:
        step: Optimiser steps done; 0 is the untuned model.
        similarity: Mean cosine of the images' faces to the held-out photographs', in [-1, 1].
        diversity: 1 - mean correlation of two images, in [0, 2].
        faces: Share of the images with a face.
    """

    step: int
    similarity: float
    diversity: float
    faces: float


def diversity(images: Tensor) -> float:
    """One minus the mean Pearson correlation of two of the images, shrunk to 16 x 16 grey pixels.

    Args:
        images: uint8 [n, 3, h, w], n >= 2.

    Returns:
        A number in [0, 2]; 0 for images that are equal but for brightness and contrast.
    """
    grey = images.double().mean(dim=1, keepdim=True)
    rows = torch.nn.functional.adaptive_avg_pool2d(grey, SIDE).flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    n = len(rows)
    return float(1 - ((rows @ rows.T).sum() - rows.square().sum()) / (n * (n - 1)))


def similarity(faces: Tensor, held_out: Tensor) -> float:
    """Mean cosine of the faces [n, d] to the held-out ones [m, d]; NaN rows, no face, count 0."""
    unit = torch.nn.functional.normalize(faces.double().nan_to_num(0.0))
    return float((unit @ torch.nn.functional.normalize(held_out.double()).T).mean())


def choose(trials: Sequence[Trial], min_diversity: float) -> Trial:
    """The rule: most similar among the trials that are diverse enough; if none is, most diverse.

    Args:
        trials: That of the untuned model, step 0, and at least one other.
        min_diversity: Least share of the untuned model's diversity.
    """
    untuned, *tuned = sorted(trials, key=lambda trial: trial.step)
    fit = [trial for trial in tuned if trial.diversity >= min_diversity * untuned.diversity]
    if not fit:
        return max(tuned, key=lambda trial: _rank(trial.diversity))
    return max(fit, key=lambda trial: _rank(trial.similarity))


def _rank(value: float) -> float:
    """NaN, which compares with nothing, is below every number."""
    return -math.inf if math.isnan(value) else value


class Trials:
    """The trials of identities in training, with the weights that each had.

    Args:
        recipe: Its settings' ``choice`` says what is sampled, and when.
        held_out: Identity to the face embeddings of its held-out photographs, float [m, d].
        guide: Detector and recogniser.
    """

    def __init__(self, recipe: Recipe, held_out: Mapping[str, Tensor], guide: Guide) -> None:
        if recipe.settings.choice is None:
            raise ValueError("the settings choose no step")
        self._settings = recipe.settings.choice
        self._recipe = recipe
        self._held_out = held_out
        self._guide = guide
        self._tried: dict[str, dict[int, tuple[Trial, Tensor]]] = {}  # by identity and step

    def __call__(self, fleet: Fleet) -> None:
        """Sample with a fleet's adapters if its step is one of those to be tried and was not."""
        step, wanted = fleet.step_number, self._settings
        made = all(step in self._tried.get(identity, {}) for identity in fleet.subjects)
        if made or step not in (0, *wanted.steps):
            return
        requests = [
            self._request(fleet.base.name, identity, k, index)
            for k, identity in enumerate(fleet.subjects)
            for index in range(wanted.images)
        ]
        how = Sampling(wanted.sampling_steps, wanted.guidance, wanted.scheduler, BATCH)
        images: dict[str, list[Tensor]] = {identity: [] for identity in fleet.subjects}
        for asked, batch in sample(fleet.base, requests, how, bank=fleet.bank):
            for request, image in zip(asked, batch, strict=True):
                images[request.identity].append(image)
        fleet.bank.activate(None)
        for k, identity in enumerate(fleet.subjects):
            trial = self._score(step, identity, torch.stack(images[identity]), fleet.base.device)
            weights = fleet.bank.weights.detach()[k].cpu().clone()
            # One of the same step, of an attempt that did not end, is replaced.
            self._tried.setdefault(identity, {})[step] = trial, weights

    def apply(self, fleet: Fleet) -> None:
        """Give a finished fleet's adapters the weights of their chosen steps."""
        with torch.no_grad():
            for k, identity in enumerate(fleet.subjects):
                _, weights = self._tried[identity][self._chosen(identity)]
                fleet.bank.weights[k] = weights.to(fleet.bank.weights)

    def record(self, identity: str) -> dict[str, Any]:
        """What was tried and chosen, as JSON."""
        trials = [asdict(trial) for trial, _ in self._tried[identity].values()]
        return {"trials": trials, "chosen": self._chosen(identity)}

    def state(self, identities: Sequence[str]) -> State:
        """The trials so far, one row per identity; part of a checkpoint."""
        tried = [list(zip(*self._tried[identity].values(), strict=True)) for identity in identities]
        return {
            SCORES: torch.tensor(
                [[astuple(trial) for trial in trials] for trials, _ in tried], dtype=torch.float64
            ),
            WEIGHTS: torch.stack([torch.stack(weights) for _, weights in tried]),
        }

    def load_state(self, identities: Sequence[str], state: State) -> None:
        """Go on from a checkpoint."""
        rows = zip(identities, state[SCORES].tolist(), state[WEIGHTS], strict=True)
        for identity, scores, weights in rows:
            trials = [Trial(int(step), *others) for step, *others in scores]
            tried = zip(trials, weights, strict=True)
            self._tried[identity] = {trial.step: (trial, own) for trial, own in tried}

    def _chosen(self, identity: str) -> int:
        trials = [trial for trial, _ in self._tried[identity].values()]
        return choose(trials, self._settings.min_diversity).step

    def _request(self, base_model: str, identity: str, row: int, index: int) -> ImageRequest:
        prompts = self._settings.prompts
        return ImageRequest(
            identity=identity,
            index=index,
            prompt=prompts[index % len(prompts)].format(token=self._recipe.settings.token),
            negative_prompt=self._settings.negative_prompt,
            seed=seed_for(self._recipe.seed, "choice", base_model, identity, index),
            adapter=row,
        )

    def _score(self, step: int, identity: str, images: Tensor, device: torch.device) -> Trial:
        """Score the images uint8 [n, 3, h, w] of one identity; faces are looked for on a device."""
        found = embed_largest(self._guide, images.to(device))
        held_out = self._held_out[identity]
        nothing = torch.full(held_out.shape[1:], torch.nan)
        rows = torch.stack([nothing if face is None else face[1] for face in found])
        share = sum(face is not None for face in found) / len(found)
        return Trial(step, similarity(rows, held_out), diversity(images), share)


def split_state(state: State) -> tuple[State, State | None]:
    """A checkpoint's state of the fleet, and of its trials where there is one."""
    names = (SCORES, WEIGHTS)
    fleet = {name: value for name, value in state.items() if name not in names}
    return fleet, {name: state[name] for name in names} if SCORES in state else None


def plot_choice(path: Path, identity: str, choice: Mapping[str, Any], min_diversity: float) -> None:
    """Write an SVG of what was tried and chosen, ``choice`` as ``training.json`` has it."""
    trials = choice["trials"]
    steps = [trial["step"] for trial in trials]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.2), layout="constrained")
        left = figure.subplots()
        right = left.twinx()
        left.plot(steps, [trial["similarity"] for trial in trials], "o-", color="#0072B2", ms=3)
        right.plot(steps, [trial["diversity"] for trial in trials], "s--", color="#D55E00", ms=3)
        right.axhline(min_diversity * trials[0]["diversity"], color="#D55E00", lw=0.6, ls=":")
        left.axvline(choice["chosen"], color="#8c8c8c", lw=0.8, zorder=0)
        left.set_xlabel("step")
        left.set_ylabel("similarity to held-out photographs", color="#0072B2")
        right.set_ylabel("diversity (dotted: least)", color="#D55E00")
        right.set_ylim(bottom=0)
        right.spines["right"].set_visible(True)
        left.set_title(f"{identity}: step {choice['chosen']} is kept")
        save_figure(figure, path)
