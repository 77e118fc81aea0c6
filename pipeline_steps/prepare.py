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
     dataset/report.json                    counts, reasons, and how the set differs from what is
                                            expected of it.
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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline_steps.faces.detection import Detection, Detector
    from pipeline_steps.identities.candidates import Candidate

Row = dict[str, Any]

COLUMNS = (
    *("identity", "file", "source", "sha256", "camera", "position"),
    *("box", "landmarks", "probability", "kept", "reason"),
)
# Settings that say what comes out of a photograph.
PICTURE = ("resolution", "margin", "min_face_side", "detection_side", "detector")
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
    from pipeline_steps.identities.dataset import drop_duplicates, identity_table
    from pipeline_steps.identities.dataset_report import dataset_report, sentences
    from pipeline_steps.identities.participants import read_participants
    from pipeline_steps.naming import natural_key

    settings = frozen.settings
    log = get_logger("prepare")
    table = settings.gender_table
    collection = collect(settings, read_participants(Path(table)) if table else {})
    detector = Detector(device, **settings.detector.model_dump())
    groups: dict[str | None, list[Candidate]] = defaultdict(list)
    for candidate in collection.candidates:
        groups[candidate.identity].append(candidate)
    order = sorted(groups, key=lambda identity: natural_key(identity or ""))

    store = Store(out)

    def prepared(identity: str | None) -> dict[str, Item]:
        own = groups[identity]
        starts = range(0, len(own), PHOTOGRAPHS_AT_ONCE)
        parts = [own[start : start + PHOTOGRAPHS_AT_ONCE] for start in starts]
        named = {f"{identity}/{part[0].stem}": part for part in parts}
        return {n: prepare_some(n, part, detector, frozen, store) for n, part in named.items()}

    finished: dict[str, Item] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        done = pool.map(prepared, order)
        for items in progress(done, description="identities", total=len(order), unit="identity"):
            store.add(items)
            finished |= items
    store.retain(finished)
    rows = drop_duplicates([pair for item in finished.values() for pair in item.facts["rows"]])
    remove_strangers(out, rows)
    identities = [*filter(None, order), *collection.without_files]
    usable = {row["identity"] for row in rows if row["kept"]}
    kept = [identity for identity in identities if identity in usable]
    if not kept:
        reasons = sorted({row["reason"] for row in rows})[:5]
        why = f"; reasons: {', '.join(reasons)}" if reasons else " (there are no photographs)"
        raise StepError(f"no photograph in {', '.join(settings.sources)} can be used{why}")
    write_manifest(out / "manifest.parquet", rows, COLUMNS)
    write_text(out / "identities.csv", identity_table(rows, kept, collection, settings.consent))
    report = dataset_report(rows, identities, collection, settings.expected, settings.resolution)
    write_json(out / "report.json", report)
    for sentence in sentences(report):
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
        manifest row, and the hash of the photograph's bytes where it was read.
    """
    from pipeline_steps.faces.alignment import shrunk
    from pipeline_steps.io.hashes import sha256_bytes
    from pipeline_steps.io.images import BadImage, read_image

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
        settings=settings.model_dump(mode="json", include=set(PICTURE)),
        photographs=[list(parts) for parts in zip(rows, stems, digests, strict=True)],
    )
    if (item := store.find(name, made_under)) is not None:
        return item
    images: dict[int, NDArray[np.uint8]] = {}
    for index, content in contents.items():
        try:
            images[index] = read_image(content)
        except BadImage as error:
            rows[index]["reason"] = error.reason
    smaller = [shrunk(image, settings.detection_side) for image in images.values()]
    faces = detector.detect([image for image, _, _ in smaller])
    for index, face, (_, *factors) in zip(images, faces, smaller, strict=True):
        png = frame(rows[index], images[index], face, factors, settings)
        if png is not None:
            file = f"images/{candidates[index].identity}/{stems[index]}.png"
            rows[index] |= {"file": file, "sha256": sha256_bytes(png)}
            write_bytes(store.folder / file, png)
    files = {row["file"]: row["sha256"] for row in rows if row["kept"]}
    return Item(made_under, files, {"rows": list(zip(rows, digests, strict=True))})


def frame(
    row: Row,
    image: NDArray[np.uint8],
    face: Detection | None,
    factors: Sequence[float],
    settings: PrepareSettings,
) -> bytes | None:
    """Crop a photograph uint8 [h, w, 3] about its face; its row gets box, landmarks and the rest.

    Args:
        row: of the photograph.
        image: the photograph.
        face: the detection in the shrunk photograph, or None.
        factors: by which x and y of the photograph were multiplied when it was shrunk.

    Returns:
        PNG bytes, or None where the photograph cannot be used.
    """
    from pipeline_steps.faces.alignment import Square, unshrunk
    from pipeline_steps.io.images import encode_png

    if face is None:
        row["reason"] = "no face (prepare.detector)"
        return None
    box = unshrunk(face.box.reshape(2, 2), *factors)
    if (box[1] - box[0]).min() < settings.min_face_side:
        row["reason"] = "face too small (prepare.min_face_side)"
        return None
    square = Square.about_face(box.ravel(), image.shape[0], image.shape[1], settings.margin)
    size = settings.resolution
    row |= {
        "box": square.points(box, size).ravel().tolist(),
        "landmarks": square.points(unshrunk(face.landmarks, *factors), size).ravel().tolist(),
        "probability": face.probability,
        "kept": True,
        "reason": f"{face.n_faces} faces, largest kept" if face.n_faces > 1 else "",
    }
    return encode_png(square.cut(image, size))


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
