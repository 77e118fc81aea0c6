"""Export a variant as a dataset that can be passed on.

Out: a folder (--out): images in the chosen layout, metadata.csv and metadata.parquet with a row per
     image, README.md (the dataset's card), SHA256SUMS.
     Only images that the samples and the aligned manifest keep, of people who are in the identity
     table: nothing rejected or withdrawn gets in. Equal inputs give equal bytes.
     People who do not exist are not exported where the audit finds somebody real in their images,
     nor before the study says whom their generator learned from.

Source: Gebru et al., "Datasheets for datasets", CACM 2021, for the card.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_steps.evidence.report.page import render
from pipeline_steps.io.atomic import atomic_path
from pipeline_steps.io.hashes import sha256_bytes, sha256_file
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.io.manifests import COLUMN_TYPES, read_manifest, write_manifest
from pipeline_steps.io.recordio import Writer
from pipeline_steps.io.shards import add_member, content_of, hash_of
from pipeline_steps.io.tables import read_csv
from pipeline_steps.naming import GENERATED_BY, NOBODY, VARIANT, natural_key
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger, progress
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ExportSettings

Row = dict[str, Any]

TOLD = (*GENERATED_BY, *VARIANT, "weights_sha256")
COLUMNS = ("file_name", "identity", "gender", "index", *TOLD, "sha256")
SUMS = "SHA256SUMS"
IMAGES_PER_ROW_GROUP = 100  # as `datasets` writes images
REAL_PEOPLE = ("copies", "strangers")  # checks that find somebody who exists
WHOSE = ("consenting people", "people who do not exist")
# Table to its columns that the card shows.
MEASURED = {
    "quality": (
        *("reference", "fid", "cmmd", "precision", "recall"),
        *("face_quality_mean", "extractors"),
    ),
    "identity": ("versus", "recogniser", "eer", "eer_low", "eer_high", "fmr100", "fdr"),
}


def run(
    frozen: Frozen[ExportSettings],
    *,
    samples: Path,
    aligned: Path,
    identities: Path,
    tables: Path,
    out: Path,
) -> pd.DataFrame:
    """Write the dataset's folder; an earlier one is replaced as a whole.

    Args:
        frozen: The step's configuration; the variant says base_model, method and prompts.
        samples: Folder of the variant's samples, with their manifest.
        aligned: Folder of its aligned faces, with their manifest.
        identities: The identity table: who is in the study, and what they consented to.
        tables: Folder of the study's tables.
        out: Folder to write.

    Returns:
        The metadata.

    Raises:
        StepError: an input is missing, an image is missing or not what its manifest says, there is
            none to export, or the people are made up and may be somebody.
    """
    people = read_csv(identities, ("identity", "gender", "consent"), texts=True)
    sampled = read_manifest(samples / "manifest.parquet", ("identity", "index", "file", *TOLD))
    faces = read_manifest(aligned / "manifest.parquet", ("file", "source_file", "sha256", "kept"))
    chosen, left_out = choose(sampled, faces, set(people["identity"]))
    if chosen.empty:
        raise StepError(f"no image of {samples} is left to export: see the aligned manifest")
    settings, made_up = frozen.settings, NOBODY in set(people["consent"])
    if made_up:
        check_nobody(settings, tables, frozen.variant)
    root = aligned if settings.images == "aligned" else samples
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        rows = _write_images(settings, chosen, people, root, folder)
        metadata = pd.DataFrame(rows, columns=list(COLUMNS))
        write_manifest(folder / "metadata.parquet", rows, COLUMNS)
        metadata.to_csv(folder / "metadata.csv", index=False, lineterminator="\n")
        shown = people[people["identity"].isin(metadata["identity"])]
        card = render(
            "card.md.j2",
            settings=settings,
            made_up=made_up,
            title=settings.title or f"Synthetic faces of {WHOSE[made_up]}",
            size=size_category(len(metadata)),
            study=frozen.study,
            variant=frozen.variant,
            metadata=metadata,
            left_out=left_out,
            consent=shown["consent"].value_counts().sort_index().to_dict(),
            tables=_measured(tables, frozen.variant),
            weights=[
                (role, entry.name, entry.licence, "yes" if entry.commercial_use else "no")
                for role, entry in sorted(frozen.weights.items())
            ],
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        sums = [f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
        (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    log = get_logger("export")
    log.info("%d images of %d people", len(metadata), metadata["identity"].nunique())
    return metadata


def check_nobody(settings: ExportSettings, tables: Path, variant: Mapping[str, str]) -> None:
    """Refuse a set of people who do not exist that says or shows too little for it.

    Raises:
        StepError: it is not told whom the generator learned from, there is no audit, or that found
            somebody real.
    """
    if not settings.training_people:
        raise StepError(
            "people who do not exist have no consent, their generator's training people may: say "
            "in export.training_people whose photographs these were, and on what terms"
        )
    audit = _rows_of(tables / "audit.csv", variant)
    if audit.empty:
        raise StepError(f"{tables / 'audit.csv'} has no row of these images: run the audit first")
    found = [check for check in REAL_PEOPLE if audit.iloc[0][f"{check}_verdict"] == "fail"]
    if found:
        raise StepError(
            f"the audit found {' and '.join(found)} among people who do not exist: "
            f"{audit.iloc[0]['sentence']} Sample other people, or train the generator on others"
        )


def size_category(count: int) -> str:
    """What the Hugging Face hub calls a dataset of so many rows."""
    bounds = {1_000: "1K", 10_000: "10K", 100_000: "100K", 1_000_000: "1M", 10_000_000: "10M"}
    below = "n"
    for bound, name in bounds.items():
        if count < bound:
            return f"{below}<{name}" if below == "n" else f"{below}<n<{name}"
        below = name
    return f"n>{below}"


def choose(
    sampled: pd.DataFrame, faces: pd.DataFrame, people: set[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The images to export, in natural order, and how many others there are by reason.

    Args:
        sampled: Manifest of the samples; where there is a column kept it counts.
        faces: Manifest of their aligned faces.
        people: Identities of the study.

    Returns:
        Rows of ``sampled`` with the aligned face's file and hash as face_file and face_sha256.
    """
    usable = sampled["kept"].astype(bool) if "kept" in sampled else sampled["file"].notna()
    found = faces[faces["kept"].astype(bool)]
    by_source = {str(row.source_file): row for row in found.itertuples()}
    rows, left_out = [], Counter[str]()
    for row, kept in zip(sampled.to_dict("records"), usable, strict=True):
        face = by_source.get(str(row["file"])) if kept else None
        if row["identity"] not in people:
            left_out["of people who are not in the study"] += 1
        elif not kept:
            left_out[f"drawn again ({row.get('reason') or 'rejected'})"] += 1
        elif face is None:
            left_out["without a face"] += 1
        else:
            rows.append(row | {"face_file": face.file, "face_sha256": face.sha256})
    rows.sort(key=lambda row: (natural_key(row["identity"]), row["index"]))
    return pd.DataFrame(rows), dict(sorted(left_out.items()))


def _write_images(
    settings: ExportSettings, chosen: pd.DataFrame, people: pd.DataFrame, root: Path, folder: Path
) -> list[Row]:
    """Write the images; returns the metadata's rows."""
    items = _items(settings, chosen, people, root)
    names = list(dict.fromkeys(chosen["identity"]))
    if settings.layout == "rec":
        with Writer(folder, len(chosen), names) as writer:
            return [
                {"file_name": f"train.rec:{writer.add(row['identity'], content)}"} | row
                for content, row in items
            ]
    if settings.layout in ("folders", "reference"):
        return list(_write_folders(items, folder, settings))
    rows: list[Row] = []
    shards = -(-len(chosen) // settings.images_per_shard)
    for number in range(shards):
        shard = islice(items, settings.images_per_shard)
        if settings.layout == "parquet":
            file = f"data/train-{number:05d}-of-{shards:05d}.parquet"
            rows += write_image_table(shard, folder / file, names, settings.image_format)
        else:
            rows += _write_shard(shard, folder, f"shards/{number:06d}.tar", settings.image_format)
    return rows


def _items(
    settings: ExportSettings, chosen: pd.DataFrame, people: pd.DataFrame, root: Path
) -> Iterator[tuple[bytes, Row]]:
    """Each image's bytes and what the metadata says of it, but its place."""
    genders = dict(zip(people["identity"], people["gender"], strict=True))
    prefix = "face_" if settings.images == "aligned" else ""
    for image in progress(chosen.to_dict("records"), description="export", unit="image"):
        content = _content(root / image[f"{prefix}file"], image[f"{prefix}sha256"], settings)
        row = {column: image[column] for column in ("identity", "index", *TOLD)}
        yield content, row | {"gender": genders[row["identity"]], "sha256": sha256_bytes(content)}


def _write_folders(
    items: Iterable[tuple[bytes, Row]], folder: Path, settings: ExportSettings
) -> Iterator[Row]:
    above = "images/" if settings.layout == "folders" else ""
    for content, row in items:
        file = f"{above}{row['identity']}/{row['index']}.{settings.image_format}"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        yield {"file_name": file} | row


def _write_shard(
    items: Iterable[tuple[bytes, Row]], folder: Path, file: str, ending: str
) -> Iterator[Row]:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / file, "w", format=tarfile.USTAR_FORMAT) as shard:
        for content, row in items:
            key = f"{row['identity']}_{row['index']}"
            text = json.dumps(row, sort_keys=True, ensure_ascii=False)
            add_member(shard, f"{key}.{ending}", content)
            add_member(shard, f"{key}.json", text.encode())
            yield {"file_name": f"{file}:{key}.{ending}"} | row


def write_image_table(
    items: Iterator[tuple[bytes, Row]], path: Path, names: Sequence[str], ending: str
) -> list[Row]:
    """Write images and what is said of them as Parquet that the library `datasets` opens.

    Args:
        items: each image's bytes and its row, with ``identity`` and ``index``.
        path: file to write, in a folder of its own.
        names: all identities; an image's label is the place of its identity among them.
        ending: of the images' names.

    Returns:
        The rows with their file_name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {c: COLUMN_TYPES.get(c, pa.string()) for c in COLUMNS if c != "file_name"}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features: dict[str, Row] = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    for name, kind in values.items():
        told = "float64" if kind == pa.float64() else str(kind)  # Arrow says double
        features[name] = {"dtype": told, "_type": "Value"}
    schema = pa.schema(
        {"image": image, "label": pa.int64(), **values},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    label = {name: place for place, name in enumerate(names)}
    rows: list[Row] = []
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        while group := list(islice(items, IMAGES_PER_ROW_GROUP)):
            table = []
            for content, row in group:
                file = f"{row['identity']}_{row['index']}.{ending}"
                picture = {"image": {"bytes": content, "path": file}}
                table.append(picture | {"label": label[row["identity"]]} | row)
                rows.append({"file_name": f"{path.parent.name}/{path.name}:{file}"} | row)
            writer.write_table(pa.Table.from_pylist(table, schema))
    return rows


def _content(path: Path, digest: str, settings: ExportSettings) -> bytes:
    """An image's bytes in the wanted format.

    Raises:
        StepError: the image is missing, or not the one that its manifest tells of.
    """
    if hash_of(path) != digest:
        raise StepError(f"{path} is missing or has changed since its manifest: run its step again")
    content = content_of(path)
    if settings.image_format == "png":
        return content
    from PIL import Image

    try:
        image = Image.fromarray(read_image(content))
    except BadImage as error:
        raise StepError(f"{path} cannot be read ({error}): run its step again") from error
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _measured(folder: Path, variant: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """Of each table that a card shows: the heads, and the rows about one variant."""
    found: dict[str, list[list[str]]] = {}
    for name, shown in MEASURED.items():
        frame = _rows_of(folder / f"{name}.csv", variant)
        columns = [column for column in shown if column in frame]
        rows = [[_number(row[column]) for column in columns] for _, row in frame.iterrows()]
        # An FID only where the extractor is Inception-v3.
        heads = ["Fréchet distance" if c == "fid" else c.replace("_", " ") for c in columns]
        found[name] = [heads, *rows] if rows else []
    return found


def _rows_of(table: Path, variant: Mapping[str, str]) -> pd.DataFrame:
    frame = read_csv(table, list(variant))
    for column, value in variant.items():
        frame = frame[frame[column].astype(str) == value]
    return frame


def _number(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
