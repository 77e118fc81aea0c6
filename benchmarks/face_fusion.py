"""How well Face Fusion shows people of whom nothing was trained: python benchmarks/face_fusion.py

    references   equal error rate versus photographs, by both judges, prompt score and recall, with
                 1, 2 and 4 references and without any, and with 4 where guidance's other side
                 sees them, too
    together     images of two people, one in each half: halves in which a face is found, and halves
                 nearer to their own person than to the other, by both judges; the same without
                 masks, where chance is one half of those with a face

People are rendered and of a population of their own; a reference is no photograph of the gallery.
Prints tables with 95 % intervals and adds the rows to --out; --weights measures other weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_study import agreement, asked_of, read
from measured import Row, add, mean, proportion, table
from safetensors.torch import load_file

from pipeline_steps.demo_world.pretraining.images import Photographs, photograph_people
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion
from pipeline_steps.diffusion.sampling.plan import prompts_of
from pipeline_steps.diffusion.sampling.references import (
    OnePersonEach,
    Together,
    joined,
    keys_of,
    masks_of,
)
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.extractors import load_extractor, unmarked
from pipeline_steps.faces.prompts import load_reader
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.weights import Weights, locate
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.metrics.pairs import compare
from pipeline_steps.metrics.prdc import precision_recall
from pipeline_steps.metrics.verification import comparison_error_rates
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.registry import pick, read_models
from pipeline_steps.study.settings.sampling import PromptSet

SEED, POPULATION = 7, "references"
REFERENCES, GALLERY = 4, 4  # photographs of each
HOW = Sampling(steps=12, guidance=3.0, scheduler="dpmsolver++", batch_size=16)
JUDGES = ("demo_recogniser", "demo_recogniser_b")
PADDING = 0.5


@dataclass(frozen=True)
class Faces:
    """Aligned faces uint8 [n, 112, 112, 3] of those images that show one, and whose they are."""

    images: np.ndarray
    people: list[str]
    wanted: int

    @classmethod
    def of(cls, images: Sequence[np.ndarray], people: Sequence[str]) -> Faces:
        """Found as the align step does."""
        faces = Detector("cpu", 20).detect(list(images), padding=PADDING)
        both = zip(images, faces, people, strict=True)
        found = [(align_to_template(i, f.landmarks), who) for i, f, who in both if f is not None]
        return cls(np.stack([face for face, _ in found]), [who for _, who in found], len(images))


def entry(name: str) -> Weights:
    """An entry of the weights registry."""
    return pick(read_models(Path("config/models.yaml")), name, "benchmark")


@dataclass(frozen=True)
class World:
    """People of whom nothing was trained, their photographs, and what is painted of each.

    Attributes:
        people: how many.
        images: of each and of each prompt set.
        how: how images are denoised.
    """

    people: int
    images: int
    how: Sampling = HOW

    @cached_property
    def pictures(self) -> np.ndarray:
        """Photographs uint8 [people, REFERENCES + GALLERY, 64, 64, 3]."""
        what = Photographs(SEED, POPULATION, self.people, REFERENCES + GALLERY)
        found = photograph_people(what, range(self.people))["pictures"]
        return found.reshape(self.people, what.each, *found.shape[1:])

    @property
    def names(self) -> list[str]:
        """Whom they show."""
        return [f"ID_{k}" for k in range(self.people)]

    @cached_property
    def gallery(self) -> Faces:
        """What images are compared with; none of them is a reference."""
        shown = self.pictures[:, REFERENCES:].reshape(-1, *self.pictures.shape[2:])
        return Faces.of(list(shown), np.repeat(self.names, GALLERY).tolist())

    def references(self, count: int) -> torch.Tensor:
        """Uint8 [people, count, 3, 64, 64]."""
        return torch.from_numpy(self.pictures[:, :count]).permute(0, 1, 4, 2, 3)

    def bank(self, base: BaseModel, fusion: FaceFusion, count: int, away: bool) -> OnePersonEach:
        """So many references of each person on the network."""
        with torch.no_grad():
            keys = joined([keys_of(base, fusion, own) for own in self.references(count)])
        return OnePersonEach(fusion, keys, away)

    def painted(
        self, base: BaseModel, prompts: PromptSet, bank: Any, predict: Any = None
    ) -> list[tuple[ImageRequest, np.ndarray]]:
        """Images uint8 [64, 64, 3] of everybody."""
        requests = [
            ImageRequest(
                name,
                index,
                prompt,
                prompts.negative_prompt,
                seed_for(SEED, "sample", "demo", name, index),
                None if bank is None else k,
            )
            for k, name in enumerate(self.names)
            for index, prompt in enumerate(
                prompts_of(prompts, identity=name, count=self.images, seed=SEED, token=None)
            )
        ]
        return [
            (request, np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            for batch, images in sample(base, requests, self.how, bank=bank, predict=predict)
            for request, image in zip(batch, images, strict=True)
        ]

    def measured(self, what: str, base: BaseModel, bank: Any, predict: Any = None) -> list[Row]:
        """Rows of one condition."""
        base_set, complex_set = (
            PromptSet.model_validate(read_mapping(Path(f"config/prompts/{name}.yaml"), "prompts"))
            for name in ("base", "complex")
        )
        plain = self.painted(base, base_set, bank, predict)
        varied = self.painted(base, complex_set, bank, predict)
        samples = Faces.of([image for _, image in plain], [r.identity for r, _ in plain])
        rows = [proportion(f"{what}: face found", len(samples.images), samples.wanted)]
        for judge in JUDGES:
            network = load_recogniser(entry(judge))
            pairs = compare(
                network.embed(samples.images),
                samples.people,
                network.embed(self.gallery.images),
                self.gallery.people,
            )
            rates, name = comparison_error_rates(pairs), f"{what}: {judge}"
            rows.append(
                Row(f"{name}, EER", rates.eer, rates.eer_low, rates.eer_high, rates.n_genuine)
            )
            rows.append(mean(f"{name}, genuine", pairs.genuine.scores, np.random.default_rng(0)))
            rows.append(mean(f"{name}, impostor", pairs.impostor.scores, np.random.default_rng(0)))
        images, asked = [image for _, image in varied], [r.prompt for r, _ in varied]
        places = read(entry("demo_attributes"), images)["place"]
        wanted = [asked_of(prompt, "place") for prompt in asked]
        rows.append(agreement(f"{what}: place read", places, wanted))
        shown = load_reader(entry("demo_prompts")).score(np.stack(images), asked).ravel()
        rows.append(mean(f"{what}: prompt score", shown[shown >= 0], np.random.default_rng(0)))
        features = load_extractor(entry("demo_attributes"))
        real, made = (
            features.extract(unmarked(list(faces.images))) for faces in (self.gallery, samples)
        )
        recall = precision_recall(real, made, k=3)["recall"]
        return [*rows, Row(f"{what}: recall", recall, None, None, len(real))]

    def together(self, base: BaseModel, bank: OnePersonEach, masks: bool) -> list[Row]:
        """Rows of images of every two neighbours, one in each half."""
        side = base.resolution
        wide, halves, whose = replace(base, size=(side, 2 * side)), [], []
        where = masks_of(["left", "right"], side, 2 * side) if masks else None
        for k in range(0, self.people - 1, 2):
            keys = {n: (key[k : k + 2], v[k : k + 2]) for n, (key, v) in bank.keys.items()}
            both = Together(OnePersonEach(bank.fusion, keys, bank.guide_away), where)
            requests = [
                ImageRequest(
                    *(self.names[k], index, "photo of a person, close-up portrait", ""),
                    *(seed_for(SEED, "together", k, index), 0),
                )
                for index in range(self.images)
            ]
            for _, images in sample(wide, requests, self.how, bank=both):
                for image in images.permute(0, 2, 3, 1).numpy():
                    halves += [image[:, :side], image[:, side:]]
                    whose += [k, k + 1]
        faces = Faces.of([np.ascontiguousarray(half) for half in halves], [str(k) for k in whose])
        what = "two people, a mask each" if masks else "two people, no masks"
        rows = [proportion(f"{what}: halves with a face", len(faces.images), faces.wanted)]
        for judge in JUDGES:
            network = load_recogniser(entry(judge))
            gallery = network.embed(self.gallery.images)
            means = np.stack(
                [gallery[np.array(self.gallery.people) == name].mean(0) for name in self.names]
            )
            near = network.embed(faces.images) @ means.T
            own = np.array([int(k) for k in faces.people])
            other = own + 1 - 2 * (own % 2)
            every = np.arange(len(own))
            right = near[every, own] > near[every, other]
            rows.append(proportion(f"{what}: {judge}, halves right", int(right.sum()), len(halves)))
            rows.append(
                proportion(
                    f"{what}: {judge}, right of those with a face", int(right.sum()), len(own)
                )
            )
        return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="another face_fusion.safetensors")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--images", type=int, default=4, help="of each person and prompt set")
    parser.add_argument("--counts", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--guidance", type=float, default=HOW.guidance)
    parser.add_argument("--parts", nargs="+", default=["references", "together"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    world = World(args.people, args.images, replace(HOW, guidance=args.guidance))
    base = load_base_model(entry("demo"))
    fusion = FaceFusion(base.unet)
    place = args.weights or locate(entry("demo_facefusion"))
    fusion.load(load_file(place / FILE_NAME if place.is_dir() else place))
    found: dict[str, list[Row]] = {part: [] for part in args.parts}
    conditions = [(count, True) for count in args.counts]
    if max(args.counts, default=0) > 0:
        conditions.append((max(args.counts), False))
    for count, away in conditions if "references" in found else ():
        bank = world.bank(base, fusion, count, away) if count else None
        fusion.look(None)
        told = f"{count} references" + ("" if away else ", guidance towards the text alone")
        found["references"] += world.measured(told, base, bank)
        print(table(found["references"][-10:]), flush=True)
    if "together" in found:
        bank = world.bank(base, fusion, REFERENCES, away=True)
        for masks in (True, False):
            found["together"] += world.together(base, bank, masks)
        print(table(found["together"]), flush=True)
    for part, rows in found.items() if args.out else ():
        add(args.out, part, rows)


if __name__ == "__main__":
    main()
