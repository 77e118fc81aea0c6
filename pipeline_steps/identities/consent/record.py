"""The signed-off list of what was removed: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json, write_text
from pipeline_steps.io.hashes import sha256_json
from pipeline_steps.runtime.errors import StepError

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
