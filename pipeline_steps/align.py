"""Align faces to the template that recognisers are trained on.

In:  the images that a manifest names beside it, or all images of an archive or a folder, or
     somebody else's dataset, whose faces may stand on the template already.
Out: aligned/<source>/<identity>/<name>.png   112x112 RGB; of images in shards (sample.store) these
                                              in <identity>/images.tar;
     aligned/<source>/manifest.parquet        a row for every image; where no face is found or the
                                              image cannot be read, kept is false and reason says
                                              why; box and landmarks in the source image's pixels;
                                              sha256 of the aligned and of the source image;
     aligned/<source>/items.json              what is finished: a run that was stopped goes on, and
                                              images that are the same are not aligned again.
     Images that the input's manifest does not keep are not looked at. Images without a folder of
     their own belong to nobody in particular and lie directly in the output folder.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4.1; template of Deng et al., "ArcFace",
CVPR 2019.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic

from pipeline_steps.identities.aligning import COLUMNS, Input, Row, align_batch, begin
from pipeline_steps.identities.external import align_external
from pipeline_steps.io.images import noted_bytes
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.shards import SHARD, pack, unpack
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.key import key
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import AlignSettings
from pipeline_steps.study.store import Item, Store
from pipeline_steps.study.versions import made_with, versions_behind

IMAGES_AT_ONCE = 64  # at most; batches never span identities, so one changes nothing in another
NOTE_SECONDS = 60.0  # after which finished batches are noted, what a crash costs; or ten times as
# long as the last note took, which grows with the number of images


def run(
    frozen: Frozen[AlignSettings],
    *,
    out: Path,
    manifest: Path | None = None,
    images: Path | None = None,
    external: Path | None = None,
    withdrawn: Path | None = None,
    device: str,
) -> list[Row]:
    """Align images and write them with their manifest.

    Args:
        frozen: the step's configuration.
        out: folder to write.
        manifest: of the images to align; or name images.
        images: archive (.zip, .tar) or folder, all of whose images are aligned.
        external: dataset of others, one folder or label per person.
        withdrawn: table of people who have withdrawn; their images in that dataset are not read.
        device: "cpu" or "cuda", where faces are searched.

    Returns:
        The manifest's rows, in the images' order; none of an external dataset, which may be large.

    Raises:
        StepError: the source is missing or broken, or there is nothing to align.
    """
    from pipeline_steps.faces.detection import Detector

    if external is not None and manifest is None and images is None:
        align_external(frozen, external, out, withdrawn, device)
        return []
    if manifest is not None and images is None:
        inputs = inputs_of_manifest(manifest)
    elif images is not None and manifest is None:
        inputs = inputs_of_images(images)
    else:
        raise StepError("name the images to align: --manifest, --images or --external")
    if not inputs and (manifest is None or "prompt" not in read_manifest(manifest)):
        raise StepError(f"there is no image to align for {out}: check the step before")
    settings = frozen.settings
    plain = settings.model_dump(mode="json")
    detector = Detector(device, **settings.detector.model_dump())
    store = Store(out, made_with(frozen))
    names: list[str] = []
    rows: list[Row] = []
    fresh: dict[str, Item] = {}
    noted, pause = monotonic(), NOTE_SECONDS
    with progress(inputs, description="align", unit="image") as bar:
        for folder, parts in groupby(batches(inputs), folder_of):
            first = len(rows)
            for batch in parts:
                begun, contents = begin(batch)
                boxes = [None if one.box is None else [*map(float, one.box)] for one in batch]
                made_under = key(frozen, settings=plain, images=begun, boxes=boxes)
                name = batch[0].file
                item = store.find(name, made_under)
                if item is None:
                    finished = align_batch(batch, begun, contents, detector, settings.padding, out)
                    files = {row["file"]: row["sha256"] for row in finished if row["kept"]}
                    item = fresh[name] = Item(made_under, files, {"rows": finished})
                rows += item.facts["rows"]
                names.append(name)
                if (now := monotonic()) - noted > pause:
                    store.add(fresh)
                    fresh, noted = {}, monotonic()
                    pause = max(NOTE_SECONDS, 10 * (noted - now))
                bar.update(len(batch))
            kept = [Path(row["file"]).name for row in rows[first:] if row["kept"]]
            if kept and manifest is not None and (manifest.parent / folder / SHARD).is_file():
                pack(out / folder, kept)
            else:
                unpack(out / folder)
    store.add(fresh)
    store.retain(names)
    known = {out / row["file"] for row in rows if row["kept"]}
    known |= {path.with_name(SHARD) for path in known}
    for path in (*out.rglob("*.png"), *out.rglob(SHARD)):
        if path not in known:
            path.unlink()  # of images that have left the source
    versions = sorted(store.versions(names) | {*versions_behind(*filter(None, [manifest]))})
    write_manifest(out / "manifest.parquet", rows, COLUMNS, versions=versions)
    log = get_logger("align")
    found = sum(row["kept"] for row in rows)
    log.info("%d of %d images aligned", found, len(rows))
    for reason, count in sorted(Counter(row["reason"] for row in rows if not row["kept"]).items()):
        log.info("left out: %d x %s", count, reason)
    if found == 0:
        log.warning("no face was found in any image")
    return rows


def inputs_of_manifest(manifest: Path) -> list[Input]:
    """The images that a manifest keeps; without a column kept, all it names.

    Raises:
        StepError: the manifest is missing, broken or lacks a column.
    """
    from pipeline_steps.identities.photographs import unique_stems

    table = read_manifest(manifest, ("identity", "file"))
    if "kept" in table.columns:
        table = table[table["kept"]]
    pairs = list(zip(table["identity"].astype(str), table["file"].astype(str), strict=True))
    stems = unique_stems(pairs)
    hashes = table["sha256"] if "sha256" in table.columns else [None] * len(pairs)
    step = "sample" if "prompt" in table.columns else "prepare"
    boxes = table["box"] if "box" in table.columns and step == "prepare" else [None] * len(pairs)
    return [
        Input(
            identity,
            file,
            f"{identity}/{stem}.png",
            partial(noted_bytes, path, digest, step) if digest else path.read_bytes,
            box,
        )
        for (identity, file), stem, digest, box in zip(pairs, stems, hashes, boxes, strict=True)
        for path in [manifest.parent / file]
    ]


def inputs_of_images(source: Path) -> list[Input]:
    """All images of an archive or a folder; their folder's name is their identity.

    Folders that only sort images by their numbers, as FFHQ's do, are nobody's.

    Raises:
        StepError: the source is missing or broken.
    """
    from pipeline_steps.identities.photographs import file_stem, list_photographs, unique_stems

    photographs = list_photographs(source).photographs
    shelves = shelf_folders((item.where.folder, item.name) for item in photographs)
    folders = [
        "" if folder in shelves or not folder else file_stem(f"{folder}.x")
        for folder in (item.where.folder for item in photographs)
    ]
    stems = unique_stems([(f, item.name) for f, item in zip(folders, photographs, strict=True)])
    return [
        Input(
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
        and int(folder) % 1000 == 0
        and all(stem.isdecimal() and len(stem) == len(folder) for stem in stems)
        and all(0 <= int(stem) - int(folder) < 1000 for stem in stems)
    }


def batches(inputs: Sequence[Input]) -> list[list[Input]]:
    """Images in their order, together as long as they belong to the same folder."""
    parts: list[list[Input]] = []
    for one in inputs:
        full = not parts or len(parts[-1]) == IMAGES_AT_ONCE
        if full or folder_of(parts[-1]) != folder_of([one]):
            parts.append([])
        parts[-1].append(one)
    return parts


def folder_of(batch: Sequence[Input]) -> str:
    """The folder of a batch's images."""
    return batch[0].file.rpartition("/")[0]


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
