"""A study's tables as Markdown: frames in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline_steps.evidence.names import UNTUNED, Names, order_key
from pipeline_steps.evidence.report.findings import Estimate, average_accuracy
from pipeline_steps.study.sources import NOT_APPLICABLE, REFERENCES

NAMES = Names({"real": "photographs", "wild": "in the wild", UNTUNED: "untuned"})
# The corridor's order; steps not named here come after, by name.
STEPS = (
    *("render_demo_world", "prepare", "embed", "prior", "finetune", "sample", "gather"),
    *("align", "features", "score", "recognise", "verify"),
    *("tables", "figures", "provenance", "report"),
)
TITLES = {
    "frechet": "FD (Fréchet distance)",
    "cmmd": "MMD",
    "prdc": "precision and recall",
    "face_quality": "face quality",
}
MINUS = "\N{MINUS SIGN}"


def measured(provenance: Mapping[str, Any], *, date: str, hardware: str) -> str:
    """When, on what, and with which revision of the code."""
    code = provenance.get("code") or {}
    revision = f", code revision `{code['revision'][:12]}`" if code.get("revision") else ""
    return f"Measured on {date}, {hardware}{revision}."


def summary(quality: pd.DataFrame, identity: pd.DataFrame, recognition: pd.DataFrame) -> str:
    """One row per method: the last prompt set, and the last judge, where the independent one is."""
    prompts = max((str(name) for name in identity["prompts"]), key=order_key)
    judge = str(identity["recogniser"].iloc[-1])
    identity = identity[(identity["versus"] == "real") & (identity["recogniser"] == judge)]
    quality = quality[quality["reference"] == "real"]
    rows = []
    for key, part in grouped(identity, ["base_model", "prompts", "method"]):
        if key[1] not in (prompts, NOT_APPLICABLE):
            continue
        images = _of(quality, key)
        average = average_accuracy(_of(recognition, key))
        rows.append(
            [
                NAMES(key[0]),
                NAMES(key[2]),
                estimate(None if images.empty else images.iloc[0], "fid").text(2),
                estimate(part.iloc[0], "eer").text(),
                estimate(part.iloc[0], "fdr").text(2),
                "" if average is None else average.text(),
            ]
        )
    heads = ["Images", "Method", "FD photographs ↓", "EER vs real ↓", "FDR vs real ↑"]
    note = f"Prompts: {NAMES(prompts)}. Judge of EER and FDR: {NAMES(judge)}."
    return f"{pipes([*heads, 'Recognition ↑'], rows, texts=2)}\n\n{note}"


def quality(frame: pd.DataFrame) -> str:
    """Distances to both reference sets; a reference against itself compares its halves."""
    rows = []
    for key, part in grouped(frame, ["base_model", "prompts", "method"]):
        by = {str(row["reference"]): row for _, row in part.iterrows()}
        first = part.iloc[0]
        rows.append(
            [
                *_variant(key),
                *(estimate(by.get(name), "fid").text(2) for name in REFERENCES),
                *(estimate(by.get(name), "cmmd").text(3) for name in REFERENCES),
                *(
                    estimate(by.get(REFERENCES[0]), name).text(2)
                    for name in ("precision", "recall")
                ),
                f"{first['face_quality_mean']:.2f} ± {first['face_quality_sd']:.2f}",
            ]
        )
    heads = ["Images", "Prompts", "Method", "FD photographs ↓", "FD in the wild ↓"]
    heads += ["MMD photographs ↓", "MMD in the wild ↓", "Precision ↑", "Recall ↑", "Face quality ↑"]
    extractors = [part.split("=", 1) for part in str(frame["extractors"].iloc[0]).split()]
    note = ", ".join(f"{TITLES.get(metric, metric)} {NAMES(name)}" for metric, name in extractors)
    return f"{pipes(heads, rows, texts=3)}\n\nExtractors: {note}."


def identity(frame: pd.DataFrame) -> str:
    """Error rates and Fisher ratios per judge, prompt set and method."""
    rows = []
    for key, part in grouped(frame, ["recogniser", "base_model", "prompts", "method"]):
        by = {str(row["versus"]): row for _, row in part.iterrows()}
        real, synthetic = by.get("real"), by.get("synthetic")
        rows.append(
            [
                NAMES(key[0]),
                *_variant(key[1:]),
                estimate(real, "eer").text(),
                estimate(real, "genuine_mean").text(2),
                estimate(real, "fdr").text(2),
                estimate(synthetic, "eer").text(),
                estimate(synthetic, "fdr").text(2),
            ]
        )
    heads = ["Judge", "Images", "Prompts", "Method", "EER vs real ↓", "Genuine mean vs real ↑"]
    heads += ["FDR vs real ↑", "EER within ↓", "FDR within ↑"]
    return pipes(heads, rows, texts=4)


def comparison(frame: pd.DataFrame) -> str:
    """Paired differences of the Fisher ratio; bold where the interval leaves out zero."""
    frame = frame[frame["metric"] == "fdr"]
    pairs = list(dict.fromkeys(zip(frame["method"], frame["minus_method"], strict=True)))
    rows = []
    for key, part in grouped(frame, ["recogniser", "base_model", "prompts", "versus"]):
        by = {(row["method"], row["minus_method"]): row for _, row in part.iterrows()}
        rows.append([NAMES(name) for name in key[:3]] + [key[3]])
        for pair in pairs:
            row = by.get(pair)
            if row is None:
                rows[-1].append("")
                continue
            difference = Estimate(float(row["difference"]), float(row["low"]), float(row["high"]))
            text = difference.text(2).replace("-", MINUS)
            decided = difference.low > 0 or difference.high < 0
            rows[-1].append(f"**{text}**" if decided else text)
    titles = [f"{NAMES(a)} {MINUS} {NAMES(b)}" for a, b in pairs]
    return pipes(["Judge", "Base model", "Prompts", "Compared with", *titles], rows, texts=4)


def recognition(frame: pd.DataFrame) -> str:
    """Accuracy per benchmark, averaged over seeds; the average is over test benchmarks alone."""
    roles = frame.drop_duplicates(["role", "benchmark"])[["role", "benchmark"]]
    columns = sorted(
        roles.itertuples(index=False), key=lambda item: (item.role != "test", order_key(item[1]))
    )
    rows = []
    for key, part in grouped(frame, ["base_model", "prompts", "method"]):
        average = average_accuracy(part)
        means = part.groupby(["role", "benchmark"])["accuracy"].mean()
        rows.append([*_variant(key), "" if average is None else average.text()])
        rows[-1] += [_cell(means.get((item.role, item.benchmark))) for item in columns]
    titles = [
        NAMES(item.benchmark) + ("" if item.role == "test" else " (validation)") for item in columns
    ]
    seeds = frame["seed"].nunique()
    note = f"{seeds} seed{'' if seeds == 1 else 's'} per training set."
    heads = ["Trained on", "Prompts", "Method", "Average of tests ↑", *titles]
    return f"{pipes(heads, rows, texts=3)}\n\n{note}"


def timing(steps: Mapping[str, Mapping[str, float]]) -> str:
    """Jobs, summed wall and processor time, and largest memory of each step."""
    place = {name: index for index, name in enumerate(STEPS)}
    rows = [
        [
            f"`{name}`",
            f"{entry['jobs']:.0f}",
            f"{entry['wall_seconds']:.0f}",
            f"{entry['processor_seconds']:.0f}",
            f"{entry['memory_mib']:.0f}",
        ]
        for name, entry in sorted(
            steps.items(), key=lambda item: (place.get(item[0], len(place)), item[0])
        )
    ]
    totals = [
        sum(entry[key] for entry in steps.values())
        for key in ("jobs", "wall_seconds", "processor_seconds")
    ]
    largest = max(entry["memory_mib"] for entry in steps.values())
    rows.append(["all", *(f"{total:.0f}" for total in totals), f"{largest:.0f}"])
    heads = ["Step", "Jobs", "Wall time, s", "Processor time, s", "Largest memory of a job, MiB"]
    return pipes(heads, rows, texts=1)


def grouped(frame: pd.DataFrame, keys: list[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups in the order of the paper's tables."""
    found = [(tuple(map(str, key)), part) for key, part in frame.groupby(keys, sort=False)]
    return sorted(found, key=lambda item: [order_key(part) for part in item[0]])


def estimate(row: pd.Series | None, key: str) -> Estimate:
    """A number of a row with its interval where the row has one; NaN without a row."""
    if row is None:
        return Estimate(float("nan"))
    limits = (float(row.get(f"{key}_{end}", float("nan"))) for end in ("low", "high"))
    return Estimate(float(row[key]), *limits)


def pipes(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """A Markdown table; the first `texts` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    lines = [heads, rule, *([("" if cell == "nan" else cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _variant(key: Sequence[str]) -> list[str]:
    """Names of (base model, prompts, method)."""
    return [NAMES(name) for name in key]


def _cell(value: Any) -> str:
    return "" if value is None else f"{float(value):.3f}"


def _of(frame: pd.DataFrame, key: tuple[str, ...]) -> pd.DataFrame:
    """Rows of one (base model, prompts, method)."""
    columns = ["base_model", "prompts", "method"]
    return frame[(frame[columns].astype(str) == list(key)).all(axis=1)]
