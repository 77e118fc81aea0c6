"""What a study exports, scored as somebody else's set, has the variant's own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import recompute
from recomputed.images import read_set

from pipeline_steps import align, export, features, score
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.evidence import ExportSettings, FeaturesSettings, ScoreSettings
from pipeline_steps.study.settings.photographs import AlignSettings

VARIANT, AGAIN, BESIDE = "demo/idbooth/base", "external/again", ("real", "wild")
SLOW = ("landmark_pose", "skin_tone")  # and not compared: poses are of the original landmarks
NUMBERS: dict[Literal["quality", "identity"], list[str]] = {
    "quality": ["n_synthetic", "fid", "cmmd", "precision", "recall", "face_quality_mean"],
    "identity": ["n_genuine", "n_impostor", "eer", "fmr100", "fdr", "genuine_mean"],
}


@pytest.mark.parametrize("layout", ["folders", "reference", "webdataset", "parquet", "rec"])
def test_each_layout_comes_back_with_the_variants_own_numbers(
    layout: str, finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_study)
    results = Path("results/demo")
    found = {kind: pd.DataFrame(rows) for kind, rows in scored(results, layout, tmp_path).items()}
    for kind, columns in NUMBERS.items():
        expected = pd.read_csv(results / f"scores/{kind}/{VARIANT}.csv")
        assert expected[columns].notna().any().all()
        pd.testing.assert_frame_equal(
            found[kind][columns], expected[columns], check_dtype=False, rtol=1e-6
        )
    if layout == "rec":
        recomputed(found, tmp_path)


def recomputed(found: dict[str, pd.DataFrame], root: Path) -> None:
    """Hold the set's rows against the second computation from its images."""
    study = recompute.Study(root, images=4)
    study.sets = {name: read_set(root / "aligned" / name)[0] for name in ("real", "wild", AGAIN)}
    rows = {"quality": recompute.quality_rows(study), "identity": recompute.identity_rows(study)[0]}
    (root / "tables").mkdir()
    for table, told in rows.items():
        found[table].to_csv(root / f"tables/{table}.csv", index=False)
        own = [row for row in told if row["base_model"] == "external"]
        assert recompute.compare(study, table, own) > 5 * len(own)
        assert len(own) == len(found[table])
    assert not study.problems
    assert recompute.pose_rows(study)[-1]["method"] == "again"
    assert study.left_out[-1].startswith(f"features {AGAIN} landmark_pose: ")


def scored(results: Path, layout: str, root: Path) -> dict[str, list[dict[str, Any]]]:
    """A variant's export in a layout as an external set below ``root``, and its rows."""
    config = results / "config"
    exporting = load_frozen(config / "export" / f"{VARIANT}.json", ExportSettings)
    settings = exporting.settings.model_copy(update={"layout": layout, "images_per_shard": 7})
    export.run(
        replace(exporting, settings=settings),
        samples=results / "samples" / VARIANT,
        aligned=results / "aligned" / VARIANT,
        identities=results / "dataset/identities.csv",
        tables=results / "tables",
        out=root / "exported",
    )
    align.run(
        load_frozen(config / "align.json", AlignSettings),
        external=root / "exported",
        out=root / "aligned" / AGAIN,
        device="cpu",
    )
    found = sorted((results / "features" / VARIANT).glob("[!.]*.safetensors"))
    prompted = load_frozen(
        config / "score/quality.json", ScoreSettings
    ).settings.quality.prompt_extractor
    own = [f for f in found if f.stem != prompted and (layout == "rec" or f.stem not in SLOW)]
    features.run(
        [load_frozen(config / f"features/{file.stem}.json", FeaturesSettings) for file in own],
        aligned=root / "aligned" / AGAIN,
        out=[root / "features" / AGAIN / file.name for file in own],
        device="cpu",
    )
    for name in ("config", *(f"{part}/{of}" for part in ("aligned", "features") for of in BESIDE)):
        (root / name).symlink_to((results / name).resolve())
    rows = {}
    for kind in NUMBERS:
        frozen = load_frozen(config / f"score/{kind}.json", ScoreSettings)
        again, real, wild = (
            [
                root / f"features/{of}/{name}.safetensors"
                for name in frozen.settings.extractors(kind, prompted=False)
            ]
            for of in (AGAIN, *BESIDE)
        )
        rows[kind] = score.run(
            frozen,
            kind=kind,
            out=root / f"{kind}.csv",
            variant_features=again,
            real=real,
            wild=wild,
        )
    return rows
