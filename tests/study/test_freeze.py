from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_steps.io.atomic import json_text, write_json
from pipeline_steps.study.code import texts_behind
from pipeline_steps.study.freeze import freeze, freeze_world
from pipeline_steps.study.plan import Plan, make_plan
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.study import Study

ROOT = Path(__file__).parents[2]
METHODS = ("dreambooth", "portraitbooth", "idbooth")
SAMPLE = "sample/demo/{}/base.json"
SAMPLES = {
    f"sample/demo/{method}/{prompts}.json"
    for method in ("untuned", *METHODS)
    for prompts in ("base", "complex")
}


def demo(changes: dict[str, Any] | None = None) -> Plan:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    config["sample"]["gate"] = None
    config["methods"] = ["untuned", *METHODS]
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    return make_plan(config, "demo.yaml")


def files(plan: Plan) -> dict[str, str]:
    frozen = freeze(plan.study, plan.models, plan.prompt_sets)
    return {path: json_text(content) for path, content in frozen.items()}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return files(demo())


def finetune(*methods: str) -> set[str]:
    return {f"finetune/demo/{method}.json" for method in methods}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finetune.margin": 0.77}, finetune("idbooth")),
        ({"finetune.identity_weight": 0.5}, finetune("portraitbooth", "idbooth")),
        ({"finetune.timestep_weighting": "none"}, finetune("portraitbooth", "idbooth")),
        ({"finetune.learning_rate": 3.21e-4}, finetune(*METHODS)),
        ({"finetune.overrides": {"sdxl": {"steps": 7}}}, set()),
        ({"finetune.overrides": {"demo": {"steps": 7}}}, finetune(*METHODS)),
        ({"prepare.expected.identities": [1, 2]}, {"check_dataset.json"}),
        ({"prior.images": 9}, {"prior/demo.json"}),
        (
            {"sample.guidance": 7.5},
            SAMPLES,
        ),
        ({"align.padding": 0.25}, {"align.json"}),
        ({"score.quality.k": 5}, {"score/quality.json"}),
        ({"score.identity.replicates": 10}, {"score/identity.json"}),
        ({"figures.dpi": 100}, {"figures.json"}),
        ({"tables.intervals": True}, {"tables.json"}),
        (
            {"recogniser": "arcface_r100"},
            {"prepare.json", "embed.json", "prior/demo.json"}
            | {"tables.json", "report.json", "explore.json"}
            | finetune("portraitbooth", "idbooth")
            | {
                f"export/demo/{method}/{prompts}.json"
                for method in ("portraitbooth", "idbooth")
                for prompts in ("base", "complex")
            },
        ),
        ({"sample.gate": {"min_similarity": 0.2}}, SAMPLES),
        ({"audit.fmr": 0.01}, {"audit.json"}),
        (
            {"score.identity.recognisers": ["arcface_r100"]},
            {"score/identity.json", "audit.json", "figures.json", "report.json"},
        ),
        ({"shares": 5}, set()),
        ({"training_sets": ["real"]}, set()),
        ({"recognise.repetitions": 3}, set()),
        ({"prompt_sets": ["base", "complex", "fg2025"]}, set()),
        ({"benchmarks": ["x/plain.bin", "y/other.bin"]}, set()),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_reaches_exactly_the_steps_that_depend_on_it(
    before: dict[str, str], changes: dict[str, Any], expected: set[str]
) -> None:
    after = files(demo(changes))
    assert {path for path in before if after.get(path, before[path]) != before[path]} == expected


def test_one_prompt_word_reaches_exactly_the_samples_of_its_set(before: dict[str, str]) -> None:
    plan = demo()
    changed = plan.prompt_sets["complex"].model_copy(
        update={"template": plan.prompt_sets["complex"].template.replace("photo", "picture")}
    )
    after = files(Plan(plan.study, plan.models, plan.prompt_sets | {"complex": changed}))
    assert {path for path in before if after[path] != before[path]} == {
        f"sample/demo/{method}/complex.json" for method in ("untuned", *METHODS)
    }


def test_repetitions_and_prompt_sets_only_add_files(before: dict[str, str]) -> None:
    after = files(demo({"recognise.repetitions": 2}))
    assert {Path(path).name for path in set(after) - set(before)} == {"seed1.json"}
    added = set(files(demo({"prompt_sets": ["base", "complex", "fg2025"]}))) - set(before)
    samples = {f"sample/demo/{method}/fg2025.json" for method in ("untuned", *METHODS)}
    assert added == samples | {f"export/demo/{method}/fg2025.json" for method in METHODS}


def test_a_new_seed_reaches_every_step_but_not_the_rendered_world(before: dict[str, str]) -> None:
    plan = demo({"seed": 1})
    after = files(plan)
    assert all(after[path] != before[path] for path in before)
    assert freeze_world(plan.study) == freeze_world(demo().study)


def test_the_order_of_keys_changes_nothing() -> None:
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))

    def reversed_keys(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: reversed_keys(value[key]) for key in reversed(value)}

    plans = (make_plan(of, "demo.yaml") for of in (config, reversed_keys(config)))
    assert files(next(plans)) == files(next(plans))


def test_a_gate_brings_the_networks_that_it_asks_for(before: dict[str, str]) -> None:
    def roles(gate: dict[str, Any], method: str) -> set[str]:
        return set(json.loads(files(demo({"sample.gate": gate}))[SAMPLE.format(method)])["weights"])

    assert roles({}, "idbooth") == {"base_model"}
    both = {"min_similarity": 0.2, "min_quality": 1.0}
    assert roles(both, "idbooth") == {"base_model", "recogniser", "quality"}
    assert roles(both, "untuned") == {"base_model", "quality"}
    changes = {"sample.gate": {}, "align.padding": 0.25}
    frozen = json.loads(files(demo(changes))[SAMPLE.format("untuned")])
    assert frozen["settings"]["gate"]["align"]["padding"] == 0.25


def test_a_method_gets_neither_settings_nor_weights_that_it_does_not_use(
    before: dict[str, str],
) -> None:
    dreambooth = json.loads(before["finetune/demo/dreambooth.json"])
    assert dreambooth["settings"]["margin"] is None
    assert dreambooth["settings"]["identity_weight"] is None
    assert set(dreambooth["weights"]) == {"base_model"}
    idbooth = json.loads(before["finetune/demo/idbooth.json"])
    assert idbooth["settings"]["margin"] == 1.0
    assert set(idbooth["weights"]) == {"base_model", "recogniser"}
    assert idbooth["variant"] == {"base_model": "demo", "method": "idbooth"}


def test_the_prompt_set_stands_in_the_frozen_sample_settings(before: dict[str, str]) -> None:
    complex_prompts = json.loads(before["sample/demo/idbooth/complex.json"])
    assert "night club" in json.dumps(complex_prompts["settings"]["prompt_set"])
    base = json.loads(before["sample/demo/idbooth/base.json"])
    assert "night club" not in json.dumps(base["settings"]["prompt_set"])


def test_every_frozen_file_is_what_its_step_reads(before: dict[str, str], tmp_path: Path) -> None:
    for name, text in before.items():
        path = tmp_path / name
        write_json(path, json.loads(text))
        step = name.split("/")[0].removesuffix(".json")
        section = Study.model_fields[step].annotation
        assert section is not None
        frozen = load_frozen(path, section)
        assert (frozen.study, frozen.step) == ("demo", step)


def definitions(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> dict[str, set[str]]:
    """Frozen configuration to the definitions that its hash of the code is of."""
    asked: list[list[str]] = []

    def note(roots: Sequence[str], without: Sequence[str] = ()) -> str:
        asked.append(sorted(texts_behind(roots, without)))
        return str(len(asked) - 1)

    monkeypatch.setattr("pipeline_steps.study.freeze.code_hash", note)
    plan = demo(changes)
    frozen = freeze(plan.study, plan.models, plan.prompt_sets)
    found = {path: set(asked[int(content["code"])]) for path, content in frozen.items()}
    gates = {path: content["settings"].get("gate") for path, content in frozen.items()}
    return found | {
        f"gate of {path}": {*asked[int(of["code"])]} for path, of in gates.items() if of
    }


FACES = ("faces.", "diffusion.guide:FaceGuide")
TERM = ("diffusion.guide:identity_term",)
LED = ("diffusion.sampling.guidance:IdentityGuidance",)
CHOICE = ("diffusion.training.choice:Trials", "diffusion.sampling.", "io.figures:")
GATE = ("diffusion.sampling.gate:",)
XL = ("diffusion.base_models.stable_diffusion_xl:",)
EIGHT_BITS = ("diffusion.training.optimisers:AdamW8bit",)


@pytest.mark.parametrize(
    ("changes", "path", "reached", "passed_over"),
    [
        ({}, "finetune/demo/dreambooth", (), (FACES, TERM, CHOICE, GATE, XL, EIGHT_BITS)),
        ({}, "finetune/demo/idbooth", (FACES, TERM), (CHOICE, GATE, XL)),
        (
            {"finetune.choice": {"steps": [1]}},
            "finetune/demo/dreambooth",
            (FACES, CHOICE),
            (TERM, GATE),
        ),
        (
            {"finetune.overrides": {"demo": {"choice": {"steps": [1]}}}},
            "finetune/demo/dreambooth",
            (FACES, CHOICE),
            (TERM, GATE),
        ),
        ({"finetune.optimiser": "adamw8bit"}, "finetune/demo/dreambooth", (EIGHT_BITS,), ()),
        ({}, "sample/demo/idbooth/base", (), (FACES, GATE, XL)),
        ({"sample.gate": {}}, "sample/demo/untuned/base", (), (FACES, GATE, XL)),  # same images
        ({"sample.identity_guidance": {}}, "sample/demo/idbooth/base", (FACES, TERM, LED), (XL,)),
        ({"sample.identity_guidance": {}}, "sample/demo/untuned/base", (), (FACES, TERM, LED)),
        ({"sample.gate": {}}, "gate of sample/demo/untuned/base", (FACES[:1], GATE), (XL,)),
        ({}, "prior/demo", (FACES,), (XL,)),
        (
            {"base_models": ["sdxl"], "prepare.resolution": 1024, "training_sets": ["real"]},
            "prior/sdxl",
            (XL,),
            (),
        ),
    ],
)
def test_code_counts_where_the_method_and_the_settings_reach_it(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    path: str,
    reached: tuple[tuple[str, ...], ...],
    passed_over: tuple[tuple[str, ...], ...],
) -> None:
    found = definitions(monkeypatch, changes)[f"{path}.json"]
    for names in reached:
        assert all(any(label.startswith(name) for label in found) for name in names)
    for names in passed_over:
        assert [label for label in found if label.startswith(names)] == []
