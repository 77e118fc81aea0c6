"""Which recipe of fine-tuning suits the embedded base model: chosen on people the demo never shows.

    python benchmarks/recipe.py '{"finetune": {"learning_rate": 0.001}}' '{"sample": {"steps": 20}}'

Each candidate is config/demo.yaml with one JSON of changes, and goes through the study's own steps,
with the photographs of another world (--seed) and noise of its own. Counted are faces found, images
that show their own person to the independent judge (at the audit's false match rate), and images
closest to their own person's photographs (rank 1); quality of base and complex prompts follows, and
the processor's seconds of training. Intervals are of 95 %. Rows are added to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured import Row, add, proportion, table
from studies import StudyFolder

from pipeline_steps import (
    align,
    audit,
    embed,
    features,
    finetune,
    gather,
    prepare,
    prior,
    sample,
    score,
)
from pipeline_steps import render_demo_world as world
from pipeline_steps.io.tensors import load_features
from pipeline_steps.metrics.arrays import rows_of
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.diffusion import FinetuneSettings, PriorSettings
from pipeline_steps.study.settings.evidence import AuditSettings, FeaturesSettings, ScoreSettings
from pipeline_steps.study.settings.photographs import (
    AlignSettings,
    EmbedSettings,
    PrepareSettings,
    RenderDemoWorldSettings,
)
from pipeline_steps.study.settings.sampling import SampleSettings
from pipeline_steps.study.settings.study import merged, read_configs

ROOT = Path(__file__).parents[1]


class Candidate(StudyFolder):
    """One configuration of the demo, and what describes its images."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        self.judge = self.plan.study.score.identity.recognisers[-1]
        quality = self.plan.study.score.quality
        self.extractors = [
            *(quality.frechet_extractor, quality.prdc_extractor, quality.cmmd_extractor),
            *(quality.face_quality_extractor, quality.prompt_extractor, self.judge),
        ]

    def features(self, source: str) -> list[Path]:
        """Features of a set, by all extractors (those of prompts only where there are prompts)."""
        names = [n for n in dict.fromkeys(self.extractors) if n]
        if source == "real":
            names = [n for n in names if n != self.plan.study.score.quality.prompt_extractor]
        places = [self.folder / "features" / source / f"{name}.safetensors" for name in names]
        frozen = [self.frozen(f"features/{name}", FeaturesSettings) for name in names]
        samples = (
            None if source == "real" else self.folder / "samples" / source / "manifest.parquet"
        )
        aligned = self.folder / "aligned" / source
        features.run(frozen, aligned=aligned, samples=samples, out=places, device="cpu")
        return places


def photographs(study: Candidate, people: int, seed: int) -> Path:
    """The photographs of so many people of another world, prepared; once for all candidates."""
    folder = study.folder
    dataset, rendered = folder / "dataset", folder / "world/render_demo_world.json"
    if not (folder / "prior/manifest.parquet").exists():
        own = json.loads(study.plan.frozen["data/demo_world/render_demo_world.json"])
        rendered.parent.mkdir(parents=True, exist_ok=True)
        rendered.write_text(json.dumps(own | {"seed": seed}), encoding="utf-8")
        world.run(load_frozen(rendered, RenderDemoWorldSettings), out=folder / "world", workers=2)
        prepare.run(study.frozen("prepare", PrepareSettings), out=dataset, device="cpu")
        embed.run(study.frozen("embed", EmbedSettings), dataset=dataset, device="cpu")
        prior.run(study.frozen("prior/demo", PriorSettings), out=folder / "prior")
    table = dataset / "manifest.parquet"
    align.run(
        study.frozen("align", AlignSettings),
        manifest=table,
        out=folder / "aligned/real",
        device="cpu",
    )
    return dataset


def closest_to_own(images: Path, photographs: Path) -> int:
    """Number of images that are more like their own person's mean photograph than like others'."""
    known, shown = load_features(photographs), load_features(images)
    people = rows_of([file.split("/")[0] for file in known.files])
    means = np.stack([known.features[rows].mean(axis=0) for rows in people.values()])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest = np.array(list(people))[(shown.features @ means.T).argmax(axis=1)]
    return int((nearest == np.array([file.split("/")[0] for file in shown.files])).sum())


def measured(study: Candidate, dataset: Path, method: str, what: str) -> list[Row]:
    """Train, sample and judge one candidate."""
    folder, base = study.folder, f"demo/{method}"
    start = time.process_time()
    finetune.run(
        study.frozen(f"finetune/{base}", FinetuneSettings),
        dataset=dataset,
        prior=folder / "prior",
        out=folder / "loras" / base,
    )
    seconds, real = time.process_time() - start, study.features("real")
    seen_of: dict[str, list[bool]] = {}
    found = total = own = 0
    first: list[Row] = []
    recall, prompts = [], []
    for prompt_set in study.plan.study.prompt_sets:
        variant = f"{base}/{prompt_set}"
        samples, aligned = folder / "samples" / variant, folder / "aligned" / variant
        frozen = study.frozen(f"sample/{variant}", SampleSettings)
        sample.run(frozen, dataset=dataset, loras=folder / "loras" / base, out=samples)
        gather.run(parts=[samples / "shares/0-of-1.parquet"], out=samples / "manifest.parquet")
        rows = align.run(
            study.frozen("align", AlignSettings),
            manifest=samples / "manifest.parquet",
            out=aligned,
            device="cpu",
        )
        of = study.features(variant)
        judged = audit.run(
            study.frozen("audit", AuditSettings),
            variant_features=of[-1],
            real=real[-1],
            aligned=aligned,
            real_aligned=folder / "aligned/real",
            out=folder / "audit" / variant,
        )
        quality = score.run(
            study.frozen("score/quality", ScoreSettings),
            kind="quality",
            out=folder / "scores.csv",
            variant_features=of[:-1],
            real=real[:-1],
        )
        hits = closest_to_own(of[-1], real[-1])
        first.append(proportion(f"{what}: rank 1, {prompt_set}", hits, len(rows)))
        kept = [bool(row["kept"]) for row in rows]
        for row, seen in zip(rows, kept, strict=True):
            seen_of.setdefault(str(row["identity"]), []).append(seen)
        found, total = found + sum(kept), total + len(kept)
        own += round(float(judged["own_share"]) * sum(kept))  # type: ignore[arg-type]
        values = pd.DataFrame(quality)
        recall.append(float(values["recall"].dropna().mean()))
        prompts.append(float(values["prompt_score"].dropna().mean()))
    fewest = min(seen_of.values(), key=lambda seen: sum(seen) / len(seen))
    return [
        proportion(f"{what}: face found", found, total),
        proportion(f"{what}: face found, worst person", sum(fewest), len(fewest)),
        proportion(f"{what}: own person, of all images", own, total),
        *first,
        Row(f"{what}: recall", sum(recall) / len(recall), None, None, found),
        Row(f"{what}: prompt score, complex", prompts[-1], None, None, found),
        Row(f"{what}: seconds of training", seconds, None, None, len(seen_of)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("changes", nargs="*", type=json.loads, default=[{}])
    parser.add_argument("--work", type=Path, default=Path("tmp/recipe"))
    parser.add_argument("--method", default="idbooth")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of the world and of all draws")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/recipe.json")
    args = parser.parse_args(argv)
    work = args.work / f"{args.people}-of-{args.seed}"  # another world, another folder
    archives = [f"{work}/world/tfd/TD_RGB_A_Set{k}.zip" for k in range(1, 5)]
    given = {
        "seed": args.seed,
        "name": "recipe",
        "methods": [args.method],
        "training_sets": [],
        "render_demo_world": {"participants": args.people, "benchmark_pairs": 40},
        "prepare": {
            "sources": archives,
            "gender_table": f"{work}/world/tfd/gender.csv",
        },
    }
    config = merged(read_configs([ROOT / "config/demo.yaml"]), given)
    for change in args.changes:
        study = Candidate(work, merged(config, change))
        dataset = photographs(study, args.people, args.seed)
        what = f"{args.method}, {json.dumps(change)}"
        rows = measured(study, dataset, args.method, what)
        print(table(rows), flush=True)
        add(args.out, what, rows, people=args.people, seed=args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
