"""The shipped weights fit the shipped base model and show people whom nothing has seen."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from pipeline_steps.demo_world.pretraining.face_fusion import COLUMNS, People, likeness
from pipeline_steps.demo_world.pretraining.images import Photographs, photograph_people
from pipeline_steps.demo_world.pretraining.training import Run
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion
from pipeline_steps.faces.recogniser import load_recogniser
from pipeline_steps.io.weights import locate, verify
from pipeline_steps.seeds import torch_generator
from pipeline_steps.study.registry import read_models

ROOT = Path(__file__).parents[2]


def test_shipped_weights_show_people_whom_nothing_has_seen(tmp_path: Path) -> None:
    entry = read_models(ROOT / "config" / "models.yaml")
    what = Photographs(11, "test", 4, 3)
    columns = photograph_people(what, range(4))
    run = Run(tmp_path, None, "cpu", bfloat16=False, over=lambda: False)
    base, weights = load_base_model(entry["demo"]), entry["demo_facefusion"]
    judges = [load_recogniser(entry[name]) for name in ("demo_recogniser", "demo_recogniser_b")]
    fusion = FaceFusion(base.unet)
    fusion.initialise(torch_generator(0))
    people = People.of({n: columns[n] for n in COLUMNS}, 3, base, fusion, judges, run, seed=0)

    before = likeness(base, fusion, judges, people, run)
    verify(weights)
    fusion.load(load_file(locate(weights) / FILE_NAME))
    after = likeness(base, fusion, judges, people, run)

    for judge in ("like_0", "like_1"):
        assert after[judge] > before[judge] + 0.03
