"""What a prepared dataset lacks or has too much of: counted and named, and nothing of it hidden.

The Tufts Face Database's file names are not documented: that their second number is the camera's
position on a semicircle is inferred. If it is, the head's yaw follows it, which is checked here.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline_steps.faces.pose import head_pose
from pipeline_steps.identities.candidates import Collection
from pipeline_steps.identities.participants import NO_CONSENT, Participant
from pipeline_steps.identities.photographs import Listing
from pipeline_steps.naming import natural_key
from pipeline_steps.study.settings.photographs import ExpectedSettings

FOLLOWS = 0.7  # rank correlation of yaw and position from which one follows the other
FEWEST_IMAGES, FEWEST_POSITIONS = 5, 3  # below these nothing is said of a person's correlation

SEVERAL = re.compile(r"\d+ faces, ")
Row = dict[str, Any]
Json = dict[str, Any]
Findings = Iterable[tuple[str, Sequence[str]]]  # sentences with the names of the cases


def dataset_report(
    rows: Sequence[Row],
    identities: Sequence[str],
    collection: Collection,
    resolution: int,
) -> Json:
    """The content of dataset/report.json: counts, reasons with the files they hit, and findings,
    see :func:`listed`.

    Args:
        rows: the manifest.
        identities: all identities that the sources name, usable or not.
        collection: the sources, and the user's table.
        resolution: side of the prepared images in pixels.
    """
    kept = Counter(row["identity"] for row in rows if row["kept"])
    left_out: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if not row["kept"]:
            left_out[row["reason"].split(" of ")[0]].append(row["source"])
    listings, participants = collection.listings, collection.participants
    correlations = yaw_by_position(rows, resolution)
    empty = without_image(rows, identities, collection.without_files)
    findings = [
        *_about_sources(rows, listings),
        *_about_people(rows, empty),
        *_about_the_table(identities, kept, participants),
        *_about_views(rows),
        *_about_positions(correlations),
    ]
    return {
        "photographs": len(rows),
        "kept": sum(kept.values()),
        "identities": len(kept),
        "images_per_identity": {name: kept[name] for name in sorted(kept, key=natural_key)},
        "yaw_by_position": {
            name: round(correlations[name], 3) for name in sorted(correlations, key=natural_key)
        },
        "sources": [
            {
                "source": listing.source,
                "photographs": len(listing.photographs),
                "system_files": listing.junk,
                "other_files": len(listing.others),
                "folders_of_nobody": listing.nobody,
                "broken": listing.broken,
            }
            for listing in listings
        ],
        "left_out": {
            reason: {"count": len(files), "files": files}
            for reason, files in sorted(left_out.items())
        },
        "without_image": empty,
        "missing_numbers": missing_numbers(identities),
        "findings": listed(findings),
    }


def unexpected(report: Json, manifest: pd.DataFrame, expected: ExpectedSettings) -> list[Json]:
    """How a prepared dataset differs from what is expected of it, see :func:`listed`.

    Args:
        report: dataset/report.json.
        manifest: a row for every photograph, with source, camera and position.
        expected: what the database should hold.
    """
    kept: dict[str, int] = report["images_per_identity"]
    findings: list[tuple[str, Sequence[str]]] = []
    low, high = expected.identities or (0, len(kept))
    if not low <= len(kept) <= high:
        findings.append((f"{len(kept)} people where {low} to {high} are expected", []))
    gaps = report["missing_numbers"]
    if gaps and expected.identities is not None:
        findings.append((f"{len(gaps)} participant numbers are missing", gaps))
    wanted = expected.images_per_identity
    few = [f"{name} ({count})" for name, count in kept.items() if count != wanted]
    if few and wanted is not None:
        findings.append((f"{len(few)} people have not {wanted} images", few))
    for what, known in (("camera", expected.cameras), ("position", expected.positions)):
        odd = manifest[manifest[what].notna() & ~manifest[what].isin(known or ())]
        if known and len(odd):
            shown = ", ".join(map(str, known))
            names = [f"{of} ({n:.0f})" for of, n in zip(odd["source"], odd[what], strict=True)]
            findings.append((f"{len(odd)} files name a {what} other than {shown}", names))
    return listed(findings)


def listed(findings: Findings) -> list[Json]:
    """Findings as JSON: each a sentence with a number of cases and their names."""
    return [
        {"finding": text, "count": len(which) or 1, "which": sorted(which, key=natural_key)}
        for text, which in findings
    ]


def without_image(
    rows: Sequence[Row], identities: Sequence[str], without_files: Mapping[str, str]
) -> dict[str, list[str]]:
    """Identities that consent and have no usable photograph, and why theirs were left out."""
    kept = {row["identity"] for row in rows if row["kept"]}
    reasons: dict[str, set[str]] = {
        name: {*filter(None, [without_files.get(name)])} for name in identities if name not in kept
    }
    for row in rows:
        if row["identity"] in reasons:
            reasons[row["identity"]].add(row["reason"])
    return {
        name: sorted(why)
        for name, why in reasons.items()
        if not any(one.startswith(NO_CONSENT) for one in why)
    }


def missing_numbers(identities: Sequence[str]) -> list[str]:
    """Gaps in the participants' numbers, where these count them."""
    numbers = {int(name[3:]) for name in identities if name[3:].isdecimal()}
    highest = max(numbers, default=0)
    counted = 2 * len(numbers) > max(highest, len(identities))  # else they are years, or dates
    return [str(n) for n in range(1, highest) if n not in numbers] if counted else []


def sentences(findings: Iterable[Json]) -> list[str]:
    """Findings for the log, at most ten names in each."""
    lines = []
    for finding in findings:
        which = ", ".join(finding["which"][:10]) + (", ..." if len(finding["which"]) > 10 else "")
        lines.append(f"{finding['finding']}: {which}" if which else finding["finding"])
    return lines


def _about_sources(rows: Sequence[Row], listings: Sequence[Listing]) -> Findings:
    for listing in listings:
        if listing.broken:
            yield f"incomplete source, {listing.broken}; download it again", [listing.source]
    groups = [f"{row['source']} ({row['reason']})" for row in rows if SEVERAL.match(row["reason"])]
    if groups:
        yield f"{len(groups)} photographs show several faces", groups
    others = [path for listing in listings for path in listing.others]
    if others:
        yield f"{len(others)} files are no images, nor sources of their own", others
    places: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["identity"] is not None:
            places[row["identity"]].add(row["source"].split("/", 1)[0])
    several = [f"{name} ({', '.join(sorted(at))})" for name, at in places.items() if len(at) > 1]
    if several:
        yield f"{len(several)} people stand in several sources", several


def _about_people(rows: Sequence[Row], empty: Mapping[str, list[str]]) -> Findings:
    refused = {row["identity"] for row in rows if row["reason"].startswith(NO_CONSENT)}
    if refused:
        yield f"{len(refused)} people without consent are left out", [*refused]
    if empty:
        yield f"{len(empty)} people have no usable photograph", [*empty]


def _about_the_table(
    identities: Sequence[str], kept: Mapping[str, int], participants: Mapping[str, Participant]
) -> Findings:
    unknown = [name for name in kept if name not in participants]
    if unknown and participants:
        yield f"the participant table lacks {len(unknown)} people", unknown
    absent = [name for name in participants if name not in identities]
    if absent:
        yield f"{len(absent)} people of the table have no folder", absent


def _about_views(rows: Sequence[Row]) -> Findings:
    used = [row for row in rows if row["kept"]]
    views = {(row["camera"], row["position"]) for row in used} - {(None, None)}
    per_person = list(Counter(row["identity"] for row in used).values())
    if views and float(np.median(per_person)) < len(views) / 2:
        have = f"people have {np.median(per_person):g} images in the median"
        told = f"the file names tell {len(views)} views apart: check prepare.file_pattern"
        yield f"{have} where {told}", []


def _about_positions(correlations: Mapping[str, float]) -> Findings:
    odd = [f"{name} ({correlations[name]:.2f})" for name in not_following(correlations)]
    if not odd:
        return
    typical = abs(float(np.median(list(correlations.values()))))
    told = "estimated yaw does not follow the position in the file names"
    if typical < FOLLOWS:
        told += f" (rank correlation {typical:.2f}): check prepare.file_pattern and "
        yield f"{told}prepare.positions", odd
    else:
        yield f"{told} of {len(odd)} of {len(correlations)} people", odd


def yaw_by_position(rows: Sequence[Mapping[str, Any]], resolution: int) -> dict[str, float]:
    """Spearman's rank correlation, in [-1, 1], of camera position and estimated yaw over a
    person's kept images, whose sides are `resolution` pixels.

    People with too few images or positions are not there. Which sign is right is not known, but it
    is the same for all people.
    """
    from scipy.stats import spearmanr  # takes longer to load than many a step to run

    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kept"] and row["position"] is not None:
            groups[row["identity"]].append(row)
    found = {}
    for identity, own in groups.items():
        positions = np.array([row["position"] for row in own])
        if len(own) < FEWEST_IMAGES or len(np.unique(positions)) < FEWEST_POSITIONS:
            continue
        landmarks = np.stack([np.asarray(row["landmarks"]).reshape(5, 2) for row in own])
        yaw = head_pose(landmarks, resolution)[:, 1]
        known = np.isfinite(yaw)
        if known.sum() < FEWEST_IMAGES or len(np.unique(yaw[known])) < 2:
            found[identity] = 0.0
        else:
            found[identity] = float(spearmanr(positions[known], yaw[known]).statistic)
    return found


def not_following(correlations: Mapping[str, float]) -> list[str]:
    """People whose yaw does not follow the position, or goes the other way than most people's."""
    if not correlations:
        return []
    way = 1.0 if np.median(list(correlations.values())) >= 0 else -1.0
    return [name for name, value in correlations.items() if not way * value >= FOLLOWS]
