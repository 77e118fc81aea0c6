from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_steps import figures
from pipeline_steps.evidence.figures.grids import Gallery, distinct_words, unit_embeddings
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.figures import main
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.tables import write_csv
from pipeline_steps.io.tensors import load_features, save_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.evidence import FiguresSettings
from pipeline_steps.study.source import Source

PEOPLE = ("ID_1", "ID_2", "ID_10")
METHODS = ("untuned", "idbooth")
VARIANTS = [f"demo/{method}/complex" for method in METHODS]


class Study:
    """Photographs, samples and embeddings of three people and two methods."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        centres = {name: rng.standard_normal(8) for name in PEOPLE}
        rows, files, embeddings = [], [], []
        for name in PEOPLE:
            for position in (1, 4, 7):
                file = f"images/{name}/{position}.png"
                write_png(root / "dataset" / file, rng.integers(0, 255, (20, 20, 3), np.uint8))
                rows.append(
                    {
                        "identity": name,
                        "file": file,
                        "position": position,
                        "kept": True,
                        "reason": "",
                    }
                )
                files.append(f"{name}/{position}.png")
                embeddings.append(centres[name] + 0.1 * rng.standard_normal(8))
        rows.append({"identity": "ID_1", "file": "", "kept": False, "reason": "no face"})
        write_manifest(root / "dataset/manifest.parquet", rows, list(rows[0]))
        self.save("real", files, embeddings)
        self.save("real", files, 20 * rng.standard_normal((len(files), 3)), "pose")
        for method in METHODS:
            self.variant(Source("demo", method, "complex"), centres, rng)
        rows = [dict.fromkeys(GROUP_COLUMNS, 0.5) | {"recogniser": "judge", "by": "gender"}] * 2
        named = [row | {"group": group} for row, group in zip(rows, ("F", "M"), strict=True)]
        self.groups = [root / f"groups/{name}/groups.csv" for name in ("real", *VARIANTS)]
        for path in self.groups:
            write_csv(path, named, GROUP_COLUMNS)
        self.scores = []
        names = {"base_model": "demo", "prompts": "complex"}
        for method in METHODS:
            own = names | {"method": method}
            judged = own | {"versus": "real", "recogniser": "judge", "reference_distance": 0.5}
            for kind, row in (
                ("scores/quality", own | {"prompt_score": float("nan")}),
                ("scores/identity", judged),
                ("audit", own | {"psnr": 15.0, "ssim": 0.4}),
            ):
                self.scores.append(root / f"{kind}/demo/{method}/complex.csv")
                write_csv(self.scores[-1], [row], list(row))
        frozen = {"study": "s", "step": "figures", "seed": 0, "weights": {}, "variant": {}}
        settings = {"samples_columns": 3, "overview_columns": 2, "dpi": 72, "width": 4.0}
        (root / "figures.json").write_text(json.dumps(frozen | {"settings": settings}))

    def variant(self, source: Source, centres: dict, rng: np.random.Generator) -> None:
        rows, files, embeddings = [], [], []
        for name in PEOPLE:
            for index, mood in enumerate(("happy", "sad", "angry")):
                file = f"{name}/{index}.png"
                write_png(
                    self.root / "samples" / source.name / file,
                    rng.integers(0, 255, (16, 16, 3), np.uint8),
                )
                prompt = f"photo of sks person, {mood} expression"
                rows.append({"identity": name, "index": index, "file": file, "prompt": prompt})
                if (name, index) != ("ID_1", 1):  # no face was found in this one
                    files.append(file)
                    embeddings.append(centres[name] + rng.standard_normal(8))
        write_manifest(self.root / "samples" / source.name / "manifest.parquet", rows)
        self.save(source.name, files, embeddings)
        self.save(source.name, files, 20 * rng.standard_normal((len(files), 3)), "pose")

    def save(
        self, source: str, files: list[str], embeddings: object, extractor: str = "judge"
    ) -> None:
        path = self.root / "features" / source / f"{extractor}.safetensors"
        save_features(path, np.asarray(embeddings, np.float32), files)

    def features(self, method: str, recogniser: str = "judge") -> Path:
        folder = self.root / "features" / "demo" / method / "complex"
        return folder / f"{recogniser}.safetensors"

    def samples(self, method: str) -> Path:
        return self.root / "samples" / "demo" / method / "complex" / "manifest.parquet"

    def run(
        self, out="figures", features=METHODS, samples=METHODS, recogniser="judge", **settings
    ) -> Path:
        config = self.root / "figures.json"
        frozen = json.loads(config.read_text())
        config.write_text(json.dumps(frozen | {"settings": frozen["settings"] | settings}))
        argv = ["--config", str(config), "--dataset", str(self.root / "dataset")]
        argv += ["--real", str(self.root / "features/real/judge.safetensors")]
        argv += ["--variant-features", *(str(self.features(m, recogniser)) for m in features)]
        argv += ["--samples", *(str(self.samples(method)) for method in samples)]
        argv += ["--pose", str(self.root / "features/real/pose.safetensors")]
        argv += [str(self.features(method, "pose")) for method in features]
        argv += ["--groups", *map(str, self.groups), "--scores", *map(str, self.scores)]
        assert main([*argv, "--out", str(self.root / out)]) == 0
        return self.root / out

    def gallery(self) -> Gallery:
        photographs = read_manifest(self.root / "dataset/manifest.parquet")
        sources = {Source("demo", method, "complex"): method for method in METHODS}
        return Gallery(
            photographs=photographs[photographs["kept"]],
            dataset=self.root / "dataset",
            samples={s: read_manifest(self.samples(m)) for s, m in sources.items()},
            folders={s: self.samples(m).parent for s, m in sources.items()},
            real=unit_embeddings(load_features(self.root / "features/real/judge.safetensors")),
            synthetic={
                s: unit_embeddings(load_features(self.features(m))) for s, m in sources.items()
            },
        )


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_every_figure_in_two_forms_the_same_every_time(study: Study) -> None:
    first = {path.name: path.read_bytes() for path in study.run("a").iterdir()}
    names = ("distributions", "samples", "overview", "pose", "attributes", "groups", "measures")
    figures = {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    assert set(first) == figures | {"all.record.json"}
    assert {path.name: path.read_bytes() for path in study.run("b").iterdir()} == first
    assert Image.open(study.root / "a/overview.png").size[0] == 4 * 72


def test_a_method_that_lost_every_face_or_image_leaves_the_others_their_figures(
    study: Study,
) -> None:
    for extractor in ("judge", "pose"):
        study.save("demo/idbooth/complex", [], np.empty((0, 0)), extractor)
    assert len(list(study.run("a").iterdir())) == 15
    rows = read_manifest(study.samples("idbooth"))
    write_manifest(study.samples("idbooth"), rows.assign(file=None))
    assert len(list(study.run("b").iterdir())) == 15


def test_groups_of_an_external_set_take_no_methods_place(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = study.root / "groups/external/others/groups.csv"
    write_csv(others, [], GROUP_COLUMNS)
    monkeypatch.setattr(figures, "groups_figure", lambda frames, **_: frames)
    tables = [*study.groups, others]
    shown = figures._groups(FiguresSettings(), study.gallery(), tables, "judge", {})
    assert sorted(shown) == sorted(["-", *METHODS])


def test_similarity_is_the_mean_over_the_persons_photographs(study: Study) -> None:
    source = Source("demo", "idbooth", "complex")
    tiles = study.gallery().sample_tiles(source, "ID_1", 3)
    real = load_features(study.root / "features/real/judge.safetensors").features[:3].astype(float)
    sample = load_features(study.features("idbooth")).features[0].astype(float)
    cosines = real @ sample / np.linalg.norm(real, axis=1) / np.linalg.norm(sample)
    assert float(tiles[0].caption.replace("−", "-")) == pytest.approx(cosines.mean(), abs=0.005)
    assert tiles[1].caption == "no face"


def test_similarities_of_all_samples_agree_with_the_captions(study: Study) -> None:
    source, gallery = Source("demo", "idbooth", "complex"), study.gallery()
    frame = gallery.similarities(source)
    captions = [t.caption for name in PEOPLE for t in gallery.sample_tiles(source, name, 3)]
    assert frame["similarity"].isna().tolist() == [caption == "no face" for caption in captions]
    for value, caption in zip(frame["similarity"], captions, strict=True):
        if caption != "no face":
            assert float(caption.replace("−", "-")) == pytest.approx(value, abs=0.005)
    assert frame["prompt"].str.contains("sad expression").sum() == 3


def test_a_photograph_is_not_compared_with_itself(study: Study) -> None:
    tiles = study.gallery().photograph_tiles("ID_1", 3)
    real = load_features(study.root / "features/real/judge.safetensors").features[:3].astype(float)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    assert float(tiles[0].caption) == pytest.approx((real[1:] @ real[0]).mean(), abs=0.005)


def test_people_come_in_natural_order_and_the_portrait_is_the_middle_position(study: Study) -> None:
    gallery = study.gallery()
    assert gallery.identities() == ["ID_1", "ID_2", "ID_10"]
    portrait = np.asarray(Image.open(study.root / "dataset/images/ID_2/4.png"))
    assert np.array_equal(gallery.portrait_tiles("ID_2")[0].image, portrait)


def test_people_who_do_not_exist_are_shown_without_photographs(study: Study) -> None:
    gallery = study.gallery()
    made_up = gallery.photographs.assign(identity="ID_99")
    gallery = dataclasses.replace(gallery, photographs=made_up)
    assert gallery.identities() == ["ID_1", "ID_2", "ID_10"]
    assert gallery.portrait_tiles("ID_1") == gallery.photograph_tiles("ID_1", 3) == []


def test_headers_show_only_what_differs() -> None:
    prompts = [
        "photo of sks person, close-up portrait, happy expression, busy forest environment",
        "photo of sks person, close-up portrait, sad expression, busy city street environment",
    ]
    assert distinct_words(prompts) == ["happy, forest", "sad, city street"]
    assert distinct_words(["photo", "photo"]) == ["", ""]


def test_a_broken_image_leaves_its_place_empty(study: Study) -> None:
    (study.samples("idbooth").parent / "ID_1/0.png").write_bytes(b"no image")
    tiles = study.gallery().sample_tiles(Source("demo", "idbooth", "complex"), "ID_1", 3)
    assert [tile.image is None for tile in tiles] == [True, False, False]
    study.run()


def test_wrong_inputs_are_named(study: Study) -> None:
    with pytest.raises(StepError, match="same variants: demo/untuned/complex"):
        study.run(samples=("idbooth",))
    with pytest.raises(StepError, match="samples of ID_99"):
        study.run(identities=["ID_99"])
    study.features("idbooth", "other").write_bytes(study.features("idbooth").read_bytes())
    with pytest.raises(StepError, match="one recogniser, but got features of judge, other"):
        study.run(features=("idbooth",), samples=("idbooth",), recogniser="other")
