from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.identities.consent.search import inventory, item_of, owners_in
from pipeline_steps.io.atomic import write_text
from pipeline_steps.study.artefacts import People

PLACES = {
    "dataset/images/ID_7/a.png": "ID_7",
    "dataset/images/ID_70/a.png": "ID_70",
    "dataset/embeddings/ID_7.safetensors": "ID_7",
    "dataset/embeddings/ID_7@512.safetensors": "ID_7",
    "dataset/embeddings/.ID_7.0a1b2c3d.safetensors": "ID_7",
    "dataset/embeddings/index.json": People.ALL,
    "dataset/identities.csv": People.ALL,
    "loras/sd21/idbooth/ID_7/pytorch_lora_weights.safetensors": "ID_7",
    "loras/sd21/idbooth/ID_8/training.json": "ID_8",
    "loras/sd21/idbooth/shares/0-of-2.json": People.ALL,
    "loras/sd21/idbooth/checkpoints/0000500-aa/ID_7.safetensors": "ID_7",
    "loras/sd21/idbooth/checkpoints/.0000500-aa.1234/ID_7.safetensors": "ID_7",
    "loras/sd21/idbooth/checkpoints/0000500-aa/ID_8.safetensors": "ID_8",
    "samples/sd21/idbooth/base/ID_7/0.png": "ID_7",
    "samples/sd21/idbooth/base/shares/0-of-2.parquet": People.ALL,
    "samples/sd21/idbooth/base/manifest.parquet": People.ALL,
    "aligned/real/ID_7/a.png": "ID_7",
    "aligned/sd21/idbooth/base/ID_7/0.png": "ID_7",
    "aligned/wild/ID_7/a.png": People.NONE,
    "features/real/arcface.safetensors": People.ALL,
    "features/real/.arcface.safetensors": People.ROWS,
    "features/sd21/idbooth/base/.arcface.safetensors": People.ROWS,
    "features/wild/arcface.safetensors": People.NONE,
    "scores/identity/sd21/idbooth/base.csv": People.ALL,
    "audit/sd21/idbooth/base.html": People.ALL,
    "recognition/real/seed0/model.safetensors": People.ALL,
    "export/sd21/idbooth/base/shards/0.tar": People.ALL,
    "report.html": People.ALL,
    "explorer/index.html": People.ALL,
    "explorer/sheets/0.jpg": People.ALL,
    "config/prepare.json": People.NONE,
    "prior/sd21/images/0.png": People.NONE,
    "notes.txt": None,
}


@pytest.mark.parametrize("path", PLACES)
def test_a_file_is_sorted_by_its_place(path: str) -> None:
    item, expected = item_of(path), PLACES[path]
    assert expected in (item.owner, item.people)
    assert (item.people is People.ONE) == isinstance(expected, str) == (item.owner is not None)


def test_everything_below_the_folder_is_listed_and_its_owners_found(tmp_path: Path) -> None:
    for path in PLACES:
        write_text(tmp_path / path, "")
    assert [item.path for item in inventory(tmp_path)] == sorted(PLACES)
    assert owners_in(tmp_path) == {"ID_7", "ID_70", "ID_8"}
