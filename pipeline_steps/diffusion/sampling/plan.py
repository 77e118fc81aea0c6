"""What the sample step is to make: a row per image, its key, and the weights that it is made with.

Prompts are keyed by (study seed, prompt set, identity) and noise by (study seed, base model,
identity, index, attempt): neither knows of the method, so the rows of a results table differ by the
method alone. Source of the prompts: ID-Booth, supplement; the version of FG 2025.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from pipeline_steps.diffusion.lora import FILE_NAME, load_bank
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.diffusion.sampling.guidance import AWAY
from pipeline_steps.diffusion.sampling.sampler import OnNetwork
from pipeline_steps.identities.dataset import Subject
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.weights import Weights, locate
from pipeline_steps.naming import GENERATED_BY, VARIANT
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import numpy_generator, seed_for
from pipeline_steps.study.key import key, weights_hash
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import PromptSet, SampleSettings

if TYPE_CHECKING:
    from pipeline_steps.diffusion.base_models.base import BaseModel

Row = dict[str, Any]  # of a manifest
Origin = tuple[str, str]  # hash of the weights, and their source: a row's weights_source
# 128 adapters of the paper take 0.4 GB (SD-2.1) or 3 GB (SDXL).
AT_ONCE: Mapping[str, int] = {"cpu": 16, "cuda": 128}
GENERATOR = "generator"  # role of weights of a whole method that a study does not train itself
BASE_MODEL, FINE_TUNED, FOREIGN = "base model", "finetune", "foreign"
AGAIN = "make it again with snakemake --forcerun finetune, which keeps whatever is whole"

COLUMNS = (
    "identity",
    "index",
    "attempt",
    "file",
    "sha256",
    *GENERATED_BY,
    *VARIANT,
    "weights_sha256",
    "weights_source",
    "similarity",
    "quality",
    "kept",
    "reason",
)


def plan_images(
    frozen: Frozen[SampleSettings], subjects: Sequence[Subject], handed: Handed
) -> list[Row]:
    """Rows of the first attempts at all images of some identities, without what comes of them.

    Args:
        frozen: Configuration of the sample step.
        subjects: The identities.
        handed: What the method's family hands the sampler.

    Raises:
        StepError: weights are missing, broken, or answer to another word than the prompts say.
    """
    settings, method = frozen.settings, frozen.variant["method"]
    if settings.prompt_set is None:
        raise StepError("settings.prompt_set is empty: freeze the study, which fills it in")
    base_model = frozen.weights["base_model"]
    base = weights_hash(base_model), BASE_MODEL
    rows = []
    for subject in subjects:
        weights_sha256, source = handed.origin(subject.identity, settings.token) or base
        prompts = prompts_of(
            settings.prompt_set,
            identity=subject.identity,
            count=settings.images_per_identity,
            seed=frozen.seed,
            token=settings.token if METHODS[method].family.named else None,
            gender=subject.gender,
        )
        own_conditions = handed.conditions(subject.identity) or [{}] * len(prompts)
        for index, (prompt, own) in enumerate(zip(prompts, own_conditions, strict=True)):
            place = base_model.name, subject.identity, index
            rows.append(
                {
                    "identity": subject.identity,
                    "index": index,
                    "attempt": 0,
                    "prompt": prompt,
                    "negative_prompt": settings.prompt_set.negative_prompt,
                    "seed": seed_for(frozen.seed, "sample", *place),
                    "steps": settings.steps,
                    "guidance": settings.guidance,
                    "scheduler": settings.scheduler,
                    "base_model": base_model.name,
                    "method": method,
                    "prompts": settings.prompt_set.name,
                    "weights_sha256": weights_sha256,
                    "weights_source": source,
                    **own,
                }
            )
    return rows


def check_base_model(
    folder: Path, subjects: Sequence[Subject], base_model: Weights, *, anyway: bool
) -> None:
    """Adapters of another base model fit where its shapes are the same, and show nobody.

    Args:
        folder: Of the adapters; what ``training.json`` beside one says of its base model counts.
        subjects: The identities.
        base_model: What is sampled with.
        anyway: Only warn of adapters that were trained for another one.

    Raises:
        StepError: a record names another base model, or other contents of its files.
    """
    log, unknown = get_logger("sample"), []
    for subject in subjects:
        record = folder / subject.identity / "training.json"
        noted = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if not (theirs := noted.get("base_model")):
            unknown.append(subject.identity)
            continue
        ours, known = base_model.sha256, theirs["sha256"]
        other = [name for name in sorted(ours.keys() & known) if ours[name] != known[name]]
        if other or (theirs["name"] != base_model.name and not ours.keys() & known):
            files = f" ({other[0]}: {known[other[0]][:12]}, {ours[other[0]][:12]})" if other else ""
            sentence = (
                f"{record.parent} was fine-tuned for the base model {theirs['name']!r}, sampling "
                f"uses {base_model.name!r}{files}"
            )
            if not anyway:
                raise StepError(f"{sentence}: fine-tune for it, or pass --other-base-model")
            log.warning("%s", sentence)
    if unknown:
        names = ", ".join(unknown)
        log.warning("no record says that the weights of %s fit %s", names, base_model.name)


def try_again(row: Row, study_seed: int) -> Row:
    """The next attempt at an image: the same prompt, another seed."""
    place = (row["base_model"], row["identity"], row["index"], row["attempt"] + 1)
    return row | {"attempt": place[-1], "seed": seed_for(study_seed, "sample", *place)}


def keys_of(
    frozen: Frozen[SampleSettings],
    rows: Sequence[Row],
    faces: Mapping[str, str] | None = None,
    handed: Handed | None = None,
) -> list[str]:
    """Key of each sample, of which who measures it for a gate is no part.

    `faces` are hashes of the embeddings that guide; negative guidance asks `handed` for the others.
    """
    guidance = frozen.settings.identity_guidance
    roles = ["base_model", *(["recogniser"] if guidance else [])]
    own = replace(frozen, weights={role: frozen.weights[role] for role in roles})
    precision, token = frozen.settings.precision, frozen.settings.token
    others = {row[AWAY] for row in rows if AWAY in row}
    shown = {other: handed.origin(other, token) for other in others} if handed else {}

    def of(row: Row) -> str:
        planned = {name: row[name] for name in row if name != "weights_source"}
        led: dict[str, Any] = {}
        if guidance:
            led["led"] = [guidance.model_dump(mode="json"), (faces or {})[row["identity"]]]
        if handed and AWAY in row:
            told = handed.conditions(row[AWAY])[row["index"] :][:1]
            led[AWAY] = [frozen.settings.negative_guidance, shown[row[AWAY]], *told]
        return key(own, precision=precision, row=planned, **led)

    return [of(row) for row in rows]


def prompts_of(
    prompt_set: PromptSet,
    *,
    identity: str,
    count: int,
    seed: int,
    token: str | None,
    gender: str | None = None,
) -> list[str]:
    """Prompts of the images 0 ... count - 1 of one identity.

    Args:
        prompt_set: Template and slots.
        identity: Name of the identity, part of the seed.
        count: Number of prompts; the first n are the same for every count >= n.
        seed: The study seed.
        token: Word that stands for the identity; None drops it (an untuned base model).
        gender: The identity table's gender, e.g. "M"; unknown or None: neutral wording.

    Returns:
        ``count`` texts.
    """
    constant = {"token": token or "", "gender": prompt_set.genders.get(gender or "", "")}
    drawn = zip(
        _deal(prompt_set, identity, count, seed),
        _throw(prompt_set, identity, count, seed),
        strict=True,
    )
    return [
        _tidy(prompt_set.template.format(**constant, **dealt, **thrown)) for dealt, thrown in drawn
    ]


def _deal(prompt_set: PromptSet, identity: str, count: int, seed: int) -> list[dict[str, str]]:
    """Deck slots: all combinations shuffled; a used-up deck is shuffled anew."""
    slots = {name: slot for name, slot in prompt_set.slots.items() if slot.draw == "deck"}
    deck = list(
        itertools.product(
            *(
                [slot.filled(value.text) for value in slot.entries() for _ in range(value.times)]
                for slot in slots.values()
            )
        )
    )
    generator = numpy_generator(seed, "prompts", prompt_set.name, identity, "deck")
    hands: list[dict[str, str]] = []
    while len(hands) < count:
        for card in generator.permutation(len(deck)):
            hands.append(dict(zip(slots, deck[card], strict=True)))
    return hands[:count]


def _throw(prompt_set: PromptSet, identity: str, count: int, seed: int) -> list[dict[str, str]]:
    """Independent slots: uniform or by probability, from a stream per slot."""
    throws: list[dict[str, str]] = [{} for _ in range(count)]
    for name, slot in prompt_set.slots.items():
        if slot.draw != "independent":
            continue
        entries = slot.entries()
        generator = numpy_generator(seed, "prompts", prompt_set.name, identity, name)
        if entries[0].probability is None:
            texts = [slot.filled(value.text) for value in entries for _ in range(value.times)]
            for throw in throws:
                throw[name] = texts[int(generator.integers(len(texts)))]
            continue
        steps = np.cumsum([value.probability for value in entries])
        for throw in throws:
            # The last step may be a hair below 1.
            place = int(np.searchsorted(steps, generator.random() * steps[-1], side="right"))
            throw[name] = slot.filled(entries[place].text)
    return throws


def _tidy(text: str) -> str:
    """Single spaces, none before a comma: what a dropped word leaves behind."""
    return " ".join(text.split()).replace(" ,", ",")


class Handed(Protocol):
    """What one family hands the sampler; made of the arguments of :func:`hand`.

    Attributes:
        at_once: Identities on the network together, by device. With others it is compiled anew,
            which on a GPU takes as long as hundreds of images.
        columns: Of the rows, beside ``COLUMNS``.
    """

    at_once: ClassVar[Mapping[str, int]]
    columns: ClassVar[tuple[str, ...]]

    def origin(self, identity: str, token: str) -> Origin | None:
        """Hash and source of what an identity's images are made with beside the base model.

        Raises:
            StepError: it is missing or broken, or answers to another word than the token.
        """

    def conditions(self, identity: str) -> Sequence[Row]:
        """What each of an identity's images is conditioned on beside a prompt, for its row."""

    def on(
        self, base: BaseModel, identities: Sequence[str]
    ) -> AbstractContextManager[OnNetwork | None]:
        """Put it on the network for the length of a block; None: there is nothing to choose."""


def hand(frozen: Frozen[SampleSettings], dataset: Path, folder: Path | None) -> Handed:
    """What a method hands the sampler.

    Args:
        frozen: Configuration of the sample step; the variant says which of ``methods.METHODS``.
        dataset: Folder of the dataset.
        folder: Of what the study has trained; None where nothing is.

    Raises:
        StepError: the method is unknown, or a folder is missing, or one too many.
    """
    method = frozen.variant.get("method", "")
    if method not in METHODS:
        raise StepError(f"variant.method is {method!r}; {', '.join(METHODS)} expected")
    trained = METHODS[method].family.trains != "nothing"
    if (folder is not None) != (trained and GENERATOR not in frozen.weights):
        raise StepError(
            f"method {method!r}: pass --loras for methods that the study trains, and only for them"
        )
    module, _, name = METHODS[method].family.handed.partition(":")
    kind = getattr(import_module(f"pipeline_steps.{module}"), name)
    handed: Handed = kind(frozen, dataset, folder)
    return handed


def generator_file(frozen: Frozen[SampleSettings], folder: Path | None, name: str) -> Path:
    """The file of a method's one set of weights: of the registry's entry, or of the study's folder.

    Raises:
        StepError: it is missing.
    """
    given = frozen.weights.get(GENERATOR)
    place = locate(given) if given is not None else folder
    if place is None or not (path := place / name if place.is_dir() else place).is_file():
        raise StepError(
            f"weights {place}/{name} are missing: run train_generator, or name them in "
            "train_generator.weights"
        )
    return path


class Prompted:
    """The part of ``Handed`` of families whose images are conditioned by prompts alone."""

    columns: ClassVar[tuple[str, ...]] = ()

    def conditions(self, identity: str) -> Sequence[Row]:
        return ()


class BaseAlone(Prompted):
    """The base model as it is."""

    at_once: ClassVar[Mapping[str, int]] = AT_ONCE

    def __init__(self, *_: object) -> None:
        pass

    def origin(self, identity: str, token: str) -> Origin | None:
        return None

    @contextmanager
    def on(self, base: BaseModel, identities: Sequence[str]) -> Iterator[None]:
        yield None


class Adapters(Prompted):
    """An adapter per identity, ``<folder>/<identity>/pytorch_lora_weights.safetensors``."""

    at_once: ClassVar[Mapping[str, int]] = AT_ONCE

    def __init__(self, frozen: object, dataset: object, folder: Path) -> None:
        self._folder = folder

    def origin(self, identity: str, token: str) -> Origin:
        """Weights without ``training.json`` are foreign; what they answer to is not known."""
        folder = self._folder / identity
        path, record = folder / FILE_NAME, folder / "training.json"
        if not path.is_file():
            raise StepError(f"fine-tuned weights {path} are missing: {AGAIN}")
        digest = sha256_file(path)
        if not record.is_file():
            return digest, FOREIGN
        try:
            noted = json.loads(record.read_text(encoding="utf-8"))
            trained, whole = noted["settings"]["token"], noted["weights_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise StepError(f"{record} is broken ({error}): {AGAIN}") from error
        if whole != digest:
            raise StepError(f"{path} was cut or changed since it was trained: {AGAIN}")
        if trained != token:
            raise StepError(
                f"{folder} was fine-tuned with the token {trained!r}, sampling uses {token!r}: "
                "write the same in finetune.token and sample.token"
            )
        return digest, FINE_TUNED

    @contextmanager
    def on(self, base: BaseModel, identities: Sequence[str]) -> Iterator[Any]:
        bank = load_bank(base.unet, [self._folder / identity for identity in identities])
        try:
            yield bank
        finally:
            bank.remove()
