"""The rows of every table, from the images of a study."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline_steps.study.artefacts import fields_of, record_place
from recomputed import intervals, pairs, sets
from recomputed.audit import audit_row, consented
from recomputed.sources import benchmark_distances
from recomputed.study import NAMES, Study

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
ROLES = ("frechet", "cmmd", "prdc", "face_quality", "prompt")
KEYS = {
    "quality": (*NAMES, "reference"),
    "identity": (*NAMES, "versus", "recogniser"),
    "pose": NAMES,
    "recognition": ("trained_on", "seed", "benchmark"),
    "comparison": (*NAMES[::2], "versus", "recogniser", "metric", "method", "minus_method"),
    "audit": NAMES,
}


def source_columns(name: str) -> Row:
    """What names a set in the tables."""
    return dict(zip(NAMES, [*name.split("/"), "-", "-"], strict=False))


def quality_rows(study: Study) -> list[Row]:
    """Rows of quality.csv."""
    frozen = study.config("score", "quality")
    settings, seed = frozen["settings"]["quality"], frozen["seed"]
    rows = []
    for name in study.sets:
        for reference in study.references:
            a, b = study.sets[reference], study.sets[name]
            sizes = len(b.files), len(a.files)
            real, synthetic = sets.compared(seed, settings, name, reference, *sizes)
            row = source_columns(name) | {"reference": reference}
            rows.append(row)
            if len(real) * len(synthetic) > study.largest:
                study.left_out.append(f"quality of {name} versus {reference}")
                continue
            numbers = sets.Compared(
                lambda extractor, name=name, reference=reference: (  # type: ignore[misc]
                    study.features(reference, extractor),
                    study.features(name, extractor),
                ),
                (real, synthetic),
                (a.people, b.people),
                settings,
                partial(intervals.generator, seed, "score", reference),
            )
            row |= {"n_synthetic": len(synthetic), "n_real": len(real)}
            row |= {column: number(numbers) for column, number in sets.QUALITY.items()}
            if study.intervals:
                row["fid_low"], row["fid_high"] = sets.frechet_limits(numbers)
            row["extractors"] = " ".join(
                f"{role}={settings[f'{role}_extractor']}" for role in ROLES
            )
    return rows


def identity_rows(study: Study) -> tuple[list[Row], dict[tuple[str, ...], tuple[int, Array]]]:
    """Rows of identity.csv, and the bootstrap draws behind comparison.csv."""
    frozen = study.config("score", "identity")
    settings, seed = frozen["settings"]["identity"], frozen["seed"]
    rows, draws = [], {}
    for name in [*study.variants, "real"]:
        shared = set(study.sets[name].people) & set(study.sets["real"].people)
        opponents = ("real", "synthetic") if shared else ("synthetic",)
        for recogniser in settings["recognisers"]:
            for versus in ("real",) if name == "real" else opponents:
                probes, people = study.features(name, recogniser), study.sets[name].people
                between = name != "real" and versus == "real"
                gallery = study.features("real", recogniser) if between else None
                others = study.sets["real"].people if between else people
                names = source_columns(name) | {"versus": versus, "recogniser": recogniser}
                if len(probes) * len(others) > study.largest:
                    study.left_out.append(f"identity of {name} versus {versus}, {recogniser}")
                    rows.append(names)
                    continue
                scores, first, second = pairs.pairs(probes, people, gallery, others)
                which = pairs.chosen(
                    first,
                    second,
                    settings["impostors"],
                    intervals.generator(seed, "score", "impostors", versus, name),
                )
                row = names | pairs.rates(scores[which[0]], scores[which[1]])
                row["reference_distance"] = math.nan
                if gallery is not None:
                    row["reference_distance"] = pairs.to_mean(probes, people, gallery, others)
                if study.intervals:
                    rng = intervals.generator(seed, "score", "bootstrap", "identities")
                    n = len({*people, *others})
                    times = rng.multinomial(n, [1 / n] * n, size=settings["replicates"])
                    found = pairs.bootstrap(scores, first, second, *which, times)
                    draws[*names.values()] = n, found
                    row |= pairs.rate_limits(
                        scores, first, second, *which, settings["confidence"], rng
                    )
                rows.append(row)
    return rows, draws


def comparison_rows(
    study: Study, identity: list[Row], draws: dict[tuple[str, ...], tuple[int, Array]]
) -> list[Row]:
    """Rows of comparison.csv: every two fine-tuning methods of one setting."""
    level = study.config("tables")["settings"]["confidence"]
    by_key = {tuple(row[k] for k in KEYS["identity"]): row for row in identity}
    rows = []
    for told in pd.read_csv(study.table("comparison")).to_dict("records"):
        keys = [
            (told["base_model"], told[m], told["prompts"], told["versus"], told["recogniser"])
            for m in ("method", "minus_method")
        ]
        if any(key not in by_key or "eer" not in by_key[key] for key in keys):
            study.left_out.append(f"comparison of {keys[0]} with {keys[1]}")
            continue
        a, b = (by_key[key][told["metric"]] for key in keys)
        row = {key: told[key] for key in KEYS["comparison"]} | {"difference": a - b}
        if study.intervals:
            people = [_people(study, key) for key in keys]
            column = ("eer", "fdr", "genuine_mean").index(told["metric"])
            row["low"] = row["high"] = math.nan
            if people[0] == people[1]:
                (n, first), (_, second) = (draws[key] for key in keys)
                row["low"], row["high"] = intervals.expanded_percentiles(
                    first[:, column] - second[:, column], n, level
                )
        rows.append(row)
    within: dict[tuple[str, ...], set[str]] = {}
    for row in identity:
        if row["method"] not in ("untuned", "-"):
            setting = tuple(row[k] for k in ("base_model", "prompts", "versus", "recogniser"))
            within.setdefault(setting, set()).add(row["method"])
    expected = sum(3 * math.comb(len(methods), 2) for methods in within.values())
    if len(rows) != expected and not study.left_out:
        study.problems.append(f"comparison.csv has {len(rows)} rows, expected {expected}")
    return rows


def _people(study: Study, key: tuple[str, ...]) -> set[str]:
    """Whose images take part in a row of identity.csv."""
    own = set(study.sets["/".join(part for part in key[:3] if part != "-")].people)
    return own | set(study.sets["real"].people) if key[3] == "real" else own


def pose_rows(study: Study) -> list[Row]:
    """Rows of pose.csv."""
    extractor = study.config("score", "pose")["settings"]["pose"]["extractor"]
    rows = []
    for name in study.sets:
        values = study.features(name, extractor)
        spreads = [v.std(axis=0) for v in sets.per_person(values, study.sets[name].people).values()]
        row = source_columns(name) | {"n": len(values), "extractor": extractor}
        for index, angle in enumerate(("pitch", "yaw", "roll")):
            row[f"{angle}_mean"] = values[:, index].mean()
            row[f"{angle}_sd"] = values[:, index].std()
            row[f"{angle}_within_identity_sd"] = (
                sum(spread[index] for spread in spreads) / len(spreads) if spreads else math.nan
            )
        rows.append(row)
    return rows


def recognition_rows(study: Study) -> list[Row]:
    """Rows of recognition.csv."""
    folds = study.config("verify")["settings"]["folds"]
    rows = []
    everywhere = study.place("verification", trained_on="*", repetition="*")
    for results in sorted(study.root.glob(everywhere.relative_to(study.root).as_posix())):
        fields = fields_of(results, "verification")
        trained_on, seed = fields["trained_on"], int(fields["repetition"])
        settings = study.config("recognise", trained_on, f"seed{seed}")["settings"]
        model = study.place("recogniser", trained_on=trained_on, repetition=str(seed))
        split = 1 if trained_on.rpartition("+")[2].startswith("external-") else 2
        names = [*trained_on.rsplit("-", split), "-", "-"]
        for told in json.loads(record_place(results).read_text("utf-8"))["inputs"]:
            path = Path(told)
            if path.suffix != ".bin":
                continue
            distances, same = benchmark_distances(model, path)
            accuracies = pairs.fold_accuracies(distances, same, folds)
            low, high = pairs.accuracy_limits(accuracies, len(same))
            rows.append(
                {"trained_on": trained_on, "seed": seed, "benchmark": path.stem}
                | dict(zip(NAMES, names, strict=False))
                | {
                    "role": _role(path, settings["validation"]),
                    "accuracy": float(np.mean(accuracies)),
                    "accuracy_sd": float(np.std(accuracies)),
                    "n_pairs": len(same),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def _role(path: Path, validation: str) -> str:
    """Whether a benchmark chose the epoch, under this name or another, or tests."""
    place = Path(validation)
    digests = [hashlib.sha256(p.read_bytes()).digest() for p in (path, place) if p.is_file()]
    same = path.stem == place.stem or (len(digests) == 2 and digests[0] == digests[1])
    return "validation" if same else "test"


def audit_rows(study: Study) -> list[Row]:
    """Rows of audit.csv."""
    told = pd.read_csv(study.table("audit"))
    settings = study.config("audit")["settings"]
    if told.empty:
        return []
    recogniser = str(told["recogniser"].iloc[0])
    if recogniser != settings["recogniser"]:
        study.problems.append(f"audit.csv: {recogniser} judges, not {settings['recogniser']}")
    sizes = [len(images.files) * len(study.sets["real"].files) for images in study.sets.values()]
    if max(sizes) > study.largest:
        study.left_out.append("audit")
        return [source_columns(name) for name in study.variants]
    faces = {
        name: (images, study.features(name, recogniser)) for name, images in study.sets.items()
    }
    known = consented(settings, faces["real"], faces.get("wild"))
    return [
        source_columns(name) | {"recogniser": recogniser} | audit_row(settings, faces[name], known)
        for name in study.variants
    ]
