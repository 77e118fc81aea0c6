from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.identities.consent.inventory import Kind, inventory, item_of, owners_in
from pipeline_steps.io.atomic import write_text

PLACES = {
    "dataset/images/ID_7/a.png": Kind.OWN,
    "dataset/images/ID_70/a.png": Kind.OTHERS,
    "dataset/embeddings/ID_7.safetensors": Kind.OWN,
    "dataset/embeddings/.ID_7.0a1b2c3d.safetensors": Kind.OWN,
    "dataset/embeddings/index.json": Kind.AGGREGATE,
    "dataset/identities.csv": Kind.AGGREGATE,
    "loras/sd21/idbooth/ID_7/pytorch_lora_weights.safetensors": Kind.OWN,
    "loras/sd21/idbooth/ID_8/training.json": Kind.OTHERS,
    "loras/sd21/idbooth/cohorts/0-of-2.json": Kind.AGGREGATE,
    "loras/sd21/idbooth/checkpoints/0000500-aa/ID_7.safetensors": Kind.OWN,
    "loras/sd21/idbooth/checkpoints/.0000500-aa.1234/ID_7.safetensors": Kind.OWN,
    "loras/sd21/idbooth/checkpoints/0000500-aa/ID_8.safetensors": Kind.OTHERS,
    "samples/sd21/idbooth/base/ID_7/0.png": Kind.OWN,
    "samples/sd21/idbooth/base/cohorts/0-of-2.parquet": Kind.AGGREGATE,
    "samples/sd21/idbooth/base/manifest.parquet": Kind.AGGREGATE,
    "aligned/real/ID_7/a.png": Kind.OWN,
    "aligned/sd21/idbooth/base/ID_7/0.png": Kind.OWN,
    "aligned/wild/ID_7/a.png": Kind.INDEPENDENT,
    "features/real/arcface.safetensors": Kind.AGGREGATE,
    "features/real/.arcface.safetensors": Kind.ROWS,
    "features/sd21/idbooth/base/.arcface.safetensors": Kind.ROWS,
    "features/wild/arcface.safetensors": Kind.INDEPENDENT,
    "scores/identity/sd21/idbooth/base.csv": Kind.AGGREGATE,
    "audit/sd21/idbooth/base.html": Kind.AGGREGATE,
    "recognition/real/seed0/model.safetensors": Kind.AGGREGATE,
    "export/sd21/idbooth/base/shards/0.tar": Kind.AGGREGATE,
    "report.html": Kind.AGGREGATE,
    "config/prepare.json": Kind.INDEPENDENT,
    "prior/sd21/images/0.png": Kind.INDEPENDENT,
    "notes.txt": Kind.UNKNOWN,
}


@pytest.mark.parametrize("path", PLACES)
def test_a_file_is_sorted_by_its_place(path: str) -> None:
    assert item_of(path, "ID_7").kind is PLACES[path]


def test_everything_below_the_folder_is_listed_and_its_owners_found(tmp_path: Path) -> None:
    for path in PLACES:
        write_text(tmp_path / path, "")
    assert [item.path for item in inventory(tmp_path, "ID_7")] == sorted(PLACES)
    assert owners_in(tmp_path) == {"ID_7", "ID_70", "ID_8"}
