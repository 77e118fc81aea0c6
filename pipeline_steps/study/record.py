"""Records beside tables and figures: what made them, from what and whom, with what code.

Images, weights and features say in their own manifests and headers where they come from. Tables and
figures cannot; a ``.record.json`` beside them does. A record holds no time and no machine, so
equal results have equal records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_bytes, sha256_file, sha256_json
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import difference, header_of, load_features
from pipeline_steps.naming import identity_of, natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import record_place, source_of
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.versions import made_with, versions_behind

NETWORK = ("extractor", "architecture", "options", "weights_sha256", "preprocessing")

Record = dict[str, Any]


def write_record(
    place: Path,
    frozen: Frozen[Any],
    outputs: Iterable[Path],
    inputs: Iterable[Path],
) -> None:
    """Write what a step made, and from what.

    Args:
        place: see :func:`record_place`.
        frozen: the step's configuration.
        outputs: files that were made.
        inputs: files that they were made from; of feature files the header's facts go along.
    """
    sources = list(inputs)
    facts = {path.as_posix(): _facts(path) for path in sources}
    hashes = sorted(of["sha256"] for of in facts.values())
    people = {name for path in sources for name in people_of(path)}
    content = {
        "study": frozen.study,
        "step": frozen.step,
        "seed": frozen.seed,
        "key": sha256_json([config_hash(frozen), hashes]),
        "config_sha256": config_hash(frozen),
        "code_sha256": frozen.code,
        "versions": sorted({*made_with(frozen), *versions_behind(*sources)}),
        "outputs": {path.name: sha256_file(path) for path in outputs},
        "inputs": facts,
        "people": sorted(people, key=natural_key),
    }
    write_json(place, content)


def people_of(path: Path) -> set[str]:
    """Identities that had a part in a file, by its record, its rows, or its header."""
    record = read_record(path)
    if record is not None:
        return set(record.get("people", []))
    if path.suffix == ".parquet":
        frame = read_manifest(path)  # replicates are of all people, and of nobody in particular
        named = set(frame["identity"].dropna().astype(str)) if "identity" in frame else set()
        return named.union(*frame["people"]) if "people" in frame else named  # of joint images
    if path.suffix == ".safetensors":
        header = header_of(path)
        files = json.loads(header.get("files", "[]"))
        trained_on = json.loads(header.get("identities", "[]"))  # of a recogniser
        return {identity_of(file) for file in files if "/" in file} | set(trained_on)
    return set()


def config_hash(frozen: Frozen[Any]) -> str:
    """SHA-256 of a frozen configuration's content, as provenance.json names it."""
    content = asdict(frozen)
    content["settings"] = frozen.settings.model_dump(mode="json")
    content["weights"] = {role: entry.frozen() for role, entry in frozen.weights.items()}
    return sha256_json(content)


def read_record(artefact: Path) -> Record | None:
    """The record of a file; None where there is none, as of a file from elsewhere.

    Raises:
        StepError: the record is broken, or the file is not the one it is about.
    """
    for place in (record_place(artefact), record_place(artefact.parent)):
        if not place.is_file():
            continue
        try:
            record: Record = json.loads(place.read_text(encoding="utf-8"))
            noted = record["outputs"].get(artefact.name)
        except (ValueError, KeyError, AttributeError) as error:
            raise StepError(f"record {place} is broken ({error}): make {artefact} again") from error
        if noted is None:
            continue
        if noted != sha256_file(artefact):
            raise StepError(
                f"{artefact} was changed since it was made: it is not the file that {place} is "
                "about. Delete it and run again"
            )
        return record
    return None


def refuse_other_study(frozen: Frozen[Any], records: Mapping[Path, Record]) -> None:
    """Refuse files that another study, or the study with another seed, made.

    Raises:
        StepError: naming the file and what was expected.
    """
    for path, record in records.items():
        for key, wanted in (("study", frozen.study), ("seed", frozen.seed)):
            if record[key] != wanted:
                raise StepError(
                    f"{path} was made with {key} {record[key]!r}, but this is {key} {wanted!r}: "
                    "make it again with this study's configuration"
                )


def refuse_mixtures(records: Mapping[Path, Record]) -> None:
    """Refuse files that were made from different versions of one input, or by different weights.

    Two files agree where the features they share are the same file, an extractor had the same
    weights for both, and all features of one set are of the same images.

    Raises:
        StepError: naming two files that do not belong together.
    """
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    for path, record in records.items():
        for name, facts in record["inputs"].items():
            asked = [("content", name, facts["sha256"])]
            if "extractor" in facts:
                network = sha256_json([facts.get(name) for name in NETWORK])
                asked.append(("network", facts["extractor"], network))
                asked.append(("images", Path(name).parent.as_posix(), facts["images_sha256"]))
            for what, of, digest in asked:
                before, other = seen.setdefault((what, of), (digest, path))
                if before != digest:
                    raise StepError(_sentence(what, of, other, path))


def _sentence(what: str, of: str, one: Path, other: Path) -> str:
    difference = {
        "content": f"different versions of {of}",
        "network": f"features by different weights of {of}, or of other preprocessing",
        "images": f"features of different images in {of}",
    }[what]
    return f"{one} and {other} were made from {difference}: make both again, or run the workflow"


def check_same_extractor(features: Sequence[tuple[Path, Mapping[str, str]]]) -> None:
    """Refuse feature files of one extractor that different weights or preprocessing made.

    Args:
        features: path and header of each file.

    Raises:
        StepError: naming two files.
    """
    first: dict[str, tuple[Path, Mapping[str, str]]] = {}
    for path, header in features:
        other, before = first.setdefault(path.stem, (path, header))
        wanted = {name: before.get(name, "") for name in NETWORK}
        if differing := difference({name: header.get(name, "") for name in NETWORK}, wanted):
            raise StepError(
                f"{path} and {other} are by different networks: {differing}; extract both again "
                "with one recogniser file and one configuration"
            )


def check_same_images(
    one: Path, header: Mapping[str, str], other: Path, images: str | None
) -> None:
    """Refuse features of other images than those that another file's header lists.

    Raises:
        StepError: naming both files.
    """
    if _alone(header.get("images")) != _alone(images):
        raise StepError(
            f"{one} and {other} are about different images: extract both again from the same "
            "aligned set"
        )


def _alone(images: str | None) -> str:
    """A header's hashes of images without what a row depends on beside its image, as a prompt,
    whose hash stands behind the image's and a colon."""
    return re.sub(r':\w+(?=")', "", images or "")


def check_sources(
    features: Path, header: Mapping[str, str], manifest: Path, known: Iterable[Any]
) -> None:
    """Refuse features of faces that were aligned from other images than a manifest lists.

    Args:
        features, header: a feature file and its header.
        manifest: of the images that the faces should have been aligned from.
        known: hashes of these images.

    Raises:
        StepError: naming both files.
    """
    strangers = set(json.loads(header.get("sources", "[]"))) - set(known)
    if strangers:
        raise StepError(
            f"{features} has faces of {len(strangers)} images that {manifest} does not list: "
            "they were aligned from other images. Align them and extract the features again"
        )


def _facts(path: Path) -> dict[str, str]:
    facts = {"sha256": sha256_file(path)}
    if path.suffix == ".safetensors":
        header = header_of(path)
        facts |= {name: header[name] for name in NETWORK if name in header}
        if "extractor" in facts:
            facts["images_sha256"] = sha256_bytes(_alone(header.get("images")).encode())
    return facts


def check_records(frozen: Frozen[Any], paths: Sequence[Path]) -> dict[Path, Record]:
    """Refuse files of another study or seed, changed files, and such as were made from different
    versions of one input, by the records beside them. Files without a record pass.

    Returns:
        The records found.

    Raises:
        StepError: naming the files that do not belong together.
    """
    found = {path: read_record(path) for path in paths}
    records = {path: record for path, record in found.items() if record is not None}
    refuse_other_study(frozen, records)
    refuse_mixtures(records)
    return records


def check_features(
    embeddings: Sequence[Path], poses: Sequence[Path], manifests: Sequence[Path]
) -> None:
    """Refuse features by different weights, or of other images than the manifests list.

    Args:
        embeddings: of the photographs, then of every variant.
        poses: head poses of the same sets.
        manifests: of the photographs, then of every variant's samples.

    Raises:
        StepError: naming two files that do not belong together.
    """
    headers = {path: load_features(path).metadata for path in (*embeddings, *poses)}
    check_same_extractor(list(headers.items()))
    by_folder = {path.parent: path for path in embeddings}
    for path in poses:
        other = by_folder[path.parent]
        check_same_images(path, headers[path], other, headers[other].get("images"))
    listed = {source_of(path, "samples", "aligned").name: path for path in manifests[1:]}
    listed["real"] = manifests[0]
    for path in embeddings:
        manifest = listed[source_of(path, "features").name]
        known = read_manifest(manifest)
        column = "source_sha256" if "source_sha256" in known else "sha256"
        if column in known:
            check_sources(path, headers[path], manifest, known[column])


def check_page(frozen: Frozen[Any], shown: Sequence[Path]) -> None:
    """Refuse tables and figures that show different features.

    Args:
        frozen: the page's configuration.
        shown: files of both; of tables also what they were gathered from counts, as far as it is
            still there.

    Raises:
        StepError: naming the files that do not belong together.
    """
    found = check_records(frozen, shown)
    sources = {Path(name) for record in found.values() for name in record["inputs"]}
    behind = [path for path in sorted(sources) if path.suffix == ".csv" and path.is_file()]
    refuse_mixtures(found | check_records(frozen, behind))
