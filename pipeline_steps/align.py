"""Align faces to the template that recognisers are trained on.

In:  the images that a manifest names, below --root, or all images of an archive or a folder.
Out: aligned/<source>/<identity>/<name>.png   112x112 RGB;
     aligned/<source>/manifest.parquet        a row for every image; where no face is found or the
                                              image cannot be read, kept is false and reason says
                                              why; box and landmarks in the source image's pixels;
                                              sha256 of the aligned and of the source image.
     Images that the input's manifest does not keep are not looked at. Images without a folder of
     their own belong to nobody in particular and lie directly in the output folder.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4.1; template of Deng et al., "ArcFace",
CVPR 2019.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.runtime.command_line import step_command_line
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.lease import gpu_lease
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen, load_frozen
from pipeline_steps.study.settings.photographs import AlignSettings

if TYPE_CHECKING:
    from pipeline_steps.faces.detection import Detector

Row = dict[str, Any]

COLUMNS = (
    "identity",
    "file",
    "source_file",
    "source_sha256",
    "sha256",
    "box",
    "landmarks",
    "probability",
    "kept",
    "reason",
)
IMAGES_AT_ONCE = 64  # at most; batches never span identities, so one changes nothing in another


@dataclass(frozen=True)
class Item:
    """An image to align: whose it is, its name in the source, its name here, its bytes."""

    identity: str
    source_file: str
    file: str
    read: Callable[[], bytes]


def run(
    frozen: Frozen[AlignSettings], items: Sequence[Item], *, out: Path, device: str
) -> list[Row]:
    """Align images and write them with their manifest.

    Args:
        frozen: the step's configuration.
        items: what to align, from `items_of_manifest` or `items_of_images`.
        out: folder to write.
        device: "cpu" or "cuda", where faces are searched.

    Returns:
        The manifest's rows, in the items' order.

    Raises:
        StepError: there is nothing to align.
    """
    from pipeline_steps.faces.detection import Detector

    if not items:
        raise StepError(f"there is no image to align for {out}: check the step before")
    settings = frozen.settings
    detector = Detector(
        device,
        min_face_size=settings.detector.min_face_size,
        thresholds=settings.detector.thresholds,
    )
    rows: list[Row] = []
    with progress(items, description="align", unit="image") as bar:
        for batch in batches(items):
            rows += align_batch(batch, detector, settings.padding, out)
            bar.update(len(batch))
    known = {out / row["file"] for row in rows if row["kept"]}
    for path in sorted(out.rglob("*.png")):
        if path not in known:
            path.unlink()  # of an image that has left the source
    write_manifest(out / "manifest.parquet", rows, COLUMNS)
    log = get_logger("align")
    kept = sum(row["kept"] for row in rows)
    log.info("%d of %d images aligned", kept, len(rows))
    for reason, count in sorted(Counter(row["reason"] for row in rows if not row["kept"]).items()):
        log.info("left out: %d x %s", count, reason)
    if kept == 0:
        log.warning("no face was found in any image")
    return rows


def items_of_manifest(manifest: Path, root: Path) -> list[Item]:
    """The images that a manifest keeps; without a column kept, all it names.

    Raises:
        StepError: the manifest is missing, broken or lacks a column.
    """
    from pipeline_steps.identities.photographs import unique_stems
    from pipeline_steps.io.images import noted_bytes

    table = read_manifest(manifest, ("identity", "file"))
    if "kept" in table.columns:
        table = table[table["kept"]]
    pairs = list(zip(table["identity"].astype(str), table["file"].astype(str), strict=True))
    stems = unique_stems(pairs)
    hashes = table["sha256"] if "sha256" in table.columns else [None] * len(pairs)
    step = "sample" if "prompt" in table.columns else "prepare"
    return [
        Item(
            identity,
            file,
            f"{identity}/{stem}.png",
            partial(noted_bytes, root / file, digest, step) if digest else (root / file).read_bytes,
        )
        for (identity, file), stem, digest in zip(pairs, stems, hashes, strict=True)
    ]


def items_of_images(source: Path) -> list[Item]:
    """All images of an archive or a folder; their folder's name is their identity.

    Folders that only sort images by their numbers, as FFHQ's do, are nobody's.

    Raises:
        StepError: the source is missing or broken.
    """
    from pipeline_steps.identities.photographs import file_stem, list_photographs, unique_stems

    photographs = list_photographs(source).photographs
    shelves = shelf_folders((item.folder, item.name) for item in photographs)
    folders = [
        "" if item.folder in shelves or not item.folder else file_stem(f"{item.folder}.x")
        for item in photographs
    ]
    stems = unique_stems([(f, item.name) for f, item in zip(folders, photographs, strict=True)])
    return [
        Item(
            folder or stem,
            item.source,
            f"{folder}/{stem}.png" if folder else f"{stem}.png",
            item.read,
        )
        for folder, stem, item in zip(folders, stems, photographs, strict=True)
    ]


def shelf_folders(names: Iterable[tuple[str, str]]) -> set[str]:
    """Folders like FFHQ's 12000/12345.png: named by their first number, with a thousand to come.

    Args:
        names: (folder, file name) of each image.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for folder, name in names:
        members[folder].append(name.partition(".")[0])
    return {
        folder
        for folder, stems in members.items()
        if folder.isdecimal()
        and all(stem.isdecimal() and 0 <= int(stem) - int(folder) < 1000 for stem in stems)
        and all(len(stem) == len(folder) for stem in stems)
        and int(folder) % 1000 == 0
    }


def batches(items: Sequence[Item]) -> list[list[Item]]:
    """Items in their order, together as long as they belong to the same folder."""
    parts: list[list[Item]] = []
    for item in items:
        folder = item.file.rpartition("/")[0]
        full = not parts or len(parts[-1]) == IMAGES_AT_ONCE
        if full or parts[-1][-1].file.rpartition("/")[0] != folder:
            parts.append([])
        parts[-1].append(item)
    return parts


def align_batch(items: Sequence[Item], detector: Detector, padding: float, out: Path) -> list[Row]:
    """Align some images and write those with a face.

    Returns:
        A row for each item.
    """
    from pipeline_steps.faces.alignment import align_to_template
    from pipeline_steps.io.hashes import sha256_bytes
    from pipeline_steps.io.images import BadImage, encode_png, read_image

    rows: list[Row] = []
    images: dict[int, Any] = {}
    for index, item in enumerate(items):
        empty = dict.fromkeys(COLUMNS) | {"kept": False, "reason": "no face"}
        rows.append(empty | {"identity": item.identity, "source_file": item.source_file})
        try:
            source = item.read()
            rows[index]["source_sha256"] = sha256_bytes(source)
            images[index] = read_image(source)
        except BadImage as error:
            rows[index]["reason"] = error.reason
        except OSError:
            rows[index]["reason"] = "missing"
    faces = detector.detect(list(images.values()), padding=padding)
    for (index, image), face in zip(images.items(), faces, strict=True):
        if face is None:
            continue
        content = encode_png(align_to_template(image, face.landmarks))
        write_bytes(out / items[index].file, content)
        rows[index] |= {
            "file": items[index].file,
            "sha256": sha256_bytes(content),
            "box": face.box,
            "landmarks": face.landmarks,
            "probability": face.probability,
            "kept": True,
            "reason": "",
        }
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = step_command_line("align", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, help="manifest of the images, with --root")
    source.add_argument("--images", type=Path, help="archive (.zip, .tar) or folder of images")
    parser.add_argument("--root", type=Path, help="folder that the manifest's files lie in")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, AlignSettings)
    if arguments.images is not None:
        items = items_of_images(arguments.images)
    else:
        items = items_of_manifest(arguments.manifest, arguments.root or arguments.manifest.parent)
    with gpu_lease() as device:
        run(frozen, items, out=arguments.out, device=device)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
