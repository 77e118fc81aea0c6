"""The tables of a study: which there are, what their rows and columns are, and how they are shown.

ID-Booth (Tomasevic et al., FG 2025): Table 1 quality, Table 2 identity, Table 3 recognition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline_steps.evidence.audit.checks import SUMMARY_COLUMNS
from pipeline_steps.evidence.names import SETS, Names, order_key, sorted_groups
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.evidence.scores.identity import IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import ANGLES, POSE_COLUMNS, QUALITY_COLUMNS, SHOWN
from pipeline_steps.evidence.tables.table import Column, Estimate, Table, lay_out
from pipeline_steps.io.tables import read_csv
from pipeline_steps.naming import REASONS, VARIANT, VERIFICATION_COLUMNS
from pipeline_steps.recognition.protocol import average_with_interval
from pipeline_steps.study.source import Source

RECOGNITION_COLUMNS = ("trained_on", *VARIANT, "seed", *VERIFICATION_COLUMNS)
LEGEND = "Best fine-tuning result in bold, second best underlined."

# Columns of numbers. Those against a reference set are shown once for each set.
QUALITY = (
    Column("fid", "FID", direction="lower"),
    Column("cmmd", "CMMD", direction="lower"),
    Column("precision", "Precision", direction="higher"),
    Column("recall", "Recall", direction="higher"),
)
FACE_QUALITY = Column("face_quality_mean", "Face quality", direction="higher")
TITLES = (  # column, role of its extractor, the extractor it is named after, and else its name
    ("fid", "frechet", "inception_v3", "FID", "Fréchet ({})"),
    ("cmmd", "cmmd", "clip_l14_336", "CMMD", "MMD ({})"),
    ("face_quality_mean", "face_quality", "crfiqa", "CR-FIQA", "Face quality"),
)
FURTHER, FURTHER_ALONE = (
    tuple(
        Column(key, shown.title, direction=shown.better, digits=shown.digits)
        for key, shown in SHOWN.items()
        if shown.compares == compares
    )
    for compares in (True, False)
)
IDENTITY = (
    Column("eer", "EER", direction="lower"),
    Column("fmr100", "FMR100", direction="lower"),
    Column("fmr1000", "FMR1000", direction="lower"),
    Column("impostor_mean", "Impostor µ ± σ", direction="lower"),
    Column("genuine_mean", "Genuine µ ± σ", direction="higher"),
    Column("fdr", "FDR", direction="higher"),
    Column("reference_distance", "Reference distance", direction="lower"),
)
POSE = tuple(  # a spread is neither good nor bad by itself, so nothing is marked
    Column(f"{angle}_{number}", angle.capitalize(), subtitle, digits=1)
    for angle in ANGLES
    for number, subtitle in (("mean", "µ ± σ"), ("within_identity_sd", "σ per identity"))
)
AUDIT = (
    Column("n_images", "Images", digits=0),
    Column("own_share", "Shows", "own person", digits=2),
    Column("nobody_share", "Shows", "nobody", digits=2),
    Column("swapped_images", "Swapped", "images", digits=0),
    Column("swapped_images_by_chance", "Swapped", "by chance", digits=1),
    Column("swapped_identities", "Swapped", "identities", digits=0),
    Column("collisions", "Colliding", "identities", digits=0),
    Column("copies", "Copies", digits=0),
    Column("psnr", "PSNR", "dB", digits=1),
    Column("ssim", "SSIM"),
    Column("strangers", "Strangers", "images", digits=0),
    Column("strangers_by_chance", "Strangers", "by chance", digits=1),
    Column("stranger_identities", "Strangers", "identities", digits=0),
)

GROUPS = (
    Column("n_people", "People", digits=0),
    Column("faces", "Faces found"),
    Column("eer", "EER"),
    Column("fnmr", "FNMR"),
    Column("fmr", "FMR", digits=4),
    Column("fdr", "FDR", digits=2),
    Column("quality_mean", "Face quality", digits=2),
    Column("ita_mean", "Skin tone", "degrees", digits=0),
)


def quality_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Table 1: quality, fidelity and diversity against each reference; further measures apart."""
    used = dict(part.split("=", 1) for part in str(frame["extractors"].iloc[0]).split())
    titles = {
        key: title if used[role] == extractor else other.format(names(used[role]))
        for key, role, extractor, title, other in TITLES
    }
    caption = (
        "Quality, fidelity and diversity of the images. Extractors: Fréchet distance "
        f"{names(used['frechet'])}, MMD {names(used['cmmd'])}, precision and recall "
        f"{names(used['prdc'])}, face quality {names(used['face_quality'])}. "
        f"{_set_sizes(frame)} {LEGEND}{_why_empty(frame, names)}"
    )
    shown = [
        replace(column, title=titles.get(column.key, column.title))
        for column in (*_against_each(frame, QUALITY, names), FACE_QUALITY)
    ]
    table = lay_out("quality", caption, frame, shown, names, at="reference")
    return [table, *diversity_tables(frame, names)]


def diversity_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Density, coverage and whatever further set measures the scores hold; none: no table."""
    against, alone = (
        [c for c in columns if c.key in frame.columns and frame[c.key].notna().any()]
        for columns in (FURTHER, FURTHER_ALONE)
    )
    if not against and not alone:
        return []
    caption = f"Further measures of fidelity and diversity. {_set_sizes(frame)} {LEGEND}"
    shown = [*_against_each(frame, against, names), *alone]
    return [lay_out("diversity", caption, frame, shown, names, at="reference")]


def identity_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Table 2: identity consistency and separability, one table per judge."""
    tables: list[Table] = []
    for judge, own in frame.groupby("recogniser", sort=False):
        role = (
            ", an independent judge, which took no part in making the images" if names.guide else ""
        )
        if judge == names.guide:
            role = (
                ", the guide of training or sampling: methods that it guided were made to please it"
            )
        caption = (
            "Identity consistency and separability, cosine similarity judged by "
            f"{names(str(judge))}{role}. {LEGEND}{_why_empty(own, names)}"
        )
        name = f"identity_{judge}" if tables else "identity"
        tables.append(lay_out(name, caption, own, IDENTITY, names, by=("versus", *SETS)))
    return tables


def pose_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Head pose in degrees."""
    estimator = names(str(frame["extractor"].iloc[0]))
    caption = f"Head pose in degrees, estimated by {estimator}.{_why_empty(frame, names)}"
    return [lay_out("pose", caption, frame, POSE, names)]


def recognition_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Table 3: accuracy of recognisers trained on each set, averaged over seeds."""
    seeds = frame.groupby("trained_on")["seed"].nunique()
    several = bool(seeds.max() > 1)
    rows = [
        dict(zip(SETS, key, strict=True)) | row
        for key, own in sorted_groups(frame, SETS)
        for row in _accuracies(own, several)
    ]
    shown = [
        Column("accuracy_mean", title, names(benchmark), "higher", at=f"{benchmark}@{role}")
        for role, title in (("validation", "Validation"), ("test", "Accuracy"))
        for benchmark in sorted(set(frame.loc[frame["role"] == role, "benchmark"]), key=order_key)
    ]
    shown.append(Column("accuracy_mean", "Accuracy", "Average", "higher", at="average"))
    count = str(seeds.min()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    spread = (
        f"mean ± standard deviation over {count} seeds"
        if several
        else "one seed; ± is the standard deviation over the benchmarks"
    )
    caption = (
        f"Verification accuracy of recognisers trained on each set, {spread}. The average is over "
        f"the test benchmarks; the validation benchmark chose the epoch. {LEGEND}"
        f"{_why_empty(frame, names)}"
    )
    return [lay_out("recognition", caption, pd.DataFrame(rows), shown, names, at="at")]


def audit_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Counts and verdict of every variant's identity audit; nothing is ranked."""
    first = frame.iloc[0]
    caption = (
        f"Identity audit by {names(str(first['recogniser']))} at a false match rate of "
        f"{float(first['fmr']):g} among the photographs. Swapped: shows another consented person; "
        "colliding: pairs of generated identities that are one; copies: near copies of "
        "photographs; PSNR and SSIM: of aligned faces against their person's closest "
        "photograph; strangers: shows somebody of the in-the-wild set."
    )
    return [lay_out("audit", caption, frame, AUDIT, names, also=("verdict",))]


def groups_tables(frame: pd.DataFrame, names: Names) -> list[Table]:
    """Groups of people, one table per judge and what groups share; nothing is ranked."""
    tables = []
    for (judge, by), own in sorted_groups(frame.fillna({"note": ""}), ("recogniser", "by")):
        caption = (
            f"Groups of people by {by.replace('_', ' ')}, judged by {names(judge)} against the "
            "photographs. FNMR and FMR: of each group at one threshold, that of everybody "
            "together. Ratios are the worst group's number over the best one's. Groups of too few "
            "people have no numbers."
        )
        name, heads = f"groups_{judge}_{by}", (*SETS, "group")
        tables.append(lay_out(name, caption, own, GROUPS, names, by=heads, also=("note",)))
    return tables


@dataclass(frozen=True)
class Kind:
    """One of a study's tables: its heading in the report, its CSV file's columns, how it is shown.

    `keys`: columns of which a combination may occur only once, in sorting order.
    """

    title: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    lay_out: Callable[[pd.DataFrame, Names], list[Table]]


# In the order of the report.
KINDS = {
    "quality": Kind(
        "Quality, fidelity, diversity", QUALITY_COLUMNS, (*SETS, "reference"), quality_tables
    ),
    "identity": Kind(
        "Identity", IDENTITY_COLUMNS, ("versus", "recogniser", *SETS), identity_tables
    ),
    "recognition": Kind(
        "Recognition",
        RECOGNITION_COLUMNS,
        (*SETS, "seed", "role", "benchmark"),
        recognition_tables,
    ),
    "pose": Kind("Head pose", POSE_COLUMNS, SETS, pose_tables),
    "groups": Kind(
        "Groups of people", GROUP_COLUMNS, ("recogniser", "by", *SETS, "group"), groups_tables
    ),
    "audit": Kind("Identity audit", SUMMARY_COLUMNS, SETS, audit_tables),
}


def tables_of(frames: Mapping[str, pd.DataFrame], names: Names) -> dict[str, list[Table]]:
    """The tables of each of `KINDS`; none of a kind without rows."""
    return {
        name: kind.lay_out(frames[name], names) if len(frames[name]) else []
        for name, kind in KINDS.items()
    }


def empty_cells(tables: Path) -> list[str]:
    """A line for each row of a folder's tables that lacks numbers: which, and why."""
    lines = []
    for kind in KINDS:
        for row in read_csv(tables / f"{kind}.csv", texts=True).to_dict("records"):
            if row.get(REASONS):
                name = ", ".join(filter(None, (str(row[key]) for key in KINDS[kind].keys)))
                lines.append(f"{tables / kind}.csv, {name}: {row[REASONS]}")
            elif kind == "audit" and row["n_images"] == "0":
                lines.append(f"{tables / kind}.csv, {row['method']}: {row['sentence']}")
    return lines


def average_accuracy(rows: pd.DataFrame) -> Estimate | None:
    """Accuracy averaged over seeds, then over test benchmarks; None without tests.

    The interval is over the benchmarks' pairs. All seeds meet the same pairs, so they sharpen the
    mean but not the interval. The rows are those of the recognition table about one training set.
    """
    tests = rows[(rows["role"] == "test") & rows["accuracy"].notna()]
    if tests.empty:
        return None
    means = tests.groupby("benchmark")[["accuracy", "low", "high"]].mean()
    return Estimate(*average_with_interval(*(means[key].tolist() for key in means)))


def _why_empty(frame: pd.DataFrame, names: Names) -> str:
    """Sentences, each after a space, on why rows of a table of scores lack numbers."""
    told: dict[str, list[str]] = {}
    for _, row in frame[frame[REASONS].notna() & (frame[REASONS] != "")].iterrows():
        source = names.variant(Source(*(str(row[column]) for column in VARIANT)))
        told.setdefault(str(row[REASONS]), []).append(source)
    found = (f"{'; '.join(dict.fromkeys(sets))}: {why}." for why, sets in told.items())
    return "".join(f" Empty: {sentence}" for sentence in found)


def _accuracies(rows: pd.DataFrame, several: bool) -> list[dict[str, object]]:
    """Of one training set: a row per benchmark, and one of their average."""
    # Seeds are averaged first, so that every benchmark weighs the same in the average.
    found: list[dict[str, object]] = [
        {
            "at": f"{benchmark}@{role}",
            "accuracy_mean": float(part.mean()),
            "accuracy_sd": float(part.std()) if several else float("nan"),
        }
        for (benchmark, role), part in rows.groupby(["benchmark", "role"])["accuracy"]
    ]
    average = average_accuracy(rows)
    if average is not None:
        over = "seed" if several else "benchmark"
        means = rows[rows["role"] == "test"].groupby(over)["accuracy"].mean()
        found.append(
            {"at": "average", "accuracy_mean": average.value, "accuracy_low": average.low}
            | {"accuracy_high": average.high, "accuracy_sd": float(means.std(ddof=int(several)))}
        )
    return found


def _against_each(frame: pd.DataFrame, columns: Sequence[Column], names: Names) -> list[Column]:
    references = sorted(frame["reference"].unique(), key=order_key)
    return [
        replace(column, subtitle=names(reference), at=reference)
        for column in columns
        for reference in references
    ]


def _set_sizes(frame: pd.DataFrame) -> str:
    """A sentence on how many images were compared."""
    sizes = pd.concat([frame["n_synthetic"], frame["n_real"]]).astype(int)
    low, high = sizes.min(), sizes.max()
    return f"{low} images per set." if low == high else f"{low} to {high} images per set."
