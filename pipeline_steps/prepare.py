"""Prepare the photographs of consenting people: find the face, crop it square, write it down.

In:  archives or folders with one folder of photographs per participant, and optionally a table of
     genders and consent; where they are stands in the configuration. A table of people
     who have withdrawn, where the configuration says, if it is there.
Out: dataset/images/<identity>/<name>.png   RGB, square, at the base model's resolution;
     dataset/manifest.parquet               a row for every photograph, kept or not, with the reason
                                            in few words; box and landmarks in the prepared image's
                                            pixels; sha256 of the prepared image;
     dataset/identities.csv                 identity, gender, n_images, source, consent, and the
                                            name of the folder;
     dataset/items.json                     what is finished: the same photographs are not prepared
                                            again;
     dataset/report.json                    counts, reasons, and what is odd about the set.
     A photograph that cannot be used never stops the others, nor does an identity without any
     usable one: it is left out and named in the report, and the step check_dataset says whether the
     study counts as whole without it. Photographs of participants who do not consent, or have
     withdrawn, are never read.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4.1 (the Tufts Face Database, Panetta et al.,
TPAMI 2018; camera positions 1 to 7, face-centred square crops).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.atomic import write_bytes, write_json, write_text
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import PrepareSettings
from pipeline_steps.study.store import Item, Store
from pipeline_steps.study.versions import made_with

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.identities.candidates import Candidate

Row = dict[str, Any]

COLUMNS = (
    *("identity", "file", "source", "sha256", "camera", "position"),
    *("box", "landmarks", "probability", "kept", "reason"),
)
PHOTOGRAPHS_AT_ONCE = 8  # decoded at full size, for each worker


def run(frozen: Frozen[PrepareSettings], *, out: Path, device: str, workers: int = 1) -> list[Row]:
    """Prepare all photographs and write images, manifest and identity table.

    Args:
        frozen: the step's configuration.
        out: the dataset folder to write.
        device: "cpu" or "cuda", where faces are searched.
        workers: threads; changes no result.

    Returns:
        The manifest's rows.

    Raises:
        StepError: a source is missing or broken, or no photograph at all can be used.
    """
    from pipeline_steps.faces.detection import Detector
    from pipeline_steps.identities.candidates import collect
    from pipeline_steps.identities.crops import Faces, choose_faces
    from pipeline_steps.identities.dataset import drop_duplicates, identity_table
    from pipeline_steps.identities.dataset_report import dataset_report, sentences
    from pipeline_steps.identities.participants import read_participants
    from pipeline_steps.naming import natural_key

    settings = frozen.settings
    log = get_logger("prepare")
    table = settings.gender_table
    collection = collect(settings, read_participants(Path(table)) if table else {})
    for source, listing in zip(settings.sources, collection.listings, strict=True):
        log.info("%s: %d photographs", source, len(listing.photographs))
    detector = Detector(device, **settings.detector.model_dump())
    groups: dict[str | None, list[Candidate]] = defaultdict(list)
    for candidate in collection.candidates:
        groups[candidate.identity].append(candidate)
    order = sorted(groups, key=lambda identity: natural_key(identity or ""))

    store = Store(out, made_with(frozen))
    plain = replace(frozen, weights={})  # what comes of a photograph with one face
    faces = Faces(frozen.weights.get("recogniser"), device)

    def prepared(identity: str | None) -> dict[str, Item]:
        own = groups[identity]
        starts = range(0, len(own), PHOTOGRAPHS_AT_ONCE)
        parts = [own[start : start + PHOTOGRAPHS_AT_ONCE] for start in starts]
        named = {f"{identity}/{part[0].stem}": part for part in parts}
        items = {n: prepare_some(n, part, detector, plain, store) for n, part in named.items()}
        if any(item.facts["faces"] for item in items.values()):
            items[f"{identity}/"] = choose_faces(f"{identity}/", own, items, frozen, store, faces)
        return items

    finished: dict[str, Item] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        done = pool.map(prepared, order)
        for items in progress(done, description="identities", total=len(order), unit="identity"):
            store.add(items)
            finished |= items
    store.retain(finished)
    chosen = [row for item in finished.values() for row in item.facts.get("chosen", ())]
    of_file = {row["file"]: row for row in chosen}
    pairs = [pair for item in finished.values() for pair in item.facts.get("rows", ())]
    rows = drop_duplicates([(of_file.get(row["file"], row), digest) for row, digest in pairs])
    remove_strangers(out, rows)
    identities = [*filter(None, order), *collection.without_files]
    usable = {row["identity"] for row in rows if row["kept"]}
    kept = [identity for identity in identities if identity in usable]
    if not kept:
        reasons = sorted({row["reason"] for row in rows})[:5]
        why = f"; reasons: {', '.join(reasons)}" if reasons else " (there are no photographs)"
        raise StepError(f"no photograph in {', '.join(settings.sources)} can be used{why}")
    versions = sorted(store.versions(finished))
    write_manifest(out / "manifest.parquet", rows, COLUMNS, versions=versions)
    write_text(out / "identities.csv", identity_table(rows, kept, collection, settings.consent))
    report = dataset_report(rows, identities, collection, settings.resolution)
    write_json(out / "report.json", report)
    for name, item in report["left_out"].items():
        log.warning("left out: %d x %s", item["count"], name)
    for sentence in sentences(report["findings"]):
        log.warning("%s", sentence)
    log.info("%d of %d photographs of %d identities kept", report["kept"], len(rows), len(kept))
    return rows


def prepare_some(
    name: str,
    candidates: Sequence[Candidate],
    detector: Detector,
    frozen: Frozen[PrepareSettings],
    store: Store,
) -> Item:
    """Prepare some photographs of one identity and write their images, or find them finished.

    Returns:
        The item ``name`` of ``store``, not noted yet; its fact ``rows`` has for each photograph the
        manifest row, and the hash of the photograph's bytes where it was read; ``faces`` has the
        faces of those that show several, by their file, which is not written yet.
    """
    from pipeline_steps.faces.alignment import shrunk, unshrunk
    from pipeline_steps.identities.crops import Face, frame, picture
    from pipeline_steps.io.hashes import sha256_bytes
    from pipeline_steps.io.images import BadImage, read_noted

    settings = frozen.settings
    rows = [row_of(candidate) for candidate in candidates]
    contents: dict[int, bytes] = {}
    for index, candidate in enumerate(candidates):
        if candidate.reason:
            continue
        try:
            content = candidate.photograph.read()
            if not content:
                raise BadImage("empty file")
            contents[index] = content
        except BadImage as error:
            rows[index]["reason"] = error.reason
    digests = [sha256_bytes(contents[k]) if k in contents else "" for k in range(len(rows))]
    stems = [one.stem for one in candidates]
    made_under = key(
        frozen,
        settings=picture(settings),
        photographs=[list(parts) for parts in zip(rows, stems, digests, strict=True)],
    )
    if (item := store.find(name, made_under)) is not None:
        return item
    images: dict[int, NDArray[np.uint8]] = {}
    notes: dict[int, str] = {}
    for index, content in contents.items():
        try:
            images[index], notes[index] = read_noted(content)
        except BadImage as error:
            rows[index]["reason"] = error.reason
    smaller = [shrunk(image, settings.detection_side) for image in images.values()]
    found = detector.detect([image for image, _, _ in smaller])
    several: dict[str, list[Face]] = {}
    for index, face, (_, *factors) in zip(images, found, smaller, strict=True):
        row = rows[index]
        if face is None:
            row["reason"] = "no face (prepare.detector)"
            continue
        faces = [
            Face(
                unshrunk(one.box.reshape(2, 2), *factors).ravel().tolist(),
                unshrunk(one.landmarks, *factors).ravel().tolist(),
                one.probability,
            )
            for one in (face, *face.others)
        ]
        png = frame(row, images[index], faces[0], settings)
        if png is None:
            continue
        row["reason"] = notes[index]
        row["file"] = f"images/{candidates[index].identity}/{stems[index]}.png"
        if face.others:
            several[row["file"]] = faces
        else:
            row["sha256"] = sha256_bytes(png)
            write_bytes(store.folder / row["file"], png)
    files = {row["file"]: row["sha256"] for row in rows if row["sha256"]}
    facts = {"rows": list(zip(rows, digests, strict=True)), "faces": several}
    return Item(made_under, files, facts)


def row_of(candidate: Candidate) -> Row:
    """The row of a photograph that has not been looked at yet."""
    return dict.fromkeys(COLUMNS) | {
        "identity": candidate.identity,
        "source": candidate.photograph.source,
        "camera": candidate.camera,
        "position": candidate.position,
        "kept": False,
        "reason": candidate.reason,
    }


def remove_strangers(out: Path, rows: Iterable[Row]) -> None:
    """Remove images that no row names: a photograph withdrawn is a photograph gone."""
    known = {out / row["file"] for row in rows if row["kept"]}
    for path in sorted((out / "images").rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in known:
            path.unlink()


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
