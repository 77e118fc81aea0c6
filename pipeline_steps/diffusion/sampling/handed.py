"""What each family of methods hands the sampler: whose weights, and these on the network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pipeline_steps.diffusion.adapters.files import FILE_NAME, load_bank
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError

Origin = tuple[str, str]  # hash of the weights, and their source: a row's weights_source
BASE_MODEL, FINE_TUNED, FOREIGN = "base model", "finetune", "foreign"
AGAIN = "make it again with snakemake --forcerun finetune, which keeps whatever is whole"


class OnNetwork(Protocol):
    """What lies on the network while images of some identities are sampled."""

    def activate(self, rows: Sequence[int] | None) -> None:
        """Choose who the groups of the following batches are, by place among the identities."""


class Handed(Protocol):
    """What one family hands the sampler; made with the folder of what was trained, if any."""

    def origin(self, identity: str, token: str) -> Origin | None:
        """Hash and source of what an identity's images are made with beside the base model.

        Raises:
            StepError: it is missing or broken, or answers to another word than the token.
        """

    def on(
        self, network: nn.Module, identities: Sequence[str]
    ) -> AbstractContextManager[OnNetwork | None]:
        """Put it on the network for the length of a block; None: there is nothing to choose."""


def hand(method: str, folder: Path | None) -> Handed:
    """What a method hands the sampler.

    Args:
        method: A key of ``methods.METHODS``.
        folder: Of what was trained; None where nothing is.

    Raises:
        StepError: the method is unknown, or a folder is missing, or one too many.
    """
    if method not in METHODS:
        raise StepError(f"variant.method is {method!r}; {', '.join(METHODS)} expected")
    if (folder is not None) != METHODS[method].trains:
        raise StepError(
            f"method {method!r}: pass --loras for fine-tuned methods, and only for them"
        )
    module, _, name = METHODS[method].family.handed.partition(":")
    handed: Handed = getattr(import_module(f"pipeline_steps.{module}"), name)(folder)
    return handed


class BaseAlone:
    """The base model as it is."""

    def __init__(self, folder: None) -> None:
        pass

    def origin(self, identity: str, token: str) -> Origin | None:
        return None

    @contextmanager
    def on(self, network: nn.Module, identities: Sequence[str]) -> Iterator[None]:
        yield None


class Adapters:
    """An adapter per identity, ``<folder>/<identity>/pytorch_lora_weights.safetensors``."""

    def __init__(self, folder: Path) -> None:
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
    def on(self, network: nn.Module, identities: Sequence[str]) -> Iterator[Any]:
        bank = load_bank(network, [self._folder / identity for identity in identities])
        try:
            yield bank
        finally:
            bank.remove()
