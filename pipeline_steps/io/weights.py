"""Where pretrained weights lie on this machine, and whether they are the ones that were named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline_steps.io.hashes import remembered_sha256, sha256_json
from pipeline_steps.io.yaml_mapping import read_mapping
from pipeline_steps.runtime.errors import StepError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

FOLDER_VARIABLE = "CONSENTED_FACES_WEIGHTS"  # where fetched weights lie; see weights_folder
PROJECT_ROOT = Path(__file__).resolve().parents[2]
NO_WEIGHTS = "none"  # source of a method that needs no weights
FETCHED = "resources/weights/"  # how a local source names the folder of fetched weights
SAID_TODAY = {  # of an entry by the registry; no result follows from it
    *("source", "licence", "commercial_use", "mirrors", "size", "purpose", "page"),
    "components",
}
MEND = "Fetch it again, or correct architecture and options in config/models.yaml"
HASHED = (".safetensors", ".json", ".txt", ".pth", ".pt", ".bin", ".model", ".onnx")


class Weights(BaseModel):
    """One entry of the weights registry, ``config/models.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    name: str = Field(description="Name by which a study refers to the entry.")
    task: str = Field(description="What the weights do: base_model, recogniser, features, ...")
    architecture: str = Field(description="Code that reads them, e.g. stable-diffusion, iresnet.")
    source: str = Field(
        description="Local path (relative to the project's root), hub:<owner>/<name>, or https URL."
    )
    revision: str | None = Field(default=None, description="Revision of a hub source.")
    mirrors: tuple[str, ...] = Field(
        default=(),
        description="Further sources of the same files, tried in this order where the first has "
        "none: hub:<owner>/<name> or https URLs.",
    )
    files: tuple[str, ...] = Field(
        default=(),
        description="Files that are needed, relative to the entry's folder; of an archive (.zip, "
        ".tar.gz), what to take out of it.",
    )
    sha256: dict[str, str] = Field(
        default_factory=dict,
        description="File (relative to the folder, or the file's name) to SHA-256; empty: not "
        "pinned yet.",
    )
    size: int | None = Field(
        default=None, ge=0, description="Bytes to download, about; null where nobody says."
    )
    licence: str = Field(description="Licence of the weights.")
    commercial_use: bool = Field(description="Whether that licence allows commercial use.")
    purpose: str = Field(default="", description="What a study uses the weights for.")
    page: str | None = Field(
        default=None,
        description="Web page of the weights: licence text, and the place to fetch them by hand.",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="What the architecture needs to know, e.g. layer counts."
    )
    components: dict[str, Weights] = Field(
        default_factory=dict,
        description="Parts that other entries replace, e.g. {vae: sdxl_vae_fp16_fix}; in the file "
        "by name, here the entries themselves.",
    )

    def frozen(self) -> dict[str, Any]:
        """What the entry is: all but its place, its licence, and what downloads need."""
        parts = {part: entry.frozen() for part, entry in self.components.items()}
        return self.model_dump(mode="json", exclude=SAID_TODAY) | {"components": parts}

    def with_contents(self) -> Weights:
        """The entry with the hash of each of its files that is here, whether pinned or not."""
        try:
            found = {name: remembered_sha256(file) for name, file in files_of(self).items()}
        except StepError:  # not here yet
            found = {}
        parts = {part: entry.with_contents() for part, entry in self.components.items()}
        return self.model_copy(update={"sha256": found | self.sha256, "components": parts})

    def resolution(self) -> int:
        """Side in pixels of a base model's images. Raises StepError where the options say none."""
        side = self.options.get("resolution")
        if not isinstance(side, int):
            raise StepError(f"weights {self.name!r}: options.resolution (pixels) is missing")
        return side

    def with_components(self) -> list[Weights]:
        """The entry and the entries of its parts."""
        return [
            self,
            *(part for entry in self.components.values() for part in entry.with_components()),
        ]


def placed(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """A frozen entry with what the registry says today of its place and its licence.

    What changes no result stands in no frozen configuration; an entry that has it all is whole.

    Raises:
        StepError: the registry has no such entry any more.
    """
    if "source" in frozen or "name" not in frozen:
        return dict(frozen)
    registry = _registry()
    if frozen["name"] not in registry:
        raise StepError(
            f"config/models.yaml has no entry {frozen['name']!r}, of which a frozen configuration "
            "tells: put it back, or run snakemake, which freezes the study anew"
        )
    said = {key: value for key, value in registry[frozen["name"]].items() if key in SAID_TODAY}
    parts = {part: placed(entry) for part, entry in frozen.get("components", {}).items()}
    return said | dict(frozen) | {"components": parts}


@cache
def _registry() -> dict[str, Any]:
    return read_mapping(PROJECT_ROOT / "config" / "models.yaml", "weights registry")


def require_whole(
    where: object, missing: Iterable[str], unexpected: Iterable[str], *, mend: str = MEND
) -> None:
    """Refuse weights that are not a network's: what a file lacks would stay at random values.

    Args:
        where: File or folder.
        missing: Names of the network's tensors that are not there.
        unexpected: Names of tensors that the network does not have.
        mend: What to do about it.

    Raises:
        StepError: there are any.
    """
    parts = [
        f"{what} {len(names)} tensors ({', '.join(sorted(names)[:3])}{', …' * (len(names) > 3)})"
        for what, names in (("lacks", [*missing]), ("has no place for", [*unexpected]))
        if names
    ]
    if parts:
        raise StepError(f"{where} is not this network's: it {' and '.join(parts)}. {mend}")


def fill(network: Module, state: Mapping[str, Tensor], where: object, **mend: str) -> None:
    """Give a network the tensors of a file, all of them.

    Raises:
        StepError: as of :func:`require_whole`.
        RuntimeError: a tensor has another shape.
    """
    result = network.load_state_dict(state, strict=False)
    require_whole(where, result.missing_keys, result.unexpected_keys, **mend)


def open_network(model: Any, folder: Path, part: str = "", *, beside: tuple[str, ...] = ()) -> Any:
    """A network of diffusers or transformers in float32 on the CPU, from a local folder.

    Args:
        model: Its class.
        folder: As the library's ``save_pretrained`` writes it.
        part: Folder below it.
        beside: Beginnings of the names of tensors that belong to another part of a larger network.

    Raises:
        StepError: as of :func:`require_whole`.
        OSError, ValueError, RuntimeError: files are missing, or of another architecture.
    """
    import torch

    network, found = model.from_pretrained(
        folder,
        subfolder=part,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    unexpected = [name for name in found["unexpected_keys"] if not name.startswith(beside)]
    require_whole(folder / part, found["missing_keys"], unexpected)
    return network


def weights_folder() -> Path:
    """Folder of fetched weights: ``$CONSENTED_FACES_WEIGHTS``, or ``resources/weights``."""
    return Path(os.environ.get(FOLDER_VARIABLE) or PROJECT_ROOT / "resources" / "weights")


def source_kind(source: str) -> tuple[str, str]:
    """A source as ("hub", owner/name), ("pypi", requirement), ("url", address), ("local", path)."""
    kind, colon, place = source.partition(":")
    if colon and kind in ("hub", "pypi"):
        return kind, place
    if source.startswith(("https://", "http://")):
        return "url", source
    return "local", source


def expected_place(weights: Weights) -> Path:
    """Where the weights of an entry are looked for first, whether they are there or not.

    A local source's path, where ``resources/weights`` means the folder of fetched weights. A hub
    source's folder ``<weights folder>/<name>``. A URL's or a package's file in that folder, or the
    folder itself where the entry needs several files.
    """
    kind, place = source_kind(weights.source)
    if kind == "local":
        if place.startswith(FETCHED):
            return weights_folder() / place.removeprefix(FETCHED)
        return Path(place)
    folder = weights_folder() / weights.name
    if kind == "hub" or len(weights.files) > 1:
        return folder
    return folder / (weights.files[0] if weights.files else place.rpartition("/")[2])


def found_place(weights: Weights) -> Path | None:
    """The folder or file of an entry where one is there, whole or not.

    A local source is looked up from the working folder, then from the project's root; a hub source
    also in the hub's own cache. For the rest see :func:`expected_place`.
    """
    kind, place = source_kind(weights.source)
    expected = expected_place(weights)
    candidates = [expected, PROJECT_ROOT / place] if kind == "local" else [expected]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    return _hub_cache(place, weights.revision) if kind == "hub" else None


def locate(weights: Weights) -> Path:
    """The local folder or file of a registry entry, see :func:`found_place`. Nothing is downloaded.

    Raises:
        StepError: it is not there, or a file that the entry lists is not; the message says where
            from and how to fetch it, and under which licence.
    """
    place = found_place(weights)
    absent = [] if place is None else absent_files(weights)
    if place is not None and not absent:
        return place
    what = (
        f"at {place} lack {', '.join(absent)}" if place else f"are not at {expected_place(weights)}"
    )
    use = "allowed" if weights.commercial_use else "not allowed"
    raise StepError(
        f"weights {weights.name!r} ({weights.task}) {what}. Source: {weights.source}; licence: "
        f"{weights.licence} (commercial use {use}). To get them beforehand: {how_to_get(weights)}"
    )


def how_to_get(weights: Weights) -> str:
    """What to do about absent weights, in one line."""
    if any(source_kind(source)[0] != "local" for source in (weights.source, *weights.mirrors)):
        return f"python -m pipeline_steps.fetch_models {weights.name} --study <configuration>"
    page = f" from {weights.page}" if weights.page else ""
    return f"fetch the file or folder{page} and put it at {expected_place(weights)}"


def absent_files(weights: Weights) -> list[str]:
    """Files that an entry needs and that are not there, its components left aside.

    Returns:
        Names as in ``files``; of an entry without that list, its file's or folder's name.
    """
    if weights.source == NO_WEIGHTS:
        return []
    place = found_place(weights)
    if place is None:
        return list(weights.files or (expected_place(weights).name,))
    if place.is_file():
        return []
    return [name for name in weights.files if not (place / name).is_file()]


def verify(weights: Weights) -> dict[str, str]:
    """Check every pinned hash of an entry and of its components.

    Returns:
        File to SHA-256, as pinned; empty where the registry pins nothing. Files of a component
        are called ``<part>:<file>``.

    Raises:
        StepError: the weights or one of their files are missing, or have another hash.
    """
    place = locate(weights)
    for name in weights.sha256:
        file = place / name if place.is_dir() else place
        if not file.is_file():
            raise StepError(f"weights {weights.name!r}: {file} is missing; fetch them again")
        _compare(weights, name, file, remembered_sha256(file))
    parts = {part: verify(entry) for part, entry in weights.components.items()}
    return dict(weights.sha256) | _prefixed(parts)


def content_hashes(weights: Weights) -> dict[str, str]:
    """SHA-256 of every weight and configuration file of an entry, whether pinned or not.

    Where the entry lists its files, others in the same folder do not count. Files of a component
    are called ``<part>:<file>``.

    Raises:
        StepError: the weights or one of their files are missing.
    """
    parts = {part: content_hashes(entry) for part, entry in weights.components.items()}
    own = {name: remembered_sha256(file) for name, file in files_of(weights).items()}
    return own | _prefixed(parts)


def verified_hashes(weights: Weights) -> dict[str, str]:
    """:func:`content_hashes`, checked against what the registry pins, in one pass.

    Raises:
        StepError: the weights or one of their files are missing, or have another hash.
    """
    files = files_of(weights)
    hashes = {name: remembered_sha256(file) for name, file in files.items()}
    for name in weights.sha256:
        if name not in files:
            raise StepError(f"weights {weights.name!r}: {name} is missing; fetch them again")
        _compare(weights, name, files[name], hashes[name])
    parts = {part: verified_hashes(entry) for part, entry in weights.components.items()}
    return hashes | _prefixed(parts)


def made_by(weights: Weights, preprocessing: str, **more: str) -> dict[str, str]:
    """Which network made some rows, and of what: their file's header, and what a reader expects.

    Args:
        weights: The network's entry.
        preprocessing: What it is shown, in words.
        more: What else of the making has to be the same.

    Raises:
        StepError: the weights are missing.
    """
    files = {} if weights.source == NO_WEIGHTS else content_hashes(weights)
    return {
        "architecture": weights.architecture,
        "options": json.dumps(weights.options, sort_keys=True),
        "weights_sha256": sha256_json(files) if files else "",
        "preprocessing": preprocessing,
        **more,
    }


def files_of(weights: Weights) -> dict[str, Path]:
    """An entry's own files by name. Raises StepError where one is missing."""
    place = locate(weights)
    if place.is_file():
        return {place.name: place}
    if not weights.files:
        found = sorted(file for file in place.rglob("*") if file.is_file())
        return {f.relative_to(place).as_posix(): f for f in found if f.suffix in HASHED}
    return {name: place / name for name in sorted(weights.files)}


def _compare(weights: Weights, name: str, file: Path, found: str) -> None:
    if found != weights.sha256[name].lower():
        raise StepError(
            f"weights {weights.name!r}: {file} has SHA-256 {found}, the registry says "
            f"{weights.sha256[name]}: fetch it again, or correct config/models.yaml"
        )


def _prefixed(parts: dict[str, dict[str, str]]) -> dict[str, str]:
    return {f"{part}:{name}": digest for part, of in parts.items() for name, digest in of.items()}


def _hub_cache(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = os.environ.get("HF_HUB_CACHE")  # the library itself reads it at its import only
    try:
        found = snapshot_download(
            repository, revision=revision, local_files_only=True, cache_dir=folder
        )
        return Path(found)
    except LocalEntryNotFoundError:
        return None
