"""What a study costs: work, GPU-hours and disk, rule by rule, and where the numbers come from."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan, is_rendered

STEP_TIMES = Path(__file__).with_name("step_times.yaml")
ON_A_CARD = frozenset(
    {
        "prepare",
        "embed",
        "prior",
        "finetune",
        "train_generator",
        "sample",
        "recognise",
        "verify",
        "features",
    }
    | {"verify_templates"}
    | {"features_of_reference", "align", "align_photographs", "align_in_the_wild"}
    | {"align_external"}
)

# Where the workflow notes the times of a rule's jobs, below benchmarks/, if not under its own name.
BENCHMARKS = {
    "align_photographs": ("align/real.tsv",),
    "align_in_the_wild": ("align/wild.tsv",),
    "align_external": ("align/external/*.tsv",),
    "align": ("align/*/*/*.tsv",),
    "features_of_reference": (
        *("features/real/*.tsv", "features/wild/*.tsv", "features/external/*/*.tsv"),
    ),
    "features": ("features/*/*/*.tsv",),
    "score_identity": ("score/identity/**/*.tsv",),
    "score_references": ("score/*/reference.tsv",),
    "score": ("score/quality/*/**/*.tsv", "score/pose/*/**/*.tsv"),
}

PHOTOGRAPHS_PER_PERSON = 27  # three cameras at nine positions, before any is left out
IMAGES_PER_PERSON = 21
PEOPLE = 105
WILD_IMAGES = 70_000
EPOCHS = 40  # that a training of the paper's kind may last before it stops; an assumption

# Bytes; images by their number of pixels at 512 x 512, features by 1024 float32 numbers.
PHOTOGRAPHIC_PNG = 400_000
ALIGNED_PNG = 25_000
EXTERNAL_IMAGE = 10_000  # in a published set, between small JPEGs and PNGs
THUMBNAIL = 4_000
FEATURE_ROW = 4_096
LORA_NUMBERS = {"stable-diffusion": 829_952, "stable-diffusion-xl": 5_806_080}  # at rank 4
# Face Fusion's; a network of another family is larger.
GENERATOR_NUMBERS = {"stable-diffusion": 24_780_800, "stable-diffusion-xl": 204_800_000}
RECOGNISER_BYTES = {"iresnet18": 96, "iresnet34": 137, "iresnet50": 175, "iresnet100": 261}  # MB


@dataclass(frozen=True)
class Amounts:
    """Counts that the costs follow from.

    Attributes:
        people: identities of the study.
        photographs: files that preparation looks at.
        images: usable ones of all people.
        wild: images of the in-the-wild reference.
        external: images of other people's sets, by the size of what is there.
        basis: where these numbers come from.
    """

    people: int
    photographs: int
    images: int
    wild: int
    external: int
    basis: str


def amounts_of(plan: Plan, root: Path = Path()) -> Amounts:
    """Counts of a study: from its prepared dataset where that is done, else what is expected."""
    study = plan.study
    table = root / plan.at("identities")
    wild = study.render_demo_world.in_the_wild if is_rendered(study.in_the_wild) else WILD_IMAGES
    sizes = (_bytes(root / path) for path in study.external_sets.values())
    external = sum(round(size / EXTERNAL_IMAGE) for size in sizes)
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as stream:
            counts = [int(row["n_images"]) for row in csv.DictReader(stream)]
        images = sum(counts)
        return Amounts(len(counts), images, images, wild, external, "the prepared dataset")
    expected = study.prepare.expected
    people = expected.identities[0] if expected.identities else PEOPLE
    if any(map(is_rendered, study.prepare.sources)):
        people = study.render_demo_world.participants
    each = expected.images_per_identity or IMAGES_PER_PERSON
    photographs = people * PHOTOGRAPHS_PER_PERSON
    basis = "what is expected of the database"
    return Amounts(people, photographs, people * each, wild, external, basis)


def shown(plan: Plan, amounts: Amounts) -> int:
    """How many people generated images show."""
    return plan.study.invent.people if plan.study.made_up else amounts.people


def _bytes(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def units(plan: Plan, amounts: Amounts) -> dict[str, dict[str, float]]:
    """Work of the whole study: rule to kind of time to units.

    A kind is a key of the step times; those of base models are followed by ``:``, the model's
    architecture and ``@`` its resolution.
    """
    study = plan.study
    sampled = shown(plan, amounts) * study.sample.images_per_identity
    always = len(plan.extractors) - bool(study.score.quality.prompt_extractor)
    found: dict[str, dict[str, float]] = {
        "prepare": {"prepare": amounts.photographs},
        "embed": {"embed": amounts.images},
        "align_photographs": {"align": amounts.images},
        "align_in_the_wild": {"align": amounts.wild},
        "align_external": {"align": amounts.external},
        "align": {"align": sampled * len(study.variants)},
        "features": {"features": sampled * len(study.variants) * len(plan.extractors)},
        "features_of_reference": {
            "features": (amounts.images + amounts.wild + amounts.external) * always
        },
        "recognise": {
            "recognise": amounts.images
            * len(plan.jobs.get("recognise", []))
            * min(EPOCHS, study.recognise.epochs)
        },
        "prior": defaultdict(float),
        "sample": defaultdict(float),
        "finetune": defaultdict(float),
        "train_generator": defaultdict(float),
    }
    for base_model in study.base_models:
        entry = plan.models[base_model]
        kind = f"{entry.architecture}@{entry.options.get('resolution')}"
        found["prior"][f"prior:{kind}"] += study.prior.images * study.prior.steps / 30
        images = sampled * len(study.methods) * len(study.prompt_sets)
        found["sample"][f"sample:{kind}"] += images * study.sample.steps / 30
        for method in filter(plan.tuned, study.methods):
            settings = study.finetune.resolved(base_model, method)
            judged = "finetune_judged" if plan.guided(method) else "finetune"
            work = amounts.people * settings.steps * settings.batch_size
            found["finetune"][f"{judged}:{kind}"] += work
        for method in study.methods:
            if plan.generates(base_model, method):
                # An image and its references take about what an image and a prior image take.
                generator = study.train_generator.resolved(method)
                work = generator.steps * generator.batch_size
                found["train_generator"][f"finetune:{kind}"] += work
    return found


def disk(plan: Plan, amounts: Amounts) -> dict[str, float]:
    """Bytes of the whole study: rule to what its results take."""
    study = plan.study
    sampled = shown(plan, amounts) * study.sample.images_per_identity
    of_variants = sampled * len(study.variants)
    given = amounts.images + amounts.wild + amounts.external
    always = len(plan.extractors) - bool(study.score.quality.prompt_extractor)  # a number, no row
    found = {
        "prepare": amounts.images * _png(study.prepare.resolution),
        "align_photographs": amounts.images * ALIGNED_PNG,
        "align_in_the_wild": amounts.wild * ALIGNED_PNG,
        "align_external": amounts.external * ALIGNED_PNG,
        "align": of_variants * ALIGNED_PNG,
        "features": (given + of_variants) * always * FEATURE_ROW,
        "recognise": len(plan.jobs.get("recognise", []))
        * RECOGNISER_BYTES.get(study.recognise.backbone, 10)
        * 1e6,
        "explore": (amounts.images + amounts.external + of_variants) * THUMBNAIL,
        "finetune": 0.0,
        "sample": 0.0,
        "train_generator": 0.0,
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
        own = sum(plan.generates(base_model, method) for method in study.methods)
        found["train_generator"] += own * GENERATOR_NUMBERS.get(entry.architecture, 0) * 2
    return found


def _png(side: int) -> float:
    return PHOTOGRAPHIC_PNG * (side / 512) ** 2


@dataclass(frozen=True)
class Cost:
    """What one rule still costs.

    Attributes:
        rule: its name.
        jobs, done: all jobs, and those whose results are there.
        hours: GPU-hours left, low and high; None where nobody knows, zeros without a GPU.
        measured: whether the hours follow from this study's finished jobs.
        disk: bytes of the results of all jobs.
    """

    rule: str
    jobs: int
    done: int
    hours: tuple[float, float] | None
    measured: bool
    disk: float

    @property
    def disk_left(self) -> float:
        """Bytes that are still to be written."""
        return self.disk * (self.jobs - self.done) / self.jobs


@dataclass(frozen=True)
class Costs:
    """Costs of a study.

    Attributes:
        rules: one by one, in the order of the workflow.
        people: identities of the study.
        basis: where the counts come from.
        hardware, source: of the step times.
    """

    rules: tuple[Cost, ...]
    people: int
    basis: str
    hardware: str
    source: str

    @property
    def jobs(self) -> int:
        """All jobs, with the last one, which has no work."""
        return sum(cost.jobs for cost in self.rules) + 1

    @property
    def disk_left(self) -> float:
        """Bytes that are still to be written."""
        return sum(cost.disk_left for cost in self.rules)

    @property
    def hours(self) -> tuple[float, float]:
        """GPU-hours left, low and high, of the rules of which they are known."""
        known = [cost.hours for cost in self.rules if cost.hours is not None]
        return sum(low for low, _ in known), sum(high for _, high in known)


def costs_of(plan: Plan, root: Path = Path(), step_times: Path = STEP_TIMES) -> Costs:
    """Costs of a study.

    Args:
        plan: the study.
        root: the working folder.
        step_times: seconds per unit of work, as the file of this package.

    Raises:
        StepError: the step times cannot be read.
    """
    times = read_step_times(step_times)
    amounts = amounts_of(plan, root)
    work, bytes_of = units(plan, amounts), disk(plan, amounts)
    rows = []
    for rule, outputs in plan.jobs.items():
        finished = sum((root / path).is_file() for path in outputs)
        left = len(outputs) - finished
        mean = measured_seconds(root / plan.results / "benchmarks", rule)
        hours: tuple[float, float] | None = (0.0, 0.0)
        if rule in ON_A_CARD and left:
            if mean is not None:
                hours = (left * mean / 3600, left * mean / 3600)
            else:
                hours = _estimated(work.get(rule, {}), times, left / len(outputs))
        known = mean is not None and rule in ON_A_CARD
        rows.append(
            Cost(rule, len(outputs), finished, hours, known, float(bytes_of.get(rule, 0.0)))
        )
    return Costs(
        tuple(rows), amounts.people, amounts.basis, str(times["hardware"]), str(times["source"])
    )


def read_step_times(path: Path) -> dict[str, Any]:
    """Seconds per unit of work.

    Raises:
        StepError: the file is missing or no such table.
    """
    times = read_mapping(path, "step times")
    if not {"hardware", "source"} <= set(times):
        raise StepError(f"step times {path}: expected hardware, source, and seconds per step")
    return times


def measured_seconds(benchmarks: Path, rule: str) -> float | None:
    """Mean wall seconds of a rule's finished jobs; None where there are none."""
    patterns = BENCHMARKS.get(rule, (f"{rule}.tsv", f"{rule}/**/*.tsv"))
    seconds = []
    for pattern in patterns:
        for path in benchmarks.glob(pattern):
            with path.open(newline="", encoding="utf-8") as stream:
                seconds += [float(row["s"]) for row in csv.DictReader(stream, delimiter="\t")]
    return sum(seconds) / len(seconds) if seconds else None


def _estimated(
    work: Mapping[str, float], times: Mapping[str, Any], share: float
) -> tuple[float, float] | None:
    """Hours of a share of the work; None where the seconds of a kind are not known."""
    low = high = 0.0
    for kind, amount in work.items():
        name, _, model = kind.partition(":")
        seconds = times.get(name, {}).get("seconds")
        if model and isinstance(seconds, Mapping):
            seconds = seconds.get(model)
        if not isinstance(seconds, list):
            return None
        low += amount * share * float(seconds[0]) / 3600
        high += amount * share * float(seconds[1]) / 3600
    return (low, high) if work else (0.0, 0.0)
