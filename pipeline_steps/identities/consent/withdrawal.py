"""Withdrawal of one identity: what goes, the list of it, and the search afterwards.

The list names each file by the SHA-256 of its SHA-256, so that a file can be recognised by it and
yet no hash of the person's data stays behind.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline_steps.identities.candidates import (
    identities_of,
    list_sources,
    refused_places,
)
from pipeline_steps.identities.consent.removal import Removal, carry_out, plan_notes, plan_removal
from pipeline_steps.identities.consent.search import (
    Hit,
    fingerprint,
    hashes_of_identity,
    inventory,
    owners_in,
    photograph_hashes,
    search,
)
from pipeline_steps.identities.participants import (
    fold,
    read_participants,
    read_withdrawn,
    refused_of,
)
from pipeline_steps.io.atomic import write_json, write_text
from pipeline_steps.io.hashes import sha256_json
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.study.plan import Plan

WITHDRAWN = "consent withdrawn"
GONE = "no longer among the study's identities"


def withdraw(
    plan: Plan, identity: str, *, by: str, dry_run: bool = False, reason: str = WITHDRAWN
) -> Path | None:
    """Withdraw one identity.

    Args:
        plan: the study; paths are from the working folder.
        identity: who.
        by: who does it.
        dry_run: only list what would go.
        reason: goes into the list; the identity is noted as withdrawn where it is WITHDRAWN.

    Returns:
        The list that was written; None where there was nothing to remove, or on a dry run.

    Raises:
        StepError: the study has no such identity, its configuration names it, or some of its
            hashes are still found afterwards.
    """
    results, log = Path(plan.results), get_logger("withdraw")
    if identity in plan.study.figures.identities:
        raise StepError(
            f"figures.identities of study {plan.study.name} names {identity}: take it out there "
            "first"
        )
    items = inventory(results) if results.is_dir() else []
    hashes = hashes_of_identity(results, items, identity)
    photographs, unread = photograph_hashes(plan.study.prepare, identity)
    hashes |= photographs
    for source in unread:
        log.warning("%s cannot be read: hashes of photographs in it are not searched for", source)
    removals, unknown = plan_removal(results, items, identity, hashes)
    removals += plan_notes(results, identity, hashes, Path())
    if dry_run:
        for removal in removals:
            print(f"{'rewrite' if removal.rewritten else 'remove '}  {removal.path}")
        print(f"{len(removals)} files of or with {identity}; nothing was changed")
        return None
    if reason == WITHDRAWN:
        note_withdrawn(Path(plan.study.prepare.withdrawn_table), identity)
    if not removals:
        log.info("nothing of %s is left in %s", identity, results)
        return None
    now = datetime.now(UTC)
    record: dict[str, Any] = {
        "study": plan.study.name,
        "identity": identity,
        "when": now.isoformat(timespec="seconds"),
        "by": by,
        "reason": reason,
        "removed": [_entry(removal) for removal in removals if not removal.rewritten],
        "rewritten": [_entry(removal) for removal in removals if removal.rewritten],
        "remaining": {
            "photographs": list(plan.study.prepare.sources),
            "exported": exported(results, removals),
            "unknown": unknown,
        },
        "hashes": sorted(map(fingerprint, hashes)),
        "verified": None,
    }
    place = new_place(plan.study.name, identity, now.date().isoformat())
    write_record(place, record)  # before anything goes, so that a crash leaves the list
    carry_out(removals, results, identity, Path())
    record["verified"] = verified(plan, record, place)
    write_record(place, record)
    hits = record["verified"]["hits"]
    if hits:
        names = ", ".join(sorted({hit["path"] for hit in hits})[:5])
        raise StepError(f"hashes of {identity} are still in {names}: see {place}, remove by hand")
    log.info("%d files removed or rewritten, no hash is left: %s", len(removals), place)
    return place


def verified(plan: Plan, record: dict[str, Any], *more: Path) -> dict[str, Any]:
    """Search for the hashes of a record; returns what goes under its key ``verified``."""
    table = Path(plan.study.prepare.withdrawn_table)
    places = [*more, *(path.with_suffix(".md") for path in more), table]
    places = [path for path in places if path.is_file()]
    # The list itself names fingerprints, which are no hashes of the identity's files.
    hits, files = search(Path(plan.results), record["hashes"], places)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
        "hits": [asdict(hit) for hit in hits],
    }


def verify(plan: Plan, path: Path) -> list[Hit]:
    """Search again for what a list says was removed.

    Raises:
        StepError: the list is none, was changed, or is another study's.
    """
    record = read_record(path)
    if record["study"] != plan.study.name:
        raise StepError(f"{path} is about study {record['study']}, not {plan.study.name}")
    found = verified(plan, record, path)
    kinds = {hit["fingerprint"] for hit in found["hits"]}
    print(
        f"{record['identity']}: {len(kinds)} of {len(record['hashes'])} hashes found in "
        f"{found['files']} files"
    )
    for hit in found["hits"]:
        print(f"  {hit['path']}")
    return [Hit(**hit) for hit in found["hits"]]


def leftovers(plan: Plan) -> list[str]:
    """Identities of whom files lie in the results, and who are not in the identity table.

    Raises:
        StepError: there is no identity table.
    """
    table = Path(plan.at("identities"))
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            present = {row["identity"] for row in csv.DictReader(stream)}
    except (OSError, KeyError) as error:
        raise StepError(f"{table} is missing or broken: run the workflow first") from error
    return sorted(owners_in(Path(plan.results)) - present, key=natural_key)


def known_identities(plan: Plan) -> set[str]:
    """Everybody who is, or was, in the study: by its results, its sources, and who withdrew."""
    prepare = plan.study.prepare
    found = owners_in(Path(plan.results)) | {*read_withdrawn(Path(prepare.withdrawn_table))}
    for source in prepare.sources:
        alone = prepare.model_copy(update={"sources": (source,), "on_broken_source": "salvage"})
        try:
            found |= {*filter(None, identities_of(alone, list_sources(alone, {})).values())}
        except StepError:
            continue
    return found


def note_withdrawn(table: Path, identity: str) -> None:
    """Add an identity to the table of people who have withdrawn, once."""
    if identity in read_withdrawn(table):
        return
    columns, rows = ["identity", "withdrawn"], []
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or columns)
    names = {name.strip().lower(): name for name in columns}
    who = names.get("identity") or names.get("participant") or "identity"
    day = datetime.now(UTC).date().isoformat()
    rows.append({who: identity} | ({names["withdrawn"]: day} if "withdrawn" in names else {}))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, buffer.getvalue())


def exported(results: Path, removals: Sequence[Removal]) -> list[str]:
    """Folders of datasets that had been exported with the identity in them."""
    folder = results / "export"
    inside = [Path(item.path) for item in removals if folder in Path(item.path).parents]
    return sorted({Path(*path.parts[: len(folder.parts) + 3]).as_posix() for path in inside})


def _entry(removal: Removal) -> dict[str, Any]:
    return {key: value for key, value in asdict(removal).items() if key != "rewritten"}


def remove_refused(plan: Plan) -> list[str]:
    """Remove all results of identities whom the tables of consent refuse, with a list of it.

    Args:
        plan: the study; paths are from the working folder.

    Returns:
        The identities. Nobody where a table is broken: preparation, which reads it next, says so.
    """
    prepare = plan.study.prepare
    table = Path(prepare.gender_table) if prepare.gender_table else None
    present = owners_in(Path(plan.results))
    try:
        participants = read_participants(table) if present and table and table.is_file() else {}
        refused = refused_of(prepare, participants) if present else {}
        left = {name for name in present if fold(name) in map(fold, refused)}
        if refused:  # a table may also name a folder above those that name identities
            named = identities_of(prepare, list_sources(prepare, refused))
            without = refused_places(named, refused, prepare.participant_level)
            others = {owner for where, owner in named.items() if where not in without}
            left |= present.intersection(named[where] or "" for where in without) - others
    except StepError:
        return []
    if left:
        for identity in sorted(left):
            withdraw(plan, identity, by="the workflow", reason="consent is false in a table")
    return sorted(left)


FOLDER = Path("withdrawals")


def new_place(study: str, identity: str, day: str) -> Path:
    """Path of a new record: ``withdrawals/<study>/<identity>-<day>.json``, numbered if need be."""
    folder = FOLDER / study
    place = folder / f"{identity}-{day}.json"
    number = 1
    while place.exists():
        number += 1
        place = folder / f"{identity}-{day}-{number}.json"
    return place


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record with its own hash, and the same for people beside it."""
    whole = {**content, "sha256": sha256_json(dict(content))}
    write_json(path, whole)
    write_text(path.with_suffix(".md"), as_markdown(whole))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        StepError: it is missing, is none, or was changed after it was written.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        said = content.pop("sha256")
        _ = content["hashes"], content["study"], content["identity"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StepError(f"{path} is no record of a withdrawal ({error})") from error
    if sha256_json(content) != said:
        raise StepError(f"{path} was changed after it was written: its own hash does not fit")
    return content


def as_markdown(record: Mapping[str, Any]) -> str:
    """The record in words."""
    found = record["verified"]
    searched = (
        f"{found['files']} files were searched on {found['when']}: "
        f"{len({hit['fingerprint'] for hit in found['hits']})} of the identity's "
        f"{len(record['hashes'])} hashes found."
        if found
        else "Removal began and has not ended: run the step again."
    )
    lines = [
        f"# Withdrawal of {record['identity']} from {record['study']}",
        "",
        f"{record['when']}, by {record['by']}: {record['reason']}.",
        "",
        searched,
        "",
        f"## Removed: {len(record['removed'])} files",
        "",
        *_table(record["removed"]),
        "",
        f"## Rewritten without the identity's rows: {len(record['rewritten'])} files",
        "",
        *_table(record["rewritten"]),
        "",
        "## Outside the reach of this project",
        "",
        "Whoever keeps these has to act on them.",
        "",
    ]
    lines += [f"- photographs: {path}" for path in record["remaining"]["photographs"]]
    lines += [
        f"- {path}: was exported; copies that were given away have to be called back"
        for path in record["remaining"]["exported"]
    ]
    lines += [
        f"- {path}: not made by this project, does not name the identity, left as it is"
        for path in record["remaining"]["unknown"]
    ]
    lines += ["- backups, and reports made with `snakemake --report`", ""]
    lines += [f"SHA-256 of this list: {record['sha256']}", ""]
    return "\n".join(lines)


def _table(entries: list[dict[str, Any]]) -> list[str]:
    if not entries:
        return ["None."]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry["why"]].append(entry)
    lines = []
    for why, group in groups.items():
        lines += [f"### {why}", "", "| file | bytes | fingerprint |", "|---|---:|---|"]
        lines += [f"| {e['path']} | {e['bytes']} | `{e['fingerprint'][:16]}…` |" for e in group]
        lines.append("")
    return lines
