"""Fetch the archives of photographs from the database's own page, once its terms are accepted.

In:  a study's configuration, section fetch_dataset.
Out: the archives where that section says. Whole archives that are there are left alone; a broken
     download goes on where it stopped. The hash of each archive is printed, to be pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline_steps.identities.containers import contents_of
from pipeline_steps.io.download import download
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.photographs import FetchDatasetSettings
from pipeline_steps.study.settings.study import read_configs, read_study


def run(*, study: Sequence[Path]) -> None:
    """Fetch the archives that a study names.

    Args:
        study: Study configuration (YAML); of several the later ones win, key by key.

    Raises:
        StepError: see :func:`fetch`.
    """
    fetch(read_study(read_configs(study), str(study[0])).fetch_dataset)


def fetch(settings: FetchDatasetSettings, root: Path = Path()) -> list[Path]:
    """Fetch the archives that are not there, or not whole, below the working folder ``root``.

    Returns:
        The archives that were fetched.

    Raises:
        StepError: the terms are not accepted, an address fails, or what it gave is no archive.
    """
    log = get_logger("fetch_dataset")
    log.info("terms: %s", settings.terms)
    if not settings.accept_terms:
        raise StepError(
            f"the terms of the photographs are not accepted ({settings.terms}): read them, then "
            "write fetch_dataset: {accept_terms: true} into the study"
        )
    fetched = []
    for place, url in settings.archives.items():
        target = root / place
        expected = settings.sha256.get(place)
        if is_whole(target, expected):
            log.info("%s is there", target)
            continue
        download(url, target, expected)
        broken = contents_of(target).broken
        if broken:
            target.unlink()
            raise StepError(f"{url} gave {broken}: thrown away; look at the page in a browser")
        log.info("%s, SHA-256 %s", target, sha256_file(target))
        fetched.append(target)
    return fetched


def is_whole(archive: Path, sha256: str | None) -> bool:
    """Whether an archive is there and complete, and has the hash if one is known."""
    if not archive.is_file() or contents_of(archive).broken:
        return False
    return sha256 is None or sha256_file(archive) == sha256.lower()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
