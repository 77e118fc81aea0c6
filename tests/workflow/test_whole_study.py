"""A whole study on the embedded world, small: real weights, every rule, from archives to report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "methods": ["untuned", "idbooth"],
    "prompt_sets": ["base"],
    "training_sets": ["demo/idbooth/base"],
    "cohorts": 1,
    "render_demo_world.participants": 4,
    "render_demo_world.photograph_size": 256,
    "render_demo_world.in_the_wild": 20,
    "render_demo_world.benchmark_pairs": 40,
    "prepare.positions": [3, 4, 5],
    "prior.images": 6,
    "prior.steps": 8,
    "prior.scheduler": "dpmsolver++",
    "finetune.steps": 8,
    "sample.images_per_identity": 4,
    "sample.steps": 8,
    "sample.scheduler": "dpmsolver++",
    "score.quality.replicates": 20,
    "score.identity.replicates": 20,
    "recognise.epochs": 2,
    "recognise.first_validated_epoch": 1,
}


def snakemake(folder: Path, *arguments: str) -> str:
    """Output of a run of the project's workflow in `folder`, which has to succeed."""
    program = Path(sys.executable).with_name("snakemake")
    place = ["--snakefile", ROOT / "Snakefile", "--directory", folder]
    result = subprocess.run(
        [program, *place, "--cores", "2", "--configfile", folder / "small.yaml", *arguments],
        cwd=ROOT,
        env={key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    folder = tmp_path_factory.mktemp("study")
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text("utf-8"))
    for key, value in SMALL.items():
        *parents, last = key.split(".")
        part = config
        for name in parents:
            part = part[name]
        part[last] = value
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    snakemake(folder)
    return folder


def test_tables_figures_report_and_provenance_are_there(study: Path) -> None:
    results = study / "results" / "demo"
    identity = pd.read_csv(results / "tables" / "identity.csv")
    assert {"untuned", "idbooth"} <= set(identity["method"])
    assert set(identity["versus"]) == {"real", "synthetic"}
    assert identity["eer"].between(0, 1).all()
    assert list(identity.columns[:10]) == [
        *("base_model", "method", "prompts", "versus", "recogniser", "n_genuine", "n_impostor"),
        *("eer", "eer_low", "eer_high"),
    ]
    recognition = pd.read_csv(results / "tables" / "recognition.csv")
    assert set(recognition["role"]) == {"validation", "test"}
    assert len(set(recognition["benchmark"])) == 5
    for name in ("distributions", "samples", "overview"):
        assert (results / "figures" / f"{name}.png").stat().st_size > 10_000
    assert (results / "provenance.json").is_file()
    assert "<html" in (results / "report.html").read_text("utf-8").lower()


def test_every_image_is_accounted_for(study: Path) -> None:
    results = study / "results" / "demo"
    for method in ("untuned", "idbooth"):
        samples = pd.read_parquet(results / f"samples/demo/{method}/base/manifest.parquet")
        aligned = pd.read_parquet(results / f"aligned/demo/{method}/base/manifest.parquet")
        assert len(samples) == len(aligned) == 4 * 4
        assert (aligned["kept"] | (aligned["reason"].fillna("") != "")).all()


def test_methods_share_prompts_and_seeds(study: Path) -> None:
    results = study / "results" / "demo"
    untuned, tuned = (
        pd.read_parquet(results / f"samples/demo/{method}/base/manifest.parquet")
        for method in ("untuned", "idbooth")
    )
    assert list(untuned["seed"]) == list(tuned["seed"])
    assert [p.replace("sks ", "") for p in tuned["prompt"]] == list(untuned["prompt"])


def test_fine_tuned_weights_open_in_plain_diffusers_and_change_its_output(study: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        ROOT / "resources" / "demo_world" / "base_model", safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)

    def image() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        made = pipe(
            "photo of sks person", num_inference_steps=2, generator=generator, output_type="pt"
        )
        return torch.as_tensor(made.images)

    before = image()
    pipe.load_lora_weights(study / "results" / "demo" / "loras" / "demo" / "idbooth" / "ID_1")
    assert (image() - before).abs().max() > 1e-3


def test_run_again_nothing_is_to_be_done(study: Path) -> None:
    assert "Nothing to be done" in snakemake(study)
