"""What a study needs and this machine lacks: data, weights, licences, disk, memory, executor."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline_steps.io.formats import why_unlike
from pipeline_steps.io.weights import NO_WEIGHTS, Weights, files_of
from pipeline_steps.preflight.data import Missing, missing_data, unfit_data
from pipeline_steps.runtime.lease import candidate_gpus
from pipeline_steps.study.plan import Plan
from pipeline_steps.study.registry import missing_weights, needed_weights, unaccepted

# One identity at a time, in bytes; estimates. More identities at once are faster.
AGAIN = "remove it, then get it again"
GPU_MEMORY = {"stable-diffusion@512": 10e9, "stable-diffusion-xl@1024": 24e9}


def missing_of(
    plan: Plan, *, root: Path = Path(), disk_left: float = 0.0, profile: Path | None = None
) -> list[Missing]:
    """Everything that a study lacks, each thing once.

    Args:
        plan: the study.
        root: the working folder.
        disk_left: bytes that the study still has to write.
        profile: the workflow profile that it will run with; None for this machine.
    """
    return [
        *missing_data(plan, root),
        *unfit_data(plan, root),
        *missing_models(plan),
        *missing_licences(plan),
        *missing_disk(root, disk_left),
        *(missing_memory(plan) if profile is None else missing_executor(profile)),
    ]


def missing_models(plan: Plan) -> list[Missing]:
    """Weights that are not there, or whose files cannot be what their names say."""
    lacking = missing_weights(plan.study, plan.models)
    absent = {item.name for item in lacking}
    there = [one for one in needed_weights(plan.study, plan.models) if one.name not in absent]
    unfit = [
        Missing(f"weights {entry.name} ({entry.task})", str(file), how=f"{why}: {AGAIN}")
        for entry in there
        if entry.source != NO_WEIGHTS
        for name, file in files_of(entry).items()
        if name not in entry.sha256 and (why := why_unlike(file, name))
    ]
    return unfit + [
        Missing(
            f"weights {item.name} ({item.task})",
            str(item.place),
            item.source,
            size_text(item.size),
            item.licence,
            item.how,
        )
        for item in lacking
    ]


def missing_licences(plan: Plan, entries: Iterable[Weights] | None = None) -> list[Missing]:
    """Licences of weights that the study has not accepted, each with what it is for."""
    needed = needed_weights(plan.study, plan.models) if entries is None else entries
    by_licence: dict[str, list[Weights]] = {}
    for entry in unaccepted(plan.study, needed):
        by_licence.setdefault(entry.licence, []).append(entry)
    return [
        Missing(
            f"acceptance of the licence {licence!r}",
            ", ".join(entry.name for entry in of),
            source=", ".join(dict.fromkeys(entry.page for entry in of if entry.page)),
            how=f"read it, then add {licence!r} to accept_licences of the study",
        )
        for licence, of in by_licence.items()
    ]


def missing_disk(root: Path, needed: float) -> list[Missing]:
    """Disk space, where less is free than the study still writes."""
    free = shutil.disk_usage(root).free
    if free >= needed:
        return []
    what = f"disk space: {size_text(needed)} needed, {size_text(free)} free"
    return [Missing(what, str(root.resolve()), how="make room, or run in another folder")]


def missing_memory(plan: Plan) -> list[Missing]:
    """GPU memory of this machine, where it has cards and the smallest is too small."""
    cards = gpu_memories()
    found = []
    for name in plan.study.base_models if cards else ():
        entry = plan.models[name]
        need = GPU_MEMORY.get(f"{entry.architecture}@{entry.options.get('resolution')}", 0.0)
        if min(cards) < need:
            what = (
                f"GPU memory for {name}: {size_text(need)} (estimate), {size_text(min(cards))} here"
            )
            found.append(Missing(what, "the smallest card", how="use a larger card"))
    return found


def gpu_memories() -> list[float]:
    """Bytes of every card of this machine; empty without cards."""
    program = shutil.which("nvidia-smi")
    if program is None or not candidate_gpus():
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = listed.stdout.split() if listed.returncode == 0 else []
    return [float(line) * 2**20 for line in lines if line.replace(".", "").isdecimal()]


def missing_executor(profile: Path) -> list[Missing]:
    """What a workflow profile needs: its file, its scheduler, and names instead of placeholders."""
    file = profile / "config.yaml"
    if not file.is_file():
        return [Missing("workflow profile", str(file), how="pass the folder of a profile")]
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    found = []
    if settings.get("executor") == "slurm" and shutil.which("sbatch") is None:
        how = "start from a login node of the cluster, or without --profile"
        found.append(Missing("SLURM's sbatch", "PATH", how=how))
    defaults = settings.get("default-resources") or {}
    for key, value in defaults.items():
        if str(value).startswith("your_"):
            found.append(Missing(f"{key} of the cluster", str(file), how="write yours there"))
    return found


def size_text(size: float | None) -> str:
    """Bytes for people: 1.3 GB."""
    if size is None:
        return "size not known"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
