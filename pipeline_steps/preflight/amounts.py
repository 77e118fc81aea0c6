"""How much work and how many bytes a study is, before any of it is done."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline_steps.study.plan import WORLD, Plan

PHOTOGRAPHS_PER_PERSON = 27  # three cameras at nine positions, before any is left out
IMAGES_PER_PERSON = 21
PEOPLE = 105
WILD_IMAGES = 70_000
EPOCHS = 40  # that a training of the paper's kind may last before it stops; an assumption

# Bytes; images by their number of pixels at 512 x 512, features by 1024 float32 numbers.
PHOTOGRAPHIC_PNG = 400_000
ALIGNED_PNG = 25_000
FEATURE_ROW = 4_096
LORA_NUMBERS = {"stable-diffusion": 829_952, "stable-diffusion-xl": 5_806_080}  # at rank 4
RECOGNISER_BYTES = {"iresnet18": 96, "iresnet34": 137, "iresnet50": 175, "iresnet100": 261}  # MB


@dataclass(frozen=True)
class Amounts:
    """Counts that the costs follow from.

    Attributes:
        people: identities of the study.
        photographs: files that preparation looks at.
        images: usable ones of all people.
        wild: images of the in-the-wild reference.
        basis: where these numbers come from.
    """

    people: int
    photographs: int
    images: int
    wild: int
    basis: str


def amounts_of(plan: Plan, root: Path = Path()) -> Amounts:
    """Counts of a study: from its prepared dataset where that is done, else what is expected."""
    study = plan.study
    table = root / plan.results / "dataset" / "identities.csv"
    wild = study.render_demo_world.in_the_wild if _rendered(study.in_the_wild) else WILD_IMAGES
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as stream:
            counts = [int(row["n_images"]) for row in csv.DictReader(stream)]
        return Amounts(len(counts), sum(counts), sum(counts), wild, "the prepared dataset")
    expected = study.prepare.expected
    people = expected.identities[0] if expected.identities else PEOPLE
    if any(map(_rendered, study.prepare.sources)):
        people = study.render_demo_world.participants
    each = expected.images_per_identity or IMAGES_PER_PERSON
    photographs = people * PHOTOGRAPHS_PER_PERSON
    return Amounts(people, photographs, people * each, wild, "what is expected of the database")


def _rendered(path: str) -> bool:
    return path.startswith(f"{WORLD}/")


def units(plan: Plan, amounts: Amounts) -> dict[str, dict[str, float]]:
    """Work of the whole study: rule to kind of time to units.

    A kind is a key of the step times; those of base models are followed by ``:``, the model's
    architecture and ``@`` its resolution.
    """
    study = plan.study
    sampled = amounts.people * study.sample.images_per_identity
    found: dict[str, dict[str, float]] = {
        "prepare": {"prepare": amounts.photographs},
        "embed": {"embed": amounts.images},
        "align_photographs": {"align": amounts.images},
        "align_in_the_wild": {"align": amounts.wild},
        "align": {"align": sampled * len(study.variants)},
        "features": {"features": sampled * len(study.variants) * len(plan.extractors)},
        "features_of_reference": {
            "features": (amounts.images + amounts.wild) * len(plan.extractors)
        },
        "recognise": {
            "recognise": amounts.images
            * len(plan.jobs.get("recognise", []))
            * min(EPOCHS, study.recognise.epochs)
        },
        "prior": {},
        "sample": {},
        "finetune": {},
    }
    for base_model in study.base_models:
        entry = plan.models[base_model]
        kind = f"{entry.architecture}@{entry.options.get('resolution')}"
        _add(found["prior"], f"prior:{kind}", study.prior.images * study.prior.steps / 30)
        images = sampled * len(study.methods) * len(study.prompt_sets)
        _add(found["sample"], f"sample:{kind}", images * study.sample.steps / 30)
        for method in filter(plan.tuned, study.methods):
            settings = study.finetune.resolved(base_model, method)
            judged = "finetune_judged" if plan.guided(method) else "finetune"
            work = amounts.people * settings.steps * settings.batch_size
            _add(found["finetune"], f"{judged}:{kind}", work)
    return found


def disk(plan: Plan, amounts: Amounts) -> dict[str, float]:
    """Bytes of the whole study: rule to what its results take."""
    study = plan.study
    sampled = amounts.people * study.sample.images_per_identity
    of_variants = sampled * len(study.variants)
    rows = amounts.images + amounts.wild + of_variants
    found = {
        "prepare": amounts.images * _png(study.prepare.resolution),
        "align_photographs": amounts.images * ALIGNED_PNG,
        "align_in_the_wild": amounts.wild * ALIGNED_PNG,
        "align": of_variants * ALIGNED_PNG,
        "features": rows * len(plan.extractors) * FEATURE_ROW,
        "recognise": len(plan.jobs.get("recognise", []))
        * RECOGNISER_BYTES.get(study.recognise.backbone, 10)
        * 1e6,
        "finetune": 0.0,
        "sample": 0.0,
        "prior": 0.0,
    }
    for base_model in study.base_models:
        entry = plan.models[base_model]
        side = int(str(entry.options.get("resolution", 512)))
        found["prior"] += study.prior.images * _png(side)
        found["sample"] += sampled * len(study.methods) * len(study.prompt_sets) * _png(side)
        for method in filter(plan.tuned, study.methods):
            rank = study.finetune.resolved(base_model, method).rank
            numbers = LORA_NUMBERS.get(entry.architecture, 0) * rank / 4
            found["finetune"] += amounts.people * numbers * 4
    return found


def _png(side: int) -> float:
    return PHOTOGRAPHIC_PNG * (side / 512) ** 2


def _add(into: dict[str, float], kind: str, amount: float) -> None:
    into[kind] = into.get(kind, 0.0) + amount
