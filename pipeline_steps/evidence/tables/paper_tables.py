"""The paper's Tables 1 to 3, and the head-pose table, from the score tables.

ID-Booth (Tomasevic et al., FG 2025): Table 1 quality, Table 2 identity, Table 3 recognition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from pipeline_steps.evidence.report.findings import average_accuracy
from pipeline_steps.evidence.scores.scoring import ANGLES
from pipeline_steps.evidence.tables.further_tables import audit_tables, diversity_tables
from pipeline_steps.evidence.tables.grouping import (
    HEADS,
    LEGEND,
    record_of,
    set_sizes,
    sorted_groups,
)
from pipeline_steps.evidence.tables.judges import judge_note
from pipeline_steps.evidence.tables.layout import Column, Table, build_table, numbers
from pipeline_steps.evidence.tables.names import Names, order_key


def quality_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Table 1: quality, fidelity and diversity against each reference set."""
    extractors = dict(part.split("=", 1) for part in str(frame["extractors"].iloc[0]).split())
    references = sorted(frame["reference"].unique(), key=order_key)
    keys = ("fid", "fid_low", "fid_high", "cmmd", "precision", "recall")
    records = []
    for _, rows in sorted_groups(frame, ["base_model", "prompts", "method"]):
        values: dict[str, float] = {}
        for _, row in rows.iterrows():
            values |= numbers(row, keys, f"@{row['reference']}")
            values |= numbers(row, ("face_quality_mean", "face_quality_sd"))
        records.append(record_of(rows.iloc[0], names, values))
    columns = [
        *(
            Column(
                title,
                names(reference),
                f"{key}@{reference}",
                "lower" if key in ("fid", "cmmd") else "higher",
                low=f"fid_low@{reference}" if key == "fid" else "",
                high=f"fid_high@{reference}" if key == "fid" else "",
            )
            for title, key in (
                (_distance_title("FID", "inception_v3", extractors["frechet"], names), "fid"),
                (_distance_title("CMMD", "clip_l14_336", extractors["cmmd"], names), "cmmd"),
                ("Precision", "precision"),
                ("Recall", "recall"),
            )
            for reference in references
        ),
        Column(
            "CR-FIQA" if extractors["face_quality"] == "crfiqa" else "Face quality",
            "",
            "face_quality_mean",
            "higher",
            sd="face_quality_sd",
        ),
    ]
    caption = (
        "Quality, fidelity and diversity of the images. Extractors: Fréchet distance "
        f"{names(extractors['frechet'])}, MMD {names(extractors['cmmd'])}, precision and recall "
        f"{names(extractors['prdc'])}, face quality {names(extractors['face_quality'])}. "
        f"{set_sizes(frame)} {LEGEND}"
    )
    table = build_table("quality", caption, HEADS, columns, records)
    return [table, *diversity_tables(frame, names)]


def identity_tables(frame: pd.DataFrame, names: Names, guide: str = "") -> list[Table]:
    """Table 2: identity consistency and separability, one table per recogniser.

    Args:
        frame: rows of the identity table.
        names: display names.
        guide: the recogniser inside the identity losses, "" where no method has one.
    """
    columns = [
        Column("EER", "", "eer", "lower", low="eer_low", high="eer_high"),
        Column("FMR100", "", "fmr100", "lower"),
        Column("FMR1000", "", "fmr1000", "lower"),
        Column("Impostor µ ± σ", "", "impostor_mean", "lower", sd="impostor_sd"),
        Column("Genuine µ ± σ", "", "genuine_mean", "higher", sd="genuine_sd"),
        Column("FDR", "", "fdr", "higher", low="fdr_low", high="fdr_high"),
    ]
    keys = [key for c in columns for key in (c.value, c.sd, c.low, c.high) if key]
    tables = []
    recognisers = list(dict.fromkeys(frame["recogniser"]))
    for position, recogniser in enumerate(recognisers):
        records = [
            record_of(row, names, numbers(row, keys), versus=str(row["versus"]))
            for _, rows in sorted_groups(
                frame[frame["recogniser"] == recogniser],
                ["versus", "base_model", "prompts", "method"],
            )
            for _, row in rows.iterrows()
        ]
        caption = (
            "Identity consistency and separability, cosine similarity judged by "
            f"{names(recogniser)}{judge_note(str(recogniser), guide)}. {LEGEND}"
        )
        name = "identity" if position == 0 else f"identity_{recogniser}"
        tables.append(build_table(name, caption, ("Compared with", *HEADS), columns, records))
    return tables


def pose_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Head pose in degrees; a spread is neither good nor bad by itself, so nothing is marked."""
    columns = [
        column
        for angle in ANGLES
        for column in (
            Column(angle.capitalize(), "µ ± σ", f"{angle}_mean", digits=1, sd=f"{angle}_sd"),
            Column(angle.capitalize(), "σ per identity", f"{angle}_within_identity_sd", digits=1),
        )
    ]
    keys = [key for c in columns for key in (c.value, c.sd) if key]
    records = [
        record_of(rows.iloc[0], names, numbers(rows.iloc[0], keys))
        for _, rows in sorted_groups(frame, ["base_model", "prompts", "method"])
    ]
    caption = f"Head pose in degrees, estimated by {names(str(frame['extractor'].iloc[0]))}."
    return [build_table("pose", caption, HEADS, columns, records)]


def recognition_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Table 3: accuracy of recognisers trained on each set, averaged over seeds."""
    seeds = frame.groupby("trained_on")["seed"].nunique()
    several = bool(seeds.max() > 1)
    columns = []
    for role, direction_title in (("validation", "Validation"), ("test", "Accuracy")):
        for benchmark in sorted(
            frame.loc[frame["role"] == role, "benchmark"].unique(), key=order_key
        ):
            columns.append(
                Column(
                    direction_title,
                    names(benchmark),
                    f"{benchmark}@{role}",
                    "higher",
                    sd=f"{benchmark}@{role}_sd",
                )
            )
    columns.append(
        Column(
            "Accuracy",
            "Average",
            "average",
            "higher",
            sd="average_sd",
            low="average_low",
            high="average_high",
        )
    )
    records = []
    for _, rows in sorted_groups(frame, ["base_model", "prompts", "method"]):
        # Seeds are averaged first, so that every benchmark weighs the same in the average.
        parts = {key: part["accuracy"] for key, part in rows.groupby(["benchmark", "role"])}
        values = {f"{benchmark}@{role}": float(p.mean()) for (benchmark, role), p in parts.items()}
        if several:
            values |= {
                f"{benchmark}@{role}_sd": float(p.std()) for (benchmark, role), p in parts.items()
            }
        average = average_accuracy(rows)
        if average is not None:
            tests = rows[rows["role"] == "test"]
            over = "seed" if several else "benchmark"
            means = tests.groupby(over)["accuracy"].mean()
            values |= {
                "average": average.value,
                "average_sd": float(means.std(ddof=int(several))),
                "average_low": average.low,
                "average_high": average.high,
            }
        records.append(record_of(rows.iloc[0], names, values))
    count = str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    spread = (
        f"mean ± standard deviation over {count} seeds"
        if several
        else "one seed; ± is the standard deviation over the benchmarks"
    )
    caption = (
        f"Verification accuracy of recognisers trained on each set, {spread}. The average is over "
        f"the test benchmarks; the validation benchmark chose the epoch. {LEGEND}"
    )
    return [build_table("recognition", caption, HEADS, columns, records)]


def paper_tables(
    frames: Mapping[str, pd.DataFrame], names: Names, guide: str = ""
) -> dict[str, list[Table]]:
    """The tables of each kind that has rows.

    Args:
        frames: rows by kind: quality, identity, pose, recognition, audit.
        names: display names.
        guide: the recogniser inside the identity losses, "" where no method has one.
    """
    builders: dict[str, Callable[[pd.DataFrame], list[Table]]] = {
        "quality": lambda frame: quality_tables(frame, names),
        "identity": lambda frame: identity_tables(frame, names, guide),
        "pose": lambda frame: pose_tables(frame, names),
        "recognition": lambda frame: recognition_tables(frame, names),
        "audit": lambda frame: audit_tables(frame, names),
    }
    return {
        kind: build(frames[kind])
        for kind, build in builders.items()
        if kind in frames and len(frames[kind])
    }


def _distance_title(name: str, original: str, extractor: str, names: Names) -> str:
    """`name` with its own extractor; otherwise the bare distance and the extractor that it uses."""
    if extractor == original:
        return name
    bare = {"FID": "Fréchet", "CMMD": "MMD"}[name]
    return f"{bare} ({names(extractor)})"
