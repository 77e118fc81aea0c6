"""Where pretrained weights lie on this machine, and whether they are the ones that were named."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline_steps.files.errors import StepError
from pipeline_steps.files.hashes import sha256_file
from pipeline_steps.settings.base import Weights

FOLDER_VARIABLE = "CONSENTED_FACES_WEIGHTS"  # where fetched weights lie; see weights_folder
PROJECT_ROOT = Path(__file__).resolve().parents[2]


def weights_folder() -> Path:
    """Folder of fetched weights: ``$CONSENTED_FACES_WEIGHTS``, or ``resources/weights``."""
    return Path(os.environ.get(FOLDER_VARIABLE) or PROJECT_ROOT / "resources" / "weights")


def locate(weights: Weights) -> Path:
    """The local folder or file of a registry entry. Nothing is downloaded.

    A local source is looked up from the working folder, then from the project's root. A URL's file
    is expected as ``<weights folder>/<name>/<file>``. A hub source is expected as the folder
    ``<weights folder>/<name>`` or in the hub's own cache.

    Raises:
        StepError: it is not there; the message says where from and how to fetch it, and under
            which licence.
    """
    kind, place = _source(weights)
    if kind == "local":
        for candidate in (Path(place), PROJECT_ROOT / place):
            if candidate.exists():
                return candidate
        raise _absent(weights, Path(place), "put the file or folder there")
    if kind == "url":
        file = weights_folder() / weights.name / place.rpartition("/")[2]
        if file.is_file():
            return file
        raise _absent(weights, file, f"curl --location --create-dirs --output {file} {place}")
    folder = weights_folder() / weights.name
    if folder.is_dir():
        return folder
    cached = _hub_cache(place, weights.revision)
    if cached is not None:
        return cached
    revision = f" --revision {weights.revision}" if weights.revision else ""
    raise _absent(weights, folder, f"hf download {place}{revision} --local-dir {folder}")


def verify(weights: Weights) -> dict[str, str]:
    """Check every pinned hash of an entry.

    Returns:
        File to SHA-256, as pinned; empty where the registry pins nothing.

    Raises:
        StepError: the weights or one of their files are missing, or have another hash.
    """
    place = locate(weights)
    for name, expected in weights.sha256.items():
        file = place / name if place.is_dir() else place
        if not file.is_file():
            raise StepError(f"weights {weights.name!r}: {file} is missing; fetch them again")
        found = sha256_file(file)
        if found != expected.lower():
            raise StepError(
                f"weights {weights.name!r}: {file} has SHA-256 {found}, the registry says "
                f"{expected}: fetch it again, or correct config/models.yaml"
            )
    return dict(weights.sha256)


def content_hashes(weights: Weights) -> dict[str, str]:
    """SHA-256 of every weight and configuration file of an entry, whether pinned or not."""
    place = locate(weights)
    if place.is_file():
        return {place.name: sha256_file(place)}
    files = (file for file in place.rglob("*") if file.is_file())
    kept = (".safetensors", ".json", ".txt", ".pth", ".bin", ".model")
    return {
        file.relative_to(place).as_posix(): sha256_file(file)
        for file in sorted(files)
        if file.suffix in kept
    }


def _source(weights: Weights) -> tuple[str, str]:
    if weights.source.startswith("hub:"):
        return "hub", weights.source.removeprefix("hub:")
    if weights.source.startswith(("https://", "http://")):
        return "url", weights.source
    return "local", weights.source


def _hub_cache(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _absent(weights: Weights, place: Path, fetch: str) -> StepError:
    use = "allowed" if weights.commercial_use else "not allowed"
    return StepError(
        f"weights {weights.name!r} ({weights.task}) are not at {place}. Source: {weights.source}; "
        f"licence: {weights.licence} (commercial use {use}). To fetch them beforehand: {fetch}"
    )
