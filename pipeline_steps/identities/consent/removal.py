"""Remove everything of one identity from a study's results.

What was made from all identities goes as a whole, since the next run makes it again; what keeps
a row per image for the next run loses the identity's rows only, so that nobody else's work is done
twice. Other identities' files are not touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_steps.identities.consent.search import (
    WRITTEN,
    Item,
    fingerprint,
    globs_of,
    notes,
    written_hashes,
)
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.naming import WILD
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import ARTEFACTS, People
from pipeline_steps.study.record import people_of
from pipeline_steps.study.store import twin

# Folders that are made at once, by the number of their path's parts: an image of several people, or
# a file of many images, does not tell whose they are, but what stands beside it does.
WHOLE = {"together": 3, "export": 4}
TEXTS = frozenset({".log", ".json", ".csv", ".md", ".txt", ".html", ".tsv", ".tex", ".svg", ""})


@dataclass(frozen=True)
class Removal:
    """One file that goes, or loses rows.

    Attributes:
        path: from the working folder.
        why: what it is.
        rewritten: only the identity's rows go.
        bytes: size before.
        fingerprint: of its hash before, see :func:`digests.fingerprint`.
    """

    path: str
    why: str
    rewritten: bool
    bytes: int
    fingerprint: str


def plan_removal(
    results: Path, items: Sequence[Item], identity: str, hashes: set[str]
) -> tuple[list[Removal], list[str]]:
    """What goes, and files that the project does not make and that do not name the identity.

    Args:
        results: the results folder.
        items: its inventory.
        identity: who.
        hashes: that stand for the identity.
    """
    counted = is_counted(results, identity)
    named = {
        folder
        for item in items
        if item.people is People.ALL
        and (folder := _whole(item))
        and _tells(results / item.path, True, identity, hashes)
    }
    going: list[Removal] = []
    unknown: list[str] = []
    for item in items:
        path = results / item.path
        if item.owner == identity:
            going.append(_removal(path, item.why))
        elif item.people is People.ROWS:
            if rows_kept(path, identity) is not None:
                going.append(_removal(path, item.why, rewritten=True))
        elif item.people is People.ALL:
            if counted or _whole(item) in named or _tells(path, False, identity, hashes):
                going.append(_removal(path, item.why))
        elif item.people is None:
            if _names(path, identity) or written_hashes(path) & hashes:
                going.append(_removal(path, f"{item.why}, but names {identity}"))
            else:
                unknown.append(path.as_posix())
    return going, unknown


def _whole(item: Item) -> Path | None:
    """The folder that goes as a whole with this item; None: it goes alone."""
    parts = Path(item.path).parts
    return Path(*parts[: WHOLE[parts[0]]]) if parts[0] in WHOLE else None


def _tells(path: Path, whole: bool, identity: str, hashes: set[str]) -> bool:
    """Whether a file of all people says that it holds something of the identity.

    A manifest, a table or a log may also say that the identity is left out.
    """
    if written_hashes(path) & hashes:
        return True
    if whole and _names(path, identity):
        return True
    try:
        return (whole or path.suffix == ".safetensors") and identity in people_of(path)
    except (StepError, ValueError):  # a broken file may hold anything, and is made again
        return True


def plan_notes(results: Path, identity: str, hashes: set[str], root: Path) -> list[Removal]:
    """Snakemake's notes about this study that name the identity or one of its hashes."""
    study = f"{results.as_posix()}/".encode()
    return [
        _removal(path, "the workflow's note on a job")
        for path in notes(root)
        if written_hashes(path) & hashes or (study in path.read_bytes() and _names(path, identity))
    ]


def is_counted(results: Path, identity: str) -> bool:
    """Whether an image of the identity is in what all identities' results were made from."""
    from pipeline_steps.io.manifests import read_manifest  # pandas loads slowly

    for name in ("manifest", "samples", "samples_of_share", "aligned"):
        for path in (
            path for glob in globs_of(ARTEFACTS[name].path) for path in results.glob(glob)
        ):
            if path.parent.name == WILD:
                continue
            try:
                frame = read_manifest(path, ["identity"])
            except StepError:  # a broken table may hold anything
                return True
            mine = frame[frame["identity"] == identity]
            if len(mine) and ("sha256" not in mine or mine["sha256"].notna().any()):
                return True
    return False


def carry_out(removals: Iterable[Removal], results: Path, identity: str, root: Path) -> None:
    """Remove the files, or rows of them, and folders that are empty then."""
    for removal in removals:
        path = root / removal.path
        if removal.rewritten:
            drop_rows(path, identity)
            continue
        if path.suffix == ".safetensors" and path.parent.parts[-2:] and "features" in path.parts:
            keep_for_the_next_run(path, identity)
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == results or results not in folder.parents or any(folder.iterdir()):
                break
            folder.rmdir()


def rows_kept(path: Path, identity: str) -> list[int] | None:
    """Rows of a feature file that are not the identity's; None where none is the identity's."""
    try:
        files = load_features(path).files
    except StepError:
        return []
    rows = [row for row, file in enumerate(files) if file.split("/", 1)[0] != identity]
    return None if len(rows) == len(files) else rows


def drop_rows(path: Path, identity: str) -> None:
    """Rewrite a store of features without the identity's rows; a broken or empty one goes."""
    rows = rows_kept(path, identity)
    if rows is None:
        return
    if not rows:
        path.unlink(missing_ok=True)
        return
    _copy_rows(path, path, rows)


def keep_for_the_next_run(path: Path, identity: str) -> None:
    """Before a feature file goes: see to it that its store has the other identities' rows."""
    if path.name.startswith(".") or twin(path).is_file():
        return
    rows = rows_kept(path, identity)
    if rows:
        _copy_rows(path, twin(path), rows)


def _copy_rows(source: Path, target: Path, rows: Sequence[int]) -> None:
    found = load_features(source)
    metadata = dict(found.metadata)
    for key in ("images", "sources"):
        values = json.loads(metadata.get(key, "[]"))
        metadata[key] = json.dumps([values[row] for row in rows] if values else [])
    features = np.ascontiguousarray(found.features[list(rows)])
    save_features(target, features, [found.files[row] for row in rows], **metadata)


def _names(path: Path, identity: str) -> bool:
    """Whether a text or a file's path names the identity as a whole word."""
    word = re.compile(rf"(?<![\w-]){re.escape(identity)}(?![\w-])")
    if word.search(path.as_posix()):
        return True
    return path.suffix in TEXTS and bool(
        word.search(WRITTEN.sub(b"", path.read_bytes()).decode("utf-8", "replace"))
    )


def _removal(path: Path, why: str, *, rewritten: bool = False) -> Removal:
    digest = sha256_file(path) if path.exists() else ""
    size = path.lstat().st_size
    return Removal(path.as_posix(), why, rewritten, size, fingerprint(digest) if digest else "")
