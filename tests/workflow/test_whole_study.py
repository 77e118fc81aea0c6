"""A whole study on the embedded world, small: real weights, every rule, from archives to report."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from tests.workflow.small_study import ROOT, snakemake


def test_tables_figures_report_and_provenance_are_there(finished_study: Path) -> None:
    results = finished_study / "results" / "demo"
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
    assert len(set(recognition.loc[recognition["role"] == "test", "benchmark"])) == 5
    for name in ("distributions", "samples", "overview"):
        assert (results / "figures" / f"{name}.png").stat().st_size > 10_000
    assert (results / "provenance.json").is_file()
    for page in ("report.html", "explorer/index.html"):
        assert "<html" in (results / page).read_text("utf-8").lower()


def test_every_image_is_accounted_for(finished_study: Path) -> None:
    results = finished_study / "results" / "demo"
    for method in ("untuned", "idbooth"):
        samples = pd.read_parquet(results / f"samples/demo/{method}/base/manifest.parquet")
        aligned = pd.read_parquet(results / f"aligned/demo/{method}/base/manifest.parquet")
        assert len(samples) == len(aligned) == 4 * 4
        assert (aligned["kept"] | (aligned["reason"].fillna("") != "")).all()


def test_methods_share_prompts_and_seeds(finished_study: Path) -> None:
    results = finished_study / "results" / "demo"
    untuned, tuned = (
        pd.read_parquet(results / f"samples/demo/{method}/base/manifest.parquet")
        for method in ("untuned", "idbooth")
    )
    assert list(untuned["seed"]) == list(tuned["seed"])
    assert [p.replace("sks ", "") for p in tuned["prompt"]] == list(untuned["prompt"])


def test_fine_tuned_weights_open_in_plain_diffusers_and_change_its_output(
    finished_study: Path,
) -> None:
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
    pipe.load_lora_weights(
        finished_study / "results" / "demo" / "loras" / "demo" / "idbooth" / "ID_1"
    )
    assert (image() - before).abs().max() > 1e-3


def test_run_again_nothing_is_to_be_done(finished_study: Path) -> None:
    assert "Nothing to be done" in snakemake(finished_study)


def test_every_job_is_counted_in_the_provenance(finished_study: Path) -> None:
    results = finished_study / "results" / "demo"
    steps = json.loads((results / "provenance.json").read_text("utf-8"))["steps"]
    notes = results / "benchmarks"
    assert {"finetune", "sample", "features", "score", "recognise"} <= steps.keys()
    for step, numbers in steps.items():
        files = [*notes.glob(f"{step}.tsv"), *(notes / step).rglob("*.tsv")]
        assert numbers["jobs"] == len(files), step
        assert numbers["processor_seconds"] > 0 < numbers["memory_mib"], step
