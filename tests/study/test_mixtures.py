"""Planted mixtures: files that do not belong together are refused, each by one clear sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.atomic import write_text
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.study.record import (
    check_features,
    check_page,
    check_records,
    check_same_extractor,
    write_record,
)
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import ScoreSettings

VARIANT = "demo/idbooth/base"


def frozen(study: str = "s", seed: int = 1) -> Frozen[ScoreSettings]:
    return Frozen(study=study, step="score", seed=seed, settings=ScoreSettings())


def features(
    root: Path, source: str, name: str = "judge", weights: str = "w1", photo: str = "1", **more: str
) -> Path:
    path = root / "features" / source / f"{name}.safetensors"
    header = {"extractor": name, "weights_sha256": weights, "preprocessing": "p", "options": "{}"}
    header |= {"images": json.dumps([f"image {photo}"]), "sources": json.dumps([f"file {photo}"])}
    save_features(path, np.ones((1, 2), np.float32), ["ID_1/0.png"], **header | more)
    return path


def table(
    root: Path, name: str, inputs: list[Path], of: Frozen[ScoreSettings] | None = None
) -> Path:
    path = root / "scores" / f"{name}.csv"
    write_text(path, f"{name}\n")
    write_record(record_place(path), of or frozen(), [path], inputs)
    return path


def refused(tables: list[Path], *named: str) -> None:
    with pytest.raises(StepError) as caught:
        check_records(frozen(), tables)
    for name in named:
        assert name in str(caught.value)


def test_what_belongs_together_passes(tmp_path: Path) -> None:
    inputs = [features(tmp_path, "real"), features(tmp_path, VARIANT)]
    tables = [table(tmp_path, "a", inputs), table(tmp_path, "b", inputs)]
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("of my own\n")
    assert set(check_records(frozen(), [*tables, foreign])) == set(tables)
    check_page(frozen(), tables)


@pytest.mark.parametrize(
    ("other", "words"), [(frozen(study="x"), "study 'x'"), (frozen(seed=2), "seed 2")]
)
def test_a_score_of_another_study_or_seed_is_refused(
    tmp_path: Path, other: Frozen[ScoreSettings], words: str
) -> None:
    own = table(tmp_path, "a", [features(tmp_path, "real")])
    strange = table(tmp_path, "b", [features(tmp_path, "real")], other)
    refused([own, strange], str(strange), words)


def test_scores_against_different_photographs_are_refused(tmp_path: Path) -> None:
    one = table(tmp_path, "a", [features(tmp_path, "real")])
    other = table(tmp_path, "b", [features(tmp_path, "real", photo="2")])
    refused([one, other], str(one), str(other), "different versions of")


def test_scores_by_different_recogniser_files_are_refused(tmp_path: Path) -> None:
    one = table(tmp_path, "a", [features(tmp_path, "real")])
    other = table(tmp_path, "b", [features(tmp_path, VARIANT, weights="w2")])
    refused([one, other], str(one), str(other), "different weights of judge")


def test_scores_of_different_images_of_one_set_are_refused(tmp_path: Path) -> None:
    one = table(tmp_path, "a", [features(tmp_path, VARIANT)])
    other = table(tmp_path, "b", [features(tmp_path, VARIANT, name="pose", photo="2")])
    refused([one, other], str(one), str(other), "different images")


def test_a_table_edited_by_hand_is_refused(tmp_path: Path) -> None:
    edited = table(tmp_path, "a", [features(tmp_path, "real")])
    edited.write_text("better\n")
    refused([edited], str(edited), "a.record.json", "was changed")


def test_a_page_refuses_tables_and_figures_of_different_features(tmp_path: Path) -> None:
    shown = table(tmp_path, "tables", [table(tmp_path, "a", [features(tmp_path, "real")])])
    drawn = table(tmp_path, "figures", [features(tmp_path, "real", photo="2")])
    with pytest.raises(StepError, match="different versions of"):
        check_page(frozen(), [shown, drawn])


def test_features_by_another_recogniser_file_are_refused(tmp_path: Path) -> None:
    real, other = features(tmp_path, "real"), features(tmp_path, VARIANT, weights="w2")
    headers = [(path, load_features(path).metadata) for path in (real, other)]
    with pytest.raises(StepError, match="weights sha256") as caught:
        check_same_extractor(headers)
    assert str(real) in str(caught.value)
    assert str(other) in str(caught.value)


def manifest(root: Path, *photos: str) -> Path:
    path = root / "manifest.parquet"
    write_manifest(path, [{"file": f"{photo}.png", "sha256": f"file {photo}"} for photo in photos])
    return path


def test_figures_refuse_faces_that_were_aligned_from_other_samples(tmp_path: Path) -> None:
    real, variant = features(tmp_path, "real"), features(tmp_path, VARIANT, photo="2")
    poses = [features(tmp_path, "real", "pose"), features(tmp_path, VARIANT, "pose", photo="2")]
    photographs = manifest(tmp_path / "dataset", "1")
    check_features(
        [real, variant], poses, [photographs, manifest(tmp_path / "samples" / VARIANT, "2")]
    )
    other = manifest(tmp_path / "samples" / VARIANT, "3")
    with pytest.raises(StepError, match=re.escape(f"{other} does not list")):
        check_features([real, variant], poses, [photographs, other])


def test_figures_refuse_poses_of_other_images(tmp_path: Path) -> None:
    real = features(tmp_path, "real")
    poses = [features(tmp_path, "real", "pose", photo="2")]
    with pytest.raises(StepError, match="about different images"):
        check_features([real], poses, [manifest(tmp_path / "dataset", "1")])
