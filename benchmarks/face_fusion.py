"""How well Face Fusion shows people of whom nothing was trained: python benchmarks/face_fusion.py

    references   equal error rate versus photographs, by both judges, and the share of prompts that
                 the attribute network reads back, with 1, 2 and 4 references and without any
    guidance     the same with 4 references where guidance's other side sees them, too

People are rendered and of a population of their own; a reference is no photograph of the gallery.
Prints a table with 95 % intervals and adds the rows to --out; --weights measures other weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measured import Row, add, mean, proportion, table
from safetensors.torch import load_file

from benchmarks.demo_world import agreement, place_of, read_places
from pipeline_steps.demo_world.pretraining.images import Photographs, photograph_people
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion
from pipeline_steps.diffusion.sampling.plan import prompts_of
from pipeline_steps.diffusion.sampling.references import OnePersonEach, joined, keys_of
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.detection import Detector
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.weights import Weights, locate
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.metrics.pairs import compare
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


def measured(
    what: str, samples: Faces, gallery: Faces, complex_samples: list[np.ndarray], asked: list[str]
) -> list[Row]:
    """Rows of one condition."""
    rows = [proportion(f"{what}: face found", len(samples.images), samples.wanted)]
    for judge in JUDGES:
        network = load_recogniser(entry(judge))
        pairs = compare(
            network.embed(samples.images),
            samples.people,
            network.embed(gallery.images),
            gallery.people,
        )
        rates = comparison_error_rates(pairs)
        name = f"{what}: {judge}"
        rows.append(Row(f"{name}, EER", rates.eer, rates.eer_low, rates.eer_high, rates.n_genuine))
        rows.append(mean(f"{name}, genuine", pairs.genuine.scores, np.random.default_rng(0)))
        rows.append(mean(f"{name}, impostor", pairs.impostor.scores, np.random.default_rng(0)))
    read = read_places(entry("demo_attributes"), complex_samples)
    return [*rows, agreement(f"{what}: place read", read, [place_of(prompt) for prompt in asked])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="another face_fusion.safetensors")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--images", type=int, default=4, help="of each person and prompt set")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--guidance", type=float, default=HOW.guidance)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    what = Photographs(SEED, POPULATION, args.people, REFERENCES + GALLERY)
    columns = photograph_people(what, range(args.people))
    pictures = columns["pictures"].reshape(args.people, what.each, *columns["pictures"].shape[1:])
    names = [f"ID_{k}" for k in range(args.people)]
    shown = pictures[:, REFERENCES:].reshape(-1, *pictures.shape[2:])
    gallery = Faces.of(list(shown), np.repeat(names, GALLERY).tolist())
    base = load_base_model(entry("demo"))
    fusion = FaceFusion(base.unet)
    place = args.weights or locate(entry("demo_facefusion"))
    fusion.load(load_file(place / FILE_NAME if place.is_dir() else place))
    how = Sampling(HOW.steps, args.guidance, HOW.scheduler, HOW.batch_size)
    sets = [
        PromptSet.model_validate(read_mapping(Path(f"config/prompts/{name}.yaml"), "prompts"))
        for name in ("base", "complex")
    ]
    rows: list[Row] = []
    conditions = [(count, True) for count in args.counts]
    if max(args.counts) > 0:
        conditions.append((max(args.counts), False))
    for count, away in conditions:
        bank = None
        if count:
            references = torch.from_numpy(pictures[:, :count]).permute(0, 1, 4, 2, 3)
            with torch.no_grad():
                keys = joined([keys_of(base, fusion, own) for own in references])
            bank = OnePersonEach(fusion, keys, away)
        else:
            fusion.look(None)
        found: dict[str, list[tuple[ImageRequest, np.ndarray]]] = {}
        for prompts in sets:
            requests = [
                ImageRequest(
                    name,
                    index,
                    prompt,
                    prompts.negative_prompt,
                    seed_for(SEED, "sample", "demo", name, index),
                    k if count else None,
                )
                for k, name in enumerate(names)
                for index, prompt in enumerate(
                    prompts_of(prompts, identity=name, count=args.images, seed=SEED, token=None)
                )
            ]
            found[prompts.name] = [
                (request, np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
                for batch, images in sample(base, requests, how, bank=bank)
                for request, image in zip(batch, images, strict=True)
            ]
        samples = Faces.of(
            [image for _, image in found["base"]], [r.identity for r, _ in found["base"]]
        )
        told = f"{count} references" + ("" if away else ", guidance towards the text alone")
        rows += measured(
            told,
            samples,
            gallery,
            [image for _, image in found["complex"]],
            [r.prompt for r, _ in found["complex"]],
        )
        print(table(rows[-8:]), flush=True)
    if args.out:
        add(args.out, "references", rows)


if __name__ == "__main__":
    main()
