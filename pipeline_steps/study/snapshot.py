"""One plan for all processes of a workflow, and what shows Snakemake that contents have changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import json_text, write_text
from pipeline_steps.io.hashes import folder_listing, remembered_sha256, sha256_bytes
from pipeline_steps.io.weights import Weights
from pipeline_steps.study.plan import Plan, is_rendered, make_plan
from pipeline_steps.study.settings.base import validated
from pipeline_steps.study.settings.sampling import PromptSet
from pipeline_steps.study.settings.study import read_configs, read_study

SNAPSHOT_VARIABLE = "CONSENTED_FACES_STUDY"  # path of the plan that the running workflow follows
SNAPSHOTS = Path(".snakemake") / "studies"
MARKERS = Path(".snakemake") / "frozen"
KEPT = Path(".snakemake") / "configurations"  # every frozen configuration that was, by its hash
LISTINGS = Path(".snakemake") / "listings"
LONG_AGO = 1.0  # seconds since 1970


def open_plan(config: Mapping[str, Any], configfiles: Sequence[Any], *, main: bool) -> Plan:
    """The plan of a workflow: made in its main process, the same in all its jobs.

    The main process writes a snapshot under a name that is its content's hash, so nothing ever
    changes under a job's feet, and tells it to jobs by an environment variable.

    Args:
        config: The merged configuration.
        configfiles: Files it came from.
        main: Whether this is the workflow's main process.

    Raises:
        StepError: as :func:`make_plan`, or a key stands twice in one of the files.
    """
    snapshot = os.environ.get(SNAPSHOT_VARIABLE)
    if not main and snapshot:
        return read_plan(Path(snapshot).read_text(encoding="utf-8"))
    read_configs([Path(path) for path in configfiles])  # what Snakemake's own reader lets pass
    plan = make_plan(config, ", ".join(map(str, configfiles)) or "configuration")
    text = plan_text(plan)
    path = SNAPSHOTS / f"{sha256_bytes(text.encode())[:16]}.json"
    if not path.is_file():
        write_text(path, text)
    os.environ[SNAPSHOT_VARIABLE] = str(path.resolve())
    mark_changes(plan)
    write_listings(plan)
    return plan


def mark_changes(plan: Plan) -> None:
    """Make a marker for every frozen configuration, new where the file's content has to change.

    The rule that writes the files has its marker as input, so it runs where the marker is newer.
    That holds by content alone: also where the workflow's notes on earlier runs are gone.
    """
    for name, text in plan.frozen.items():
        frozen, marker = Path(name), MARKERS / name
        same = frozen.is_file() and frozen.read_text(encoding="utf-8") == text
        if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
            write_text(marker, text)
            write_text(KEPT / f"{sha256_bytes(text.encode())}.json", text)
        os.utime(marker, (LONG_AGO, LONG_AGO) if same else None)


def listing_of(path: str) -> Path:
    """Where the listing of a file or folder lies."""
    return LISTINGS / f"{sha256_bytes(path.encode())[:16]}.json"


def listed(path: str) -> str:
    """What a rule takes in where a study names a file or a folder: of a folder its listing."""
    return listing_of(path).as_posix() if Path(path).is_dir() else path


def write_listings(plan: Plan) -> None:
    """Write the listing of all files and folders that a study names, where contents have changed.

    Snakemake itself looks at a folder's own time alone, not at the files below it, and at a file's
    content only where it is newer than what was made of it: see `reruns.compare_contents`.
    """
    for path in {*plan.put_in, *plan.withdrawn}:
        listing = listing_of(path)
        if Path(path).is_dir():
            text = json_text({"folder": path, **folder_listing(path)})
        elif Path(path).is_file() and not is_rendered(path):
            text = json_text({"file": path, "sha256": remembered_sha256(path)})
        else:
            continue
        if not listing.is_file() or listing.read_text(encoding="utf-8") != text:
            new = not listing.is_file()
            write_text(listing, text)
            if new and Path(path).is_file():  # nothing tells that it has changed
                os.utime(listing, (Path(path).stat().st_mtime,) * 2)


def noted_contents(plan: Plan) -> dict[str, tuple[float, str]]:
    """Files that come from outside: since when they have their content, and its hash."""
    found = {}
    for path in {*plan.put_in, *plan.withdrawn}:
        listing = listing_of(path)
        if listed(path) == path and listing.is_file():
            content = json.loads(listing.read_text(encoding="utf-8"))
            found[path] = listing.stat().st_mtime, content["sha256"]
    return found


def plan_text(plan: Plan) -> str:
    """A plan as canonical JSON."""
    return json_text(
        {
            "study": plan.study.model_dump(mode="json"),
            "models": {name: entry.model_dump(mode="json") for name, entry in plan.models.items()},
            "prompt_sets": {
                name: entry.model_dump(mode="json") for name, entry in plan.prompt_sets.items()
            },
        }
    )


def read_plan(text: str) -> Plan:
    """The plan that :func:`plan_text` wrote."""
    raw = json.loads(text)
    return Plan(
        read_study(raw["study"], "snapshot"),
        {name: validated(Weights, entry, name) for name, entry in raw["models"].items()},
        {name: validated(PromptSet, entry, name) for name, entry in raw["prompt_sets"].items()},
    )
