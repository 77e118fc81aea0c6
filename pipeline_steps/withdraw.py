"""Withdraw an identity from a study: remove all that was derived from that person.

In:  a study's configuration (--study), and whose consent ends (--identity).
Out: the table of people who have withdrawn (prepare.withdrawn; beside the photographs if the
     configuration says nothing), by which preparation never reads their photographs again;
     withdrawals/<study>/<identity>-<day>.json and .md: what was removed and why, who did it and
     when, what is outside this project's reach, and the result of a search afterwards.
     Removed are the identity's images, embeddings, weights, samples and crops, its rows in stores
     of features, and everything that was made from all identities: tables, figures, reports,
     recognisers, exports. The next run of the workflow makes these again, without the identity; no
     other identity is trained or sampled again.

The list names each file by the SHA-256 of its SHA-256, so that a file can be recognised by it
and yet no hash of the person's data stays behind. --verify searches again, by such a list.
--sweep removes what is left of identities that are no longer in dataset/identities.csv.
"""

from __future__ import annotations

import csv
import getpass
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline_steps.identities.consent.digests import fingerprint
from pipeline_steps.identities.consent.inventory import inventory, owners_in
from pipeline_steps.identities.consent.record import new_place, read_record, write_record
from pipeline_steps.identities.consent.removal import Removal, carry_out, plan_notes, plan_removal
from pipeline_steps.identities.consent.traces import (
    Hit,
    hashes_of_identity,
    photograph_hashes,
    search,
)
from pipeline_steps.identities.participants import identities_of_folders, read_withdrawn
from pipeline_steps.identities.photographs import list_photographs
from pipeline_steps.io.atomic import write_text
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.command_line import add_study, command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.run_lock import claim_run, release_run
from pipeline_steps.study.command import run_main
from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.study import read_configs

WITHDRAWN = "consent withdrawn"
GONE = "no longer among the study's identities"


def run(
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
    table = Path(plan.results) / "dataset" / "identities.csv"
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            present = {row["identity"] for row in csv.DictReader(stream)}
    except (OSError, KeyError) as error:
        raise StepError(f"{table} is missing or broken: run the workflow first") from error
    return sorted(owners_in(Path(plan.results)) - present, key=natural_key)


def known_identities(plan: Plan) -> set[str]:
    """Everybody who is, or was, in the study: by its results, its sources, and who withdrew."""
    prepare = plan.study.prepare
    found = owners_in(Path(plan.results)) | read_withdrawn(Path(prepare.withdrawn_table))
    folders = set()
    for source in prepare.sources:
        try:
            listing = list_photographs(Path(source), salvage=True)
        except StepError:
            continue
        folders |= {item.folder for item in listing.photographs if item.folder}
    return found | set(identities_of_folders(sorted(folders)).values())


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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("withdraw", __doc__)
    add_study(parser, default=Path("config/demo.yaml"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--identity", help="whose consent ends, e.g. ID_7")
    what.add_argument("--sweep", action="store_true", help="remove what left the identity table")
    what.add_argument("--verify", type=Path, metavar="LIST", help="search again by a list (JSON)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would go")
    parser.add_argument("--by", default=None, help="who does it; default: the user's login name")
    arguments = parser.parse_args(argv)
    plan = make_plan(read_configs(arguments.study), ", ".join(map(str, arguments.study)))
    if arguments.verify is not None:
        return 1 if verify(plan, arguments.verify) else 0
    if arguments.sweep:
        identities, reason = leftovers(plan), GONE
    else:
        identities, reason = [arguments.identity], WITHDRAWN
        known = known_identities(plan)
        if arguments.identity not in known:
            listed = ", ".join(sorted(known, key=natural_key)) or "none"
            raise StepError(
                f"{arguments.identity!r} is no identity of study {plan.study.name}; there are "
                f"{listed}"
            )
    if not arguments.dry_run:
        claim_run(plan.results)
    for identity in identities:
        run(
            plan,
            identity,
            by=arguments.by or getpass.getuser(),
            dry_run=arguments.dry_run,
            reason=reason,
        )
    release_run()
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
