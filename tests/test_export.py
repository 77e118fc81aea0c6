"""Datasets to pass on: what gets in, in every layout, and what their card says."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from skimage import data

from pipeline_steps import export, prepare
from pipeline_steps.identities.labelled_sets import parts_of
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import encode_png, read_image
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.weights import Weights
from pipeline_steps.naming import NOBODY
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ExportSettings
from pipeline_steps.study.settings.photographs import PrepareSettings

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:256, 96:352])  # NASA, public domain
VARIANT = {"base_model": "sd21", "method": "idbooth", "prompts": "base"}
WEIGHTS = {
    "base_model": Weights(
        name="sd21",
        task="base_model",
        architecture="stable-diffusion",
        source="nowhere",
        licence="CreativeML Open RAIL++-M",
        commercial_use=True,
    )
}


def write_images(folder: Path, files: list[str], shade: int) -> list[str]:
    digests = []
    for i, file in enumerate(files):
        image = np.clip(PHOTOGRAPH.astype(int) + shade + i, 0, 255).astype(np.uint8)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encode_png(image))
        digests.append(sha256_file(folder / file))
    return digests


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Images 0 and 1 of three people; ID_10 has withdrawn; one rejected, one without a face."""
    told: dict[str, Any] = VARIANT | {
        "prompt": "photo of sks person",
        "negative_prompt": "cgi",
        "seed": 5,
        "steps": 30,
        "guidance": 5.0,
        "scheduler": "ddpm",
        "weights_sha256": "ab" * 32,
    }
    places = [(name, index) for name in ("ID_10", "ID_2", "ID_1") for index in (0, 1)]
    files = [f"{name}/{index}.png" for name, index in places]
    digests = write_images(tmp_path / "samples", files, 0)
    rows = [
        {"identity": n, "index": i, "attempt": 0, "file": file, "sha256": digest, "kept": True}
        | told
        for (n, i), file, digest in zip(places, files, digests, strict=True)
    ]
    rejected = rows[4] | {"file": None, "sha256": None, "kept": False, "reason": "no face"}
    rows[4] |= {"attempt": 1}
    write_manifest(tmp_path / "samples/manifest.parquet", [rejected, *rows], [*rejected])
    faces = [
        {"identity": n, "file": f, "source_file": f, "sha256": digest, "kept": f != "ID_2/1.png"}
        for (n, _), f, digest in zip(
            places, files, write_images(tmp_path / "aligned", files, 20), strict=True
        )
    ]
    write_manifest(tmp_path / "aligned/manifest.parquet", faces)
    (tmp_path / "identities.csv").write_text(
        "identity,gender,n_images,source,consent\nID_1,F,3,x,signed form\nID_2,M,3,x,signed form\n"
    )
    (tmp_path / "tables").mkdir()
    rates = [VARIANT | {"versus": "real", "recogniser": "arcface_r100", "eer": 0.0591}]
    rates.append(rates[0] | {"method": "dreambooth", "eer": 0.0971})
    pd.DataFrame(rates).to_csv(tmp_path / "tables/identity.csv", index=False)
    pd.DataFrame([VARIANT | {"reference": "real", "fid": 12.5, "extractors": "clip"}]).to_csv(
        tmp_path / "tables/quality.csv", index=False
    )
    return tmp_path


def exported(study: Path, out: str = "out", **options: Any) -> Path:
    frozen = Frozen("tufts", "export", 0, ExportSettings(**options), WEIGHTS, VARIANT)
    export.run(
        frozen,
        samples=study / "samples",
        aligned=study / "aligned",
        identities=study / "identities.csv",
        tables=study / "tables",
        out=study / out,
    )
    return study / out


def check_sums(folder: Path) -> set[str]:
    """What ``sha256sum --check`` checks; the files listed."""
    listed = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, _, file = line.partition("  ")
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
        listed[file] = digest
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(listed) == there - {"SHA256SUMS"}
    return set(listed)


def test_only_usable_images_of_people_in_the_study_get_in(study: Path) -> None:
    out = exported(study, licence="cc-by-nc-4.0", contact="faces@example.org")
    files = {"images/ID_1/0.png", "images/ID_1/1.png", "images/ID_2/0.png"}
    assert check_sums(out) == files | {"README.md", "metadata.csv", "metadata.parquet"}
    metadata = pd.read_csv(out / "metadata.csv")
    assert metadata["file_name"].tolist() == sorted(files)
    assert metadata["gender"].tolist() == ["F", "F", "M"]
    assert (out / "images/ID_1/0.png").read_bytes() == (study / "aligned/ID_1/0.png").read_bytes()
    for file, digest in zip(metadata["file_name"], metadata["sha256"], strict=True):
        assert sha256_file(out / str(file)) == digest
    pd.testing.assert_frame_equal(read_manifest(out / "metadata.parquet"), metadata)


def test_the_card_tells_terms_numbers_and_losses(study: Path) -> None:
    out = exported(study, licence="cc-by-nc-4.0", contact="faces@example.org")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    for text in (
        "3 generated face images of 2 people",
        "- 2 people: signed form",
        "CreativeML Open RAIL++-M",
        "faces@example.org",
        "| real | arcface_r100 | 0.0591 |",
        "| reference | Fréchet distance | extractors |",
        "| real | 12.5 | clip |",
        "1 drawn again (no face)",
        "1 without a face",
        "2 of people who are not in the study",
    ):
        assert text in card, text
    assert "0.0971" not in card and "ID_10" not in card


def test_the_samples_in_full_as_webdataset(study: Path) -> None:
    out = exported(study, images="samples", layout="webdataset", images_per_shard=2)
    assert {"shards/000000.tar", "shards/000001.tar"} < check_sums(out)
    metadata = pd.read_csv(out / "metadata.csv")
    assert metadata["file_name"].tolist() == [
        "shards/000000.tar:ID_1_0.png",
        "shards/000000.tar:ID_1_1.png",
        "shards/000001.tar:ID_2_0.png",
    ]
    with tarfile.open(out / "shards/000000.tar") as shard:
        assert shard.getnames() == ["ID_1_0.png", "ID_1_0.json", "ID_1_1.png", "ID_1_1.json"]
        image, text = (shard.extractfile(name) for name in ("ID_1_1.png", "ID_1_1.json"))
        assert image is not None and text is not None
        assert image.read() == (study / "samples/ID_1/1.png").read_bytes()
        assert json.load(text)["identity"] == "ID_1"
    again = exported(study, "again", images="samples", layout="webdataset", images_per_shard=2)
    assert (again / "SHA256SUMS").read_text() == (out / "SHA256SUMS").read_text()


def test_the_references_layout_goes_out_and_comes_in_again(study: Path) -> None:
    out = exported(study, images="samples", layout="reference", image_format="jpg")
    assert {"ID_1/0.jpg", "ID_1/1.jpg", "ID_2/0.jpg"} < check_sums(out)
    with Image.open(io.BytesIO((out / "ID_1/0.jpg").read_bytes())) as picture:
        assert picture.format == "JPEG"
    original = read_image(study / "samples/ID_1/0.png").astype(int)
    assert np.abs(read_image(out / "ID_1/0.jpg").astype(int) - original).mean() < 3

    settings = PrepareSettings(
        sources=(str(out),), file_pattern=None, positions=None, resolution=64, detection_side=192
    )
    prepare.run(Frozen("test", "prepare", 0, settings), out=study / "dataset", device="cpu")
    table = pd.read_csv(study / "dataset/identities.csv")
    assert dict(zip(table["identity"], table["n_images"], strict=True)) == {"ID_1": 2, "ID_2": 1}


def test_an_export_is_replaced_as_a_whole_or_not_at_all(study: Path) -> None:
    out = exported(study, layout="reference")
    (study / "aligned/ID_1/1.png").write_bytes(b"changed")
    with pytest.raises(StepError, match="changed since its manifest"):
        exported(study)
    assert (out / "ID_1/1.png").is_file()
    manifest = read_manifest(study / "aligned/manifest.parquet")
    write_manifest(study / "aligned/manifest.parquet", manifest[manifest["file"] != "ID_1/1.png"])
    assert "images/ID_1/0.png" in check_sums(exported(study))
    assert not (out / "ID_1").exists()


def test_command_line_and_nothing_left_to_export(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study / "export.json"
    plain = {"study": "t", "step": "export", "seed": 0, "settings": {}, "weights": {}}
    config.write_text(json.dumps(plain | {"variant": VARIANT}))
    flags = ["--config", str(config), "--samples", str(study / "samples")]
    flags += ["--aligned", str(study / "aligned"), "--tables", str(study / "tables")]
    flags += ["--identities", str(study / "identities.csv"), "--out", str(study / "cli")]
    assert export.main(flags) == 0
    (study / "identities.csv").write_text("identity,gender,consent\n")
    assert run_main(lambda: export.main(flags)) == 2
    assert "left to export" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folders", "reference", "webdataset", "parquet", "rec"])
def test_every_layout_comes_back_as_an_external_set(study: Path, layout: str) -> None:
    out = exported(study, layout=layout, images_per_shard=2)
    check_sums(out)
    found = [(one.label, one.read()) for part in parts_of(out) for one in part()]
    files = ("ID_1/0", "ID_1/1", "ID_2/0")
    images = [(study / f"aligned/{file}.png").read_bytes() for file in files]
    assert found == [(file[:4], image) for file, image in zip(files, images, strict=True)]


def test_parquet_says_what_its_columns_are_and_the_card_what_the_hub_shows(study: Path) -> None:
    out = exported(study, layout="parquet", images_per_shard=2)
    parts = sorted((out / "data").iterdir())
    assert [part.name for part in parts] == [f"train-0000{n}-of-00002.parquet" for n in (0, 1)]
    noted = json.loads((pq.read_schema(parts[0]).metadata or {})[b"huggingface"])
    features = noted["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["ID_1", "ID_2"], "_type": "ClassLabel"}
    assert features["seed"] == {"dtype": "int64", "_type": "Value"}
    rows = pq.read_table(parts[1]).to_pylist()
    assert [(row["label"], row["identity"], row["prompt"]) for row in rows] == [
        (1, "ID_2", "photo of sks person")
    ]
    head = yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["size_categories"] == ["n<1K"] and head["pretty_name"].startswith("Synthetic faces")
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert [export.size_category(n) for n in (5_000, 500_000, 10**8)] == [
        *["1K<n<10K", "100K<n<1M", "n>10M"]
    ]


def test_rec_holds_aligned_images_alone() -> None:
    with pytest.raises(ValueError, match="rec holds aligned faces"):
        ExportSettings(layout="rec", images="samples")


def test_people_who_do_not_exist_need_to_be_nobody_and_their_generators_people_named(
    study: Path,
) -> None:
    table = study / "identities.csv"
    table.write_text(table.read_text().replace("signed form", NOBODY))
    audit = {"copies_verdict": "look", "strangers_verdict": "pass", "sentence": "look: one."}
    pd.DataFrame([VARIANT | audit]).to_csv(study / "tables/audit.csv", index=False)
    with pytest.raises(StepError, match="training_people"):
        exported(study)
    card = (exported(study, training_people="twenty who signed") / "README.md").read_text()
    assert "2 people who do not exist" in card and "twenty who signed" in card
    assert "## Consent" not in card and "biometric data" not in card
    assert "# Synthetic faces of people who do not exist" in card

    audit |= {"strangers_verdict": "fail", "sentence": "fail: 1 identity shows somebody."}
    pd.DataFrame([VARIANT | audit]).to_csv(study / "tables/audit.csv", index=False)
    with pytest.raises(StepError, match="found strangers among people who do not exist"):
        exported(study, training_people="twenty who signed")
    pd.DataFrame([VARIANT | audit | {"method": "other"}]).to_csv(
        study / "tables/audit.csv", index=False
    )
    with pytest.raises(StepError, match="run the audit first"):
        exported(study, training_people="twenty who signed")
