from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyeer.eer_info import get_eer_stats

from pipeline_steps.evidence.scores import identity
from pipeline_steps.evidence.scores.identity import IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import POSE_COLUMNS, QUALITY_COLUMNS, pose_row
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.metrics import pairs
from pipeline_steps.metrics.frechet import frechet_distance
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.score import main

SETTINGS: dict[str, Any] = {
    "quality": {
        "frechet_extractor": "set",
        "cmmd_extractor": "set",
        "prdc_extractor": "set",
        "face_quality_extractor": "quality",
        "prompt_extractor": "prompt",
        "replicates": 20,
        "kd_subset_size": 20,
    },
    "identity": {"recognisers": ["judge_a", "judge_b"], "replicates": 50, "impostors": "all"},
    "pose": {"extractor": "pose"},
}
EXTRACTORS = {"set": 6, "quality": 1, "judge_a": 8, "judge_b": 8, "pose": 3, "prompt": 1}
VARIANT = "demo/idbooth/base"


class World:
    """A results folder with features of two reference sets and one variant."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.people = {f"ID_{i}": self.rng.standard_normal(8) for i in range(1, 6)}
        for source, images, shift in (("real", 6, 0.0), (VARIANT, 5, 0.4)):
            self.write(
                source, [f"{name}/{i}.png" for name in self.people for i in range(images)], shift
            )
        self.write("wild", [f"{i:05}.png" for i in range(40)], 2.0)
        self.configure(SETTINGS)

    def write(self, source: str, files: list[str], shift: float) -> None:
        for extractor, width in EXTRACTORS.items():
            rng = self.rng if extractor != "prompt" else np.random.default_rng(1)
            rows = rng.standard_normal((len(files), width))
            if extractor.startswith("judge"):
                noise = 0.4 if extractor == "judge_a" else 1.5
                who = [self.people.get(file.split("/")[0], np.zeros(8)) for file in files]
                rows = np.asarray(who) + noise * rows
            save_features(self.path(source, extractor), (rows + shift).astype(np.float32), files)

    def configure(self, settings: dict[str, Any], **variant: str) -> None:
        frozen = {"study": "s", "step": "score", "seed": 3, "settings": settings, "weights": {}}
        (self.root / "score.json").write_text(json.dumps(frozen | {"variant": variant}))

    def path(self, source: str, extractor: str) -> Path:
        return self.root / "features" / source / f"{extractor}.safetensors"

    def features(self, source: str, extractor: str) -> np.ndarray:
        from pipeline_steps.io.tensors import load_features

        return load_features(self.path(source, extractor)).features

    def score(self, kind: str, sources: dict[str, str], name: str = "out.csv", *extra: str):
        names = {
            "quality": ["set", "quality"],
            "identity": ["judge_a", "judge_b"],
            "pose": ["pose"],
        }
        argv = ["--config", str(self.root / "score.json"), "--kind", kind]
        for flag, source in sources.items():
            own = [*names[kind], *(["prompt"] if kind == "quality" and "/" in source else [])]
            argv += [f"--{flag}", *(str(self.path(source, extractor)) for extractor in own)]
        assert main([*argv, "--out", str(self.root / name), *extra]) == 0
        return pd.read_csv(self.root / name, keep_default_na=False, na_values=[""])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_quality_compares_equal_numbers_with_each_reference(world: World) -> None:
    table = world.score("quality", {"variant-features": VARIANT, "real": "real", "wild": "wild"})
    assert tuple(table.columns) == QUALITY_COLUMNS
    assert table["reference"].tolist() == ["real", "wild"]
    assert table[["base_model", "method", "prompts"]].iloc[0].tolist() == VARIANT.split("/")
    assert table["n_synthetic"].tolist() == table["n_real"].tolist() == [25, 25]
    assert (table["fid"] > 0).all()
    assert (table["fid_low"] < table["fid"]).all()
    assert (table["fid"] < table["fid_high"]).all()
    quality = world.features(VARIANT, "quality")
    assert table["face_quality_mean"][0] == pytest.approx(quality.mean(), abs=1e-6)
    assert table["face_quality_sd"][0] == pytest.approx(quality.std(), abs=1e-6)
    assert table["extractors"][0] == (
        "frechet=set cmmd=set prdc=set face_quality=quality prompt=prompt"
    )
    shown = world.features(VARIANT, "prompt")
    assert table["prompt_score"][0] == pytest.approx(shown[shown >= 0].mean(), abs=1e-6)


def test_quality_uses_all_images_when_sizes_need_not_be_equal(world: World) -> None:
    world.configure(SETTINGS | {"quality": SETTINGS["quality"] | {"equal_n": False}})
    table = world.score("quality", {"variant-features": VARIANT, "real": "real"})
    assert (table["n_synthetic"][0], table["n_real"][0]) == (25, 30)
    expected = frechet_distance(world.features("real", "set"), world.features(VARIANT, "set"))
    assert table["fid"][0] == pytest.approx(expected, rel=1e-6)


def test_reference_sets_meet_each_other_and_their_own_halves(world: World) -> None:
    table = world.score("quality", {"real": "real", "wild": "wild"})
    pairs = list(zip(table["base_model"], table["reference"], strict=True))
    assert pairs == [("real", "real"), ("real", "wild"), ("wild", "real"), ("wild", "wild")]
    assert table["n_real"].tolist() == [15, 30, 30, 20]
    assert set(table["method"]) == {"-"}
    own, other = table["fid"][0], table["fid"][1]
    assert own < other / 2
    # Precision of one direction is recall of the other.
    assert table["precision"][1] == pytest.approx(table["recall"][2])


def test_a_set_of_others_meets_the_photographs_where_it_shows_their_people(world: World) -> None:
    for name, people, versus in (
        ("external/own", "ID_1 ID_2", ["real", "synthetic"]),
        ("external/vface", "n1 n2 n3", ["synthetic"]),
    ):
        files = [f"{who}/{number}.png" for who in people.split() for number in range(3)]
        world.write(name, files, 0.0)
        table = world.score("identity", {"variant-features": name, "real": "real"})
        assert table["versus"].tolist() == 2 * versus
        names = table[["base_model", "method", "prompts"]].drop_duplicates().to_numpy().tolist()
        assert names == [["external", name.split("/")[1], "-"]]


def test_people_who_do_not_exist_meet_their_anchors(world: World) -> None:
    files = [f"MU_{who}/{number}.png" for who in (1, 2, 3) for number in range(4)]
    world.write(VARIANT, files, 0.0)
    header = {"weights_sha256": "judge a"}
    for source in ("real", VARIANT):
        path = world.root / "features" / source / "judge_a.safetensors"
        rows = load_features(path)
        save_features(path, rows.features, rows.files, **rows.metadata | header)
    anchors, names = rows.features[::4], ["MU_1", "MU_2", "MU_3"]
    place = world.root / "targets.safetensors"
    save_features(place, anchors, names, key="embeddings", **header)
    sources = {"variant-features": VARIANT, "real": "real"}
    table = world.score("identity", sources, "out.csv", "--targets", str(place))
    keys = list(zip(table["recogniser"], table["versus"], strict=True))
    assert keys == [("judge_a", "target"), ("judge_a", "synthetic"), ("judge_b", "synthetic")]
    assert (table["n_genuine"][0], table["n_impostor"][0]) == (12, 24)


def test_identity_has_a_row_per_judge_and_opponent_as_pyeer_computes_it(world: World) -> None:
    table = world.score("identity", {"variant-features": VARIANT, "real": "real"})
    assert tuple(table.columns) == IDENTITY_COLUMNS
    keys = list(zip(table["recogniser"], table["versus"], strict=True))
    assert keys == [(j, v) for j in ("judge_a", "judge_b") for v in ("real", "synthetic")]

    unit = {
        source: rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for source in ("real", VARIANT)
        for rows in [world.features(source, "judge_a").astype(float)]
    }
    who_real, who_synthetic = np.repeat(range(5), 6), np.repeat(range(5), 5)
    scores = unit[VARIANT] @ unit["real"].T
    same = who_synthetic[:, None] == who_real[None, :]
    theirs = get_eer_stats(list(scores[same]), list(scores[~same]))
    row = table.iloc[0]
    assert (row["n_genuine"], row["n_impostor"]) == (150, 600)
    assert row["eer"] == pytest.approx(theirs.eer, abs=1e-7)
    assert row["fmr100"] == pytest.approx(theirs.fmr100, abs=1e-7)
    # 600 impostor pairs cannot tell a rate of one in a thousand.
    assert table["fmr1000"].isna().all() and table["fmr100"].notna().all()
    assert row["genuine_mean"] == pytest.approx(theirs.gmean, abs=1e-6)
    assert row["impostor_sd"] == pytest.approx(theirs.istd, abs=1e-6)
    fdr = (theirs.gmean - theirs.imean) ** 2 / (theirs.gstd**2 + theirs.istd**2)
    assert row["fdr"] == pytest.approx(fdr, rel=1e-6)
    assert row["fdr_low"] < row["fdr"] < row["fdr_high"]
    assert row["eer_low"] <= row["eer"] <= row["eer_high"]
    assert table["n_genuine"][1] == 5 * 10
    assert table["fdr"][0] > table["fdr"][2]  # the noisier judge separates less


def test_many_pairs_give_the_same_rows_and_replicates(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"variant-features": VARIANT, "real": "real"}
    files = [world.root / name for name in ("few.parquet", "many.parquet")]
    listed = world.score("identity", sources, "few.csv", "--replicates", str(files[0]))
    monkeypatch.setattr(identity, "MAX_PAIRS", 100)
    condensed = world.score("identity", sources, "many.csv", "--replicates", str(files[1]))
    exact = list(IDENTITY_COLUMNS[:8])  # up to the equal error rate
    pd.testing.assert_frame_equal(condensed[exact], listed[exact], rtol=1e-6)
    rest = list(IDENTITY_COLUMNS[8:-1])
    np.testing.assert_allclose(condensed[rest], listed[rest], rtol=1e-4, atol=1e-4)
    few, many = (pd.read_parquet(file) for file in files)
    assert few.columns.tolist() == many.columns.tolist()
    numbers = ["n_identities", "replicate", "eer", "fdr", "genuine_mean"]
    np.testing.assert_allclose(few[numbers], many[numbers], rtol=1e-3, atol=1e-3)
    assert (few["identities_sha256"] == many["identities_sha256"]).all()
    monkeypatch.setattr(pairs, "GROUPS", 3)  # of five people: draws that pair with no others
    world.score("identity", sources, "groups.csv", "--replicates", str(files[1]))
    assert set(pd.read_parquet(files[1])["identities_sha256"]).isdisjoint(few["identities_sha256"])


def test_identity_of_the_real_images_among_themselves(world: World) -> None:
    table = world.score("identity", {"real": "real", "wild": "wild"})
    assert table["versus"].tolist() == ["real", "real"]
    assert table["n_genuine"][0] == 5 * 15
    assert table["base_model"].tolist() == ["real", "real"]


def test_replicates_of_two_variants_are_paired(world: World) -> None:
    from pipeline_steps.io.manifests import read_manifest

    world.write(
        "demo/dreambooth/base", [f"ID_{i}/{j}.png" for i in range(1, 6) for j in range(5)], 0
    )
    tables = []
    for method in ("idbooth", "dreambooth"):
        file = world.root / f"{method}.parquet"
        sources = {"variant-features": f"demo/{method}/base", "real": "real"}
        world.score("identity", sources, "x.csv", "--replicates", str(file))
        tables.append(read_manifest(file))
    assert len(tables[0]) == 2 * 2 * 50
    assert tables[0]["identities_sha256"].nunique() == 1
    assert set(tables[0]["identities_sha256"]) == set(tables[1]["identities_sha256"])


def test_pose_gives_the_spread_within_identities(world: World) -> None:
    table = world.score("pose", {"variant-features": VARIANT})
    assert tuple(table.columns) == POSE_COLUMNS
    yaw = world.features(VARIANT, "pose")[:, 1]
    assert table["yaw_mean"][0] == pytest.approx(yaw.mean(), abs=1e-6)
    within = yaw.reshape(5, 5).std(axis=1).mean()
    assert table["yaw_within_identity_sd"][0] == pytest.approx(within, rel=1e-5)
    assert (table["n"][0], table["extractor"][0]) == (25, "pose")
    references = world.score("pose", {"real": "real", "wild": "wild"})
    assert references["base_model"].tolist() == ["real", "wild"]
    assert references["yaw_within_identity_sd"].isna().tolist() == [False, True]


def test_a_constant_pose_per_identity_has_spread_between_but_none_within() -> None:
    angles = np.repeat(np.array([[0.0, -30, 0], [0, 0, 0], [0, 30, 0]], np.float32), 4, axis=0)
    row = pose_row(angles, [name for name in "abc" for _ in range(4)])
    assert row["yaw_within_identity_sd"] == 0.0
    assert row["yaw_sd"] == pytest.approx(np.sqrt(600))


def test_same_inputs_give_the_same_bytes(world: World) -> None:
    sources = {"variant-features": VARIANT, "real": "real", "wild": "wild"}
    for kind in ("quality", "identity", "pose"):
        world.score(kind, sources, "a.csv")
        world.score(kind, sources, "b.csv")
        assert (world.root / "a.csv").read_bytes() == (world.root / "b.csv").read_bytes()


def test_the_study_seed_changes_the_draws(world: World) -> None:
    first = world.score("quality", {"variant-features": VARIANT, "real": "real"})
    config = json.loads((world.root / "score.json").read_text())
    (world.root / "score.json").write_text(json.dumps(config | {"seed": 4}))
    second = world.score("quality", {"variant-features": VARIANT, "real": "real"})
    assert first["fid"][0] != second["fid"][0]


def expect_error(world: World, message: str, *argv: str) -> None:
    with pytest.raises(StepError, match=message):
        main(
            ["--config", str(world.root / "score.json"), "--out", str(world.root / "o.csv"), *argv]
        )
    assert not (world.root / "o.csv").exists()


def test_missing_extractors_and_mixed_sets_are_named(world: World) -> None:
    judge = [str(world.path(VARIANT, "judge_a"))]
    expect_error(
        world,
        r"lacks judge_b.safetensors of demo/idbooth/base",
        "--kind",
        "identity",
        "--variant-features",
        *judge,
        "--real",
        *judge,
    )
    mixed = [str(world.path("real", "judge_a")), str(world.path("wild", "judge_b"))]
    expect_error(world, "mixes the sets real, wild", "--kind", "identity", "--real", *mixed)
    expect_error(
        world,
        "--real got features of wild",
        "--kind",
        "pose",
        "--real",
        str(world.path("wild", "pose")),
    )


def test_features_of_another_variant_than_configured_are_refused(world: World) -> None:
    world.configure(SETTINGS, base_model="demo", method="dreambooth", prompts="base")
    pose = str(world.path(VARIANT, "pose"))
    expect_error(world, "for method dreambooth", "--kind", "pose", "--variant-features", pose)


def test_extractors_about_different_images_are_refused(world: World) -> None:
    save_features(world.path(VARIANT, "quality"), np.ones((2, 1), np.float32), ["ID_1/0.png", "x"])
    names = ("set", "quality", "prompt")
    expect_error(
        world,
        "about different images",
        "--kind",
        "quality",
        "--variant-features",
        *(str(world.path(VARIANT, name)) for name in names),
        "--real",
        *(str(world.path("real", name)) for name in names),
    )


def test_one_image_a_person_leaves_cells_empty_and_says_why(world: World) -> None:
    world.write(VARIANT, [f"{name}/0.png" for name in world.people], 0.4)
    sources = {"variant-features": VARIANT, "real": "real"}
    table = world.score("identity", sources).set_index("versus")
    assert table.loc["real", ["eer", "fdr"]].notna().all(axis=None)
    row = table.loc["synthetic"].iloc[0]
    assert row[["eer", "fdr", "fdr_low", "genuine_mean"]].isna().all()
    assert (row["n_genuine"], row["n_impostor"]) == (0, 10)
    assert row[["impostor_mean", "impostor_sd"]].notna().all()
    assert row["reasons"] == "no genuine pair: nobody has two images"
    world.write("real", [f"{name}/0.png" for name in world.people], 0.0)
    assert "nobody has two" in world.score("identity", {"real": "real"})["reasons"][0]
    world.write(VARIANT, ["ID_1/0.png", "ID_2/0.png"], 0.4)
    row = world.score("quality", sources).iloc[0]
    assert row[["fid", "kd", "vendi", "cmmd"]].notna().all()
    assert row[["precision", "recall", "density", "coverage"]].isna().all()
    assert row["reasons"].startswith("precision, recall, density, coverage: ")


@pytest.mark.parametrize("kind", ["quality", "identity", "pose"])
def test_a_set_without_a_face_is_a_row_that_says_so(world: World, kind: str) -> None:
    sources = {"variant-features": VARIANT, "real": "real"}
    whole = world.score(kind, sources)
    for extractor in EXTRACTORS:
        save_features(world.path(VARIANT, extractor), np.empty((0, 0), np.float32), [])
    draws = world.root / "draws.parquet"
    extra = ["--replicates", str(draws)] if kind == "identity" else []
    table = world.score(kind, sources, "empty.csv", *extra)
    assert len(table) == len(whole)
    assert set(table["reasons"]) == {"no image of the set shows a face"}
    numbers = whole.select_dtypes("float").columns.difference(["reasons"])
    assert table[numbers].isna().all(axis=None)
    assert kind != "identity" or pd.read_parquet(draws).empty


def test_csv_holds_plain_numbers(world: World) -> None:
    world.score("identity", {"variant-features": VARIANT, "real": "real"})
    with (world.root / "out.csv").open() as file:
        for row in csv.DictReader(file):
            assert row.pop("fmr1000") == ""
            assert all(
                float(row[name]) == float(row[name])
                for name in IDENTITY_COLUMNS[5:-1]
                if name != "fmr1000" and (name != "reference_distance" or row["versus"] == "real")
            )
