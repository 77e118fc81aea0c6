"""Fetch the pretrained weights of a study, for machines without internet access.

In:  a study's configuration; config/models.yaml.
Out: resources/weights/<name>, or the same below $CONSENTED_FACES_WEIGHTS.

Licences are printed and have to be accepted in the study's configuration (accept_licences). What
is there and has the right hash is left alone; what is cut off goes on where it stopped. Hub sources
are fetched from $HF_ENDPOINT, or https://huggingface.co; packages by pip, from its index.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.parse import quote

import tyro

from pipeline_steps.io.download import ARCHIVES, download, download_package, extract
from pipeline_steps.io.formats import why_unlike
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tables import aligned_columns
from pipeline_steps.io.weights import (
    NO_WEIGHTS,
    PROJECT_ROOT,
    Weights,
    absent_files,
    expected_place,
    found_place,
    how_to_get,
    source_kind,
)
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.registry import needed_weights, once, pick, read_models, require_licences
from pipeline_steps.study.settings.study import Study, read_configs, read_study

REGISTRY = PROJECT_ROOT / "config" / "models.yaml"
HUB = "https://huggingface.co"
LEAST = 0.5  # of the size that the registry says, about

log = get_logger("fetch_models")


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    study: Sequence[Path] = (),
    models: Path = REGISTRY,
    listing: Annotated[bool, tyro.conf.arg(name="list")] = False,
) -> None:
    """Fetch entries of the weights registry, or list them.

    Args:
        names: Entries; default: all that the study needs.
        study: Study configuration (YAML), which says what is accepted; of several the later ones
            win, key by key. Only listing does without.
        models: Weights registry.
        listing: Print a table, fetch nothing.

    Raises:
        StepError: there is no entry of a name, no study is given, or see :func:`fetch_all`.
    """
    registry = read_models(models)
    chosen = None
    if study:
        chosen = read_study(read_configs(study), ", ".join(map(str, study)))
    entries = list(registry.values()) if chosen is None else needed_weights(chosen, registry)
    if names:
        named = [pick(registry, name, "fetch_models") for name in names]
        entries = once(part for entry in named for part in entry.with_components())
    if listing:
        print("\n".join(table(entries)))
        for entry in entries:
            if absent_files(entry) and not remote_sources(entry):
                print(f"{entry.name}: {how_to_get(entry)}")
        return
    if chosen is None:
        raise StepError("--study is missing: a study's configuration says what is accepted")
    fetched = fetch_all(chosen, entries)
    there = len(entries) - len(fetched)
    print(f"fetched {len(fetched)}, already there {there}", file=sys.stderr)


def fetch_all(study: Study, entries: Sequence[Weights]) -> list[str]:
    """Fetch what is not there.

    Args:
        study: Says which licences are accepted.
        entries: What to fetch.

    Returns:
        Names of the entries that were fetched.

    Raises:
        StepError: a licence is not accepted (nothing is fetched then), a source fails, or some
            entries can be fetched by hand only (all others are there then).
    """
    for licence, names in by_licence(entries).items():
        log.info("licence: %s: %s", licence, ", ".join(names))
    require_licences(study, entries)
    fetched = []
    for entry in entries:
        if remote_sources(entry) and unfit_files(entry):
            fetch(entry)
            fetched.append(entry.name)
    # Asked last: an entry may lie where another one was fetched to.
    by_hand = [entry for entry in entries if not remote_sources(entry) and unfit_files(entry)]
    if by_hand:
        listed = "; ".join(f"{entry.name}: {how_to_get(entry)}" for entry in by_hand)
        raise StepError(f"no address to fetch these from: {listed}")
    return fetched


def fetch(entry: Weights) -> None:
    """Fetch an entry from the first of its sources that has it.

    Raises:
        StepError: none has; the message has every source's reason.
    """
    reasons = []
    for source in remote_sources(entry):
        log.info("%s from %s", entry.name, source)
        try:
            fetch_from(entry, source)
            return
        except StepError as error:
            log.warning("%s", error)
            reasons.append(str(error))
    raise StepError(f"weights {entry.name!r} were not fetched: {'; '.join(reasons)}")


def fetch_from(entry: Weights, source: str) -> None:
    """Fetch what is missing or unfit of an entry from one source.

    Raises:
        StepError: the source fails, or its list of files is unknown.
    """
    kind, place = source_kind(source)
    target = expected_place(entry)
    if kind == "hub":
        if not entry.files:
            raise StepError(
                f"weights {entry.name!r}: list the needed files of {source} under `files` in "
                f"config/models.yaml, or fetch the folder by `hf download {place}`"
            )
        revision = entry.revision if source == entry.source and entry.revision else "main"
        for name in _unfit(entry, {name: target / name for name in entry.files}):
            url = f"{hub()}/{quote(place)}/resolve/{quote(revision)}/{quote(name)}"
            download(url, target / name, entry.sha256.get(name), partial(why_unlike, name=name))
        return
    name = target.name
    if kind == "url" and not place.endswith(ARCHIVES):
        download(place, target, entry.sha256.get(name), partial(_why_unlike, entry))
        return
    folder = target if len(entry.files) > 1 else target.parent
    hashes = {name: entry.sha256.get(name) for name in entry.files}
    if kind == "pypi":
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            extract(download_package(place, Path(temporary)), folder, hashes, why_unlike)
        return
    archive = folder / place.rpartition("/")[2]
    download(place, archive)
    try:
        extract(archive, folder, hashes, why_unlike)
    finally:
        archive.unlink()


def _why_unlike(entry: Weights, path: Path) -> str:
    """As :func:`why_unlike`, of an entry's only file, which is about as large as it should be."""
    size = path.stat().st_size
    if size < LEAST * (entry.size or 0):
        return f"{size} bytes, where {entry.size} were expected"
    return why_unlike(path, expected_place(entry).name)


def unfit_files(entry: Weights) -> list[str]:
    """Files of an entry that are missing, have another hash than the pinned one, or without one
    cannot be what their names say."""
    if entry.source == NO_WEIGHTS:
        return []
    absent = absent_files(entry)
    place = found_place(entry)
    if place is None or (absent and not entry.files):
        return absent
    names = {*entry.files, *entry.sha256}
    return _unfit(entry, {name: place / name if place.is_dir() else place for name in names})


def _unfit(entry: Weights, files: Mapping[str, Path]) -> list[str]:
    """Names of those of the files, see :func:`unfit_files`."""
    return [
        name
        for name, file in files.items()
        for pinned in [entry.sha256.get(name)]
        if not file.is_file()
        or (sha256_file(file) != pinned.lower() if pinned else why_unlike(file, file.name) != "")
    ]


def remote_sources(entry: Weights) -> list[str]:
    """Sources of an entry that can be fetched from, in the registry's order."""
    sources = (entry.source, *entry.mirrors)
    return [source for source in sources if source_kind(source)[0] != "local"]


def hub() -> str:
    """Address of the hub, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def by_licence(entries: Sequence[Weights]) -> dict[str, list[str]]:
    """Licence, with whether it allows commercial use, to the names of its entries."""
    result: dict[str, list[str]] = {}
    for entry in entries:
        use = "commercial use allowed" if entry.commercial_use else "no commercial use"
        result.setdefault(f"{entry.licence} ({use})", []).append(entry.name)
    return result


def table(entries: Sequence[Weights]) -> list[str]:
    """What each entry is, where it comes from and whether it is there, in columns."""
    rows = [("name", "for", "there", "GB", "commercial", "licence", "source")]
    for entry in entries:
        absent = absent_files(entry)
        whole = not absent or (entry.files and len(absent) < len(entry.files))
        there = "yes" if not absent else f"lacks {len(absent)} files" if whole else "no"
        size = f"{entry.size / 1e9:.1f}" if entry.size else "-"
        use = "yes" if entry.commercial_use else "no"
        rows.append((entry.name, entry.task, there, size, use, entry.licence, entry.source))
    return aligned_columns(rows)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
