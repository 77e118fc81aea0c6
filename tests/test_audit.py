from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_steps.audit import main
from pipeline_steps.demo_world.rendering.population import (
    CONSENTED,
    HELD_OUT,
    laboratory_session,
    person,
    wild_nuisance,
)
from pipeline_steps.evidence.audit.checks import (
    PAIR_COLUMNS,
    SAMPLE_COLUMNS,
    SUMMARY_COLUMNS,
    VERDICTS,
)
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.images import read_image, write_png
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.registry import read_models

ROOT = Path(__file__).parents[1]
JUDGE = "demo_recogniser"
PEOPLE = 6
VARIANT = "demo/idbooth/base"


def crop(population: str, number: int, nuisance) -> np.ndarray:
    photo = person(5, population, number).photograph(nuisance, 64, 1)
    return align_to_template(photo.image, photo.landmarks)


def in_the_wild(population: str, number: int, index: int) -> np.ndarray:
    return crop(population, number, wild_nuisance(5, population, number, index, max_yaw=15))


class World:
    """Photographs, new images of the same people, and strangers: rendered, aligned, embedded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recogniser = load_recogniser(read_models(ROOT / "config" / "models.yaml")[JUDGE])
        photographs, samples = {}, {}
        for number in range(PEOPLE):
            name = f"ID_{number + 1}"
            for camera, position, nuisance in laboratory_session(5, number):
                if position in (2, 4, 6) and camera < 3:
                    file = f"{name}/{camera}_{position}.png"
                    photographs[file] = crop(CONSENTED, number, nuisance)
            for index in range(5):
                samples[f"{name}/{index}.png"] = in_the_wild(CONSENTED, number, index)
        strangers = {f"{i:05}.png": in_the_wild(HELD_OUT, i, 0) for i in range(16)}
        self.stranger = [in_the_wild(HELD_OUT, 103, index) for index in range(10)]
        self.put("real", photographs)
        self.put("wild", strangers)
        self.put(VARIANT, samples)
        self.samples = samples

    def put(self, source: str, images: dict[str, np.ndarray]) -> None:
        for file, image in images.items():
            write_png(self.root / "aligned" / source / file, image)
        rows = self.recogniser.embed(np.stack(list(images.values())))
        save_features(self.root / f"features/{source}/{JUDGE}.safetensors", rows, list(images))

    def run(self, source: str = VARIANT, *, wild: bool = True, judge: str = JUDGE, **settings):
        config = {"study": "s", "step": "audit", "seed": 0, "weights": {}, "variant": {}}
        (self.root / "audit.json").write_text(json.dumps(config | {"settings": settings}))
        features, aligned = self.root / "features", self.root / "aligned"
        argv = ["--config", self.root / "audit.json", "--out", self.root / "audit" / source]
        argv += ["--variant-features", features / source / f"{judge}.safetensors"]
        argv += ["--real", features / "real" / f"{JUDGE}.safetensors"]
        argv += ["--aligned", aligned / source, "--real-aligned", aligned / "real"]
        if wild:
            argv += ["--wild", features / "wild" / f"{JUDGE}.safetensors"]
            argv += ["--wild-aligned", aligned / "wild"]
        assert main([str(part) for part in argv]) == 0
        tables = [
            pd.read_csv(self.root / "audit" / f"{source}{ending}.csv")
            for ending in ("", ".pairs", ".summary")
        ]
        return tables[0], tables[1], tables[2].iloc[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_new_images_of_the_people_raise_no_alarm(world: World) -> None:
    samples, pairs, summary = world.run()
    assert tuple(samples.columns) == SAMPLE_COLUMNS
    assert tuple(pairs.columns) == PAIR_COLUMNS
    assert tuple(summary.index) == SUMMARY_COLUMNS
    assert (summary["base_model"], summary["method"], summary["prompts"]) == tuple(
        VARIANT.split("/")
    )
    assert len(samples) == PEOPLE * 5
    assert set(samples["shows"]) <= {"own", "nobody"}
    assert summary["own_share"] > 0.7
    assert [summary[column] for column in VERDICTS.values()] == ["pass"] * 4, summary["sentence"]
    assert summary["sentence"] == "pass: nothing suspicious."
    assert not pairs["flagged"].any()
    assert not samples[["copy", "stranger"]].any(axis=None)


def test_a_variant_without_a_face_is_not_audited_and_says_so(world: World) -> None:
    empty = world.root / f"features/demo/none/base/{JUDGE}.safetensors"
    save_features(empty, np.empty((0, 0), np.float32), [])
    samples, pairs, summary = world.run("demo/none/base")
    assert samples.empty and pairs.empty
    assert (summary["verdict"], summary["n_images"]) == ("look", 0)
    assert summary["sentence"].startswith("look: not audited: ")


@pytest.fixture(scope="module")
def leak(world: World) -> World:
    """One copied photograph, two identities exchanged, two identities that are one stranger."""
    planted = dict(world.samples)
    photograph = Image.fromarray(read_image(world.root / "aligned/real/ID_6/1_4.png"))
    small = photograph.resize((64, 64), Image.Resampling.BICUBIC)
    planted["ID_6/2.png"] = np.asarray(small.resize((112, 112), Image.Resampling.BICUBIC))
    for index in range(5):
        planted[f"ID_1/{index}.png"] = world.samples[f"ID_2/{index}.png"]
        planted[f"ID_2/{index}.png"] = world.samples[f"ID_1/{index}.png"]
        planted[f"ID_4/{index}.png"] = world.stranger[index]
        planted[f"ID_5/{index}.png"] = world.stranger[5 + index]
    world.put("demo/leak/base", planted)
    return world


def test_a_planted_leak_is_found_and_nothing_else_is_called_one(leak: World) -> None:
    samples, pairs, summary = leak.run("demo/leak/base")
    assert summary["swapped_identities"] == 2
    assert set(samples.loc[samples["shows"] == "other", "identity"]) == {"ID_1", "ID_2"}
    assert set(samples.loc[samples["copy"], "file"]) == {"ID_6/2.png"}
    copied = samples.set_index("file").loc["ID_6/2.png"]
    assert copied["pixel_photograph"] == "ID_6/1_4.png"
    assert copied["pixel_similarity"] > 0.99
    assert (summary["collisions"], summary["collisions_of_photographs"]) == (1, 0)
    found = pairs[pairs["flagged"]].groupby("check")
    (collision,) = found.get_group("collisions").to_dict("records")
    assert {collision["identity"], collision["other_identity"]} == {"ID_4", "ID_5"}
    assert set(found.get_group("swaps")["other_identity"]) == {"ID_1", "ID_2"}
    assert [summary[column] for column in VERDICTS.values()] == ["fail", "fail", "fail", "pass"]
    assert summary["verdict"] == "fail"
    assert "1 image is a near copy of a photograph" in summary["sentence"]


def test_an_identity_that_shows_somebody_of_the_wild_set_fails(world: World) -> None:
    planted = dict(world.samples)
    for index in range(5):
        planted[f"ID_3/{index}.png"] = in_the_wild(HELD_OUT, 7, index + 1)
    world.put("demo/wild/base", planted)
    samples, pairs, summary = world.run("demo/wild/base")
    assert set(samples.loc[samples["stranger"], "wild_file"]) == {"00007.png"}
    assert (summary["stranger_identities"], summary["strangers_by_chance"]) == (1, 0.3)
    assert summary["strangers"] >= 3
    assert summary["verdict"] == "fail"
    flagged = pairs[pairs["flagged"]]
    assert set(flagged["other_set"]) == {"wild"}


def test_without_a_reference_set_its_check_asks_to_be_looked_at(world: World) -> None:
    samples, pairs, summary = world.run(wild=False)
    assert samples["wild_similarity"].isna().all()
    assert (summary["strangers"], summary["verdict"]) == (0, "look")
    assert "no reference set" in summary["sentence"]
    assert set(pairs["check"]) <= {"swaps", "collisions", "copies"}


def test_the_page_holds_its_pictures_and_loads_nothing(leak: World) -> None:
    leak.run("demo/leak/base", pairs=3)
    page = (leak.root / "audit/demo/leak/base.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * page.count('<div class="two">') == 2 * (3 + 3 + 3 + 3)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(re.findall(r'id="(\w+)"', page))
    assert '<li class="flagged">' in page
    assert "url(" not in page


def test_an_unreadable_image_is_counted_but_not_searched_for_copies(world: World) -> None:
    world.put("demo/broken/base", world.samples)
    (world.root / "aligned/demo/broken/base/ID_1/0.png").write_bytes(b"no image")
    samples, _, summary = world.run("demo/broken/base")
    row = samples.set_index("file").loc["ID_1/0.png"]
    assert np.isnan(row["pixel_similarity"])
    assert summary["n_images"] == len(samples) == PEOPLE * 5
    assert samples["pixel_similarity"].notna().sum() == len(samples) - 1


def test_unfit_features_are_named(world: World) -> None:
    other = world.root / "features" / VARIANT / "other.safetensors"
    other.write_bytes((other.parent / f"{JUDGE}.safetensors").read_bytes())
    with pytest.raises(StepError, match=r"one recogniser, but got features of demo_recogniser, ot"):
        world.run(judge="other")
    real = world.root / "features" / "real" / f"{JUDGE}.safetensors"
    kept, rows = real.read_bytes(), load_features(real)
    save_features(real, rows.features[:3], rows.files[:3])
    assert "two people at least" in world.run()[2]["sentence"]
    real.write_bytes(kept)
