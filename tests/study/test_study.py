from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.recognition import benchmark_name
from pipeline_steps.study.settings.study import read_study

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.stem != "models")


def demo(**changes: Any) -> dict[str, Any]:
    """The demo's configuration with dotted keys changed; a double underscore stands for a dot."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    for key, value in changes.items():
        *path, last = key.split("__")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_makes_a_plan_of_its_own_name(path: Path) -> None:
    plan = make_plan(yaml.safe_load(path.read_text("utf-8")), str(path))
    assert plan.study.name == path.stem


def test_people_who_do_not_exist_are_shown_by_methods_that_need_no_photograph() -> None:
    of_id3 = {"methods": ["untuned", "id3"], "training_sets": ["real", "demo/id3/base"]}
    plan = make_plan(demo(identities="made_up", **of_id3), "demo")
    assert plan.people == "results/demo/invented/identities.csv"
    assert len(plan.jobs["invent"]) == 1 and not plan.jobs.keys() & {"embed", "finetune", "prior"}
    assert plan.targets_of("demo/id3/base") and not plan.targets_of("demo/untuned/base")
    with pytest.raises(StepError, match=r"methods: dreambooth needs photographs .*: id3"):
        make_plan(demo(identities="made_up"), "demo")


def test_people_stand_together_where_a_method_looks_at_photographs() -> None:
    groups = {"groups": {"pair": {"people": ["ID_1", "ID_2"], "masks": ["left", "data/b.png"]}}}
    plan = make_plan(demo(sample_together=groups), "demo")
    assert "data/b.png" in plan.put_in and "left" not in plan.put_in
    assert plan.jobs["sample_together"] == [
        "results/demo/together/demo/facefusion/manifest.parquet"
    ]
    assert not set(plan.jobs["sample_together"]) - set(plan.targets)  # nothing is made from them
    alone = make_plan(demo(), "demo").frozen
    assert {alone[path] == text for path, text in plan.frozen.items() if path in alone} == {True}
    with pytest.raises(StepError, match="no method of this study looks at photographs"):
        make_plan(demo(sample_together=groups, methods=["untuned"], training_sets=[]), "demo")


def test_the_paper_presets_have_the_papers_values() -> None:
    """Facts of the publication, written down once more, independent of the models' defaults."""
    for name, steps, resolution in (("paper_sd21", 6400, 512), ("paper_sdxl", 1000, 1024)):
        study = read_study(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()), name)
        finetune = study.finetune
        assert (finetune.rank, finetune.alpha, finetune.steps) == (4, 4.0, steps)
        assert (finetune.learning_rate, finetune.weight_decay) == (1e-4, 1e-2)
        assert (finetune.margin, finetune.prior_weight, finetune.clip_norm) == (1.0, 1.0, 1.0)
        assert (study.prior.images, study.prepare.resolution) == (200, resolution)
        assert (study.sample.steps, study.sample.guidance) == (30, 5.0)
        assert study.sample.images_per_identity == 21
        assert study.prompt_sets == ("base", "complex")
        assert study.methods == ("untuned", "dreambooth", "portraitbooth", "idbooth")
        recognise = study.recognise
        assert (recognise.loss, recognise.scale, recognise.margin) == ("cosface", 64.0, 0.35)
        assert (recognise.epochs, recognise.batch_size, recognise.backbone) == (
            200,
            128,
            "iresnet18",
        )
        assert [benchmark_name(path) for path in study.benchmarks] == [
            "lfw",
            "agedb_30",
            "calfw",
            "cfp_fp",
            "cplfw",
        ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sede": 1}, "unknown key 'sede'"),
        ({"finetune__rnak": 4}, "unknown key 'finetune.rnak'"),
        ({"score__quality__kk": 4}, "unknown key 'score.quality.kk'"),
        ({"finetune__rank": 0}, "finetune.rank"),
        ({"finetune__learning_rate": "fast"}, "finetune.learning_rate"),
        ({"name": "my-study"}, "name"),
        ({"name": "../x"}, "name"),
        ({"methods": ["dreamboth"]}, "'dreamboth' is no method"),
        ({"methods": []}, "methods"),
        (
            {"prompt_sets": ["base", "base"]},
            "prompt_sets: an entry stands there twice",
        ),
        ({"shares": 0}, "shares"),
        ({"training_sets": ["demo/untuned/base"]}, "'demo/untuned/base' is none of this study's"),
        ({"training_sets": ["sd21/idbooth/base"]}, "'sd21/idbooth/base' is none of this study's"),
        ({"recognise__validation": "lfw"}, "recognise.validation: 'lfw' is none of"),
        ({"recognise__validation": "data/plain.bin"}, "has the name of a benchmark"),
        ({"training_sets": ["demo/idbooth/base+real"]}, "real first"),
        ({"training_sets": ["real+real"]}, "name each part once"),
        ({"training_sets": ["external/vface"]}, "'external/vface' is none of this study's"),
        ({"external_sets": {"idbooth": "x"}}, "'idbooth' already means something else"),
        ({"external_sets": {"real": "x"}}, "'real' already means something else"),
        ({"external_sets": {"a/b": "x"}}, "small letters"),
        ({"training_sets": ["real+demo/idbooth/basic"]}, "'demo/idbooth/basic' is none"),
        ({"benchmarks": ["a/plain.bin", "b/plain.bin"]}, "two files of one name"),
        ({"prompt_sets": ["basic"], "training_sets": ["real"]}, "config/prompts/basic.yaml"),
        ({"recogniser": "arcface"}, "recogniser: config/models.yaml has no entry 'arcface'"),
        ({"recogniser": "demo"}, "recogniser: 'demo' is for base_model, not recogniser"),
        ({"figures__recogniser": "arcface_r100"}, "is none of score.identity.recognisers"),
        (
            {"train_generator__embeddings": {"trains": "attention"}},
            "trains: attention leaves the rest of a network untrained",
        ),
        ({"score__pose__extractor": "posenet"}, "no entry 'posenet'"),
        ({"prepare__resolution": 32}, "prepare.resolution is 32, but base model 'demo' has 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_an_error_that_names_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(StepError) as caught:
        make_plan(demo(**changes), "my.yaml")
    assert named in str(caught.value)


def test_errors_name_the_file() -> None:
    with pytest.raises(StepError, match=r"^my\.yaml: unknown key 'x'"):
        make_plan(demo(x=1), "my.yaml")


def test_variants_are_all_combinations_in_the_given_order() -> None:
    study = read_study(demo(methods=["idbooth", "untuned"], training_sets=["real"]), "")
    assert study.variants == [
        "demo/idbooth/base",
        "demo/idbooth/complex",
        "demo/untuned/base",
        "demo/untuned/complex",
    ]
