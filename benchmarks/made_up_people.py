"""What parts of ID3 are worth in the embedded world: made-up people, one thing changed at a time.

    python benchmarks/made_up_people.py --study results/demo

--study is the finished study of config/demo.yaml, whose photographs, in-the-wild images and images
of ID-Booth are compared with. Every row is config/demo_made_up.yaml with few people and one change,
through the study's own steps. Then recognisers are trained on equally many images of made-up
people, photographs and ID-Booth, and on four times as many made-up people. Intervals are of 95 %:
of error rates as in the tables, of Vendi scores over people, of accuracies over pairs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured import hardware, mean
from studies import StudyFolder

from pipeline_steps import align, features, gather, invent, recognise, sample, score, verify
from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.metrics.arrays import rows_of
from pipeline_steps.metrics.vendi import vendi_score
from pipeline_steps.study.command import run_main
from pipeline_steps.study.settings.evidence import FeaturesSettings, ScoreSettings
from pipeline_steps.study.settings.photographs import AlignSettings
from pipeline_steps.study.settings.recognition import RecogniseSettings, VerifySettings
from pipeline_steps.study.settings.sampling import InventSettings, SampleSettings
from pipeline_steps.study.settings.study import merged, read_configs

ROOT = Path(__file__).parents[1]
VARIANT, IDBOOTH = "demo/id3/base", "demo/idbooth/base"
GUIDED = {"weight": 30.0}
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "identity guidance: estimate": {"sample": {"identity_guidance": GUIDED}},
    "identity guidance: full": {"sample": {"identity_guidance": GUIDED | {"gradient": "network"}}},
    "without attributes": {"sample": {"embeddings": {"attributes": None}}},
    "anchors: tammes": {"invent": {"anchors": "tammes"}},
    "anchors: random": {"invent": {"anchors": "random"}},
    "likeness in [0.5, 0.7]": {"sample": {"embeddings": {"likeness": [0.5, 0.7]}}},
}


class Arm(StudyFolder):
    """One configuration and what its steps make."""

    def __init__(self, folder: Path, study: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, {**config, "name": "ablation"})
        self.study = study
        self.aligned = folder / "aligned" / VARIANT
        self.prdc = self.plan.study.score.quality.prdc_extractor
        self.judges = self.plan.study.score.identity.recognisers

    def of(self, source: str, names: Sequence[str]) -> list[Path]:
        """Feature files: the arm's own, or the study's."""
        root = self.folder if source == VARIANT else self.study
        return [root / "features" / source / f"{name}.safetensors" for name in names]

    def generate(self) -> float:
        """Invent, sample, align; seconds of processor per image."""
        own = self.plan.study.recogniser
        wild = self.folder.parent / f"features/wild/{own}.safetensors"
        if not wild.exists():  # the demo's study has them by the other judge alone
            frozen = self.frozen(f"features/{own}", FeaturesSettings)
            features.run([frozen], aligned=self.study / "aligned/wild", out=[wild], device="cpu")
        faces = [wild, *self.of("real", [own])]
        people, samples = self.folder / "invented", self.folder / "samples" / VARIANT
        invent.run(self.frozen("invent", InventSettings), faces=faces, out=people)
        start = time.process_time()
        sampling = self.frozen(f"sample/{VARIANT}", SampleSettings)
        rows = sample.run(sampling, dataset=people, out=samples, device="cpu")
        each = (time.process_time() - start) / len(rows)
        table = samples / "manifest.parquet"
        gather.run(parts=[samples / "shares/0-of-1.parquet"], out=table)
        settings = self.frozen("align", AlignSettings)
        align.run(settings, manifest=table, out=self.aligned, device="cpu")
        return each

    def scores(self, rng: np.random.Generator) -> dict[str, Any]:
        """Faces found, error rates with intervals, and Vendi scores per person."""
        names = dict.fromkeys((*self.judges, self.prdc))
        frozen = [self.frozen(f"features/{name}", FeaturesSettings) for name in names]
        places = self.of(VARIANT, [*names])
        features.run(frozen, aligned=self.aligned, out=places, device="cpu")
        rows = score.run(
            self.frozen("score/identity", ScoreSettings),
            kind="identity",
            out=self.folder / "identity.csv",
            variant_features=self.of(VARIANT, self.judges),
            real=self.of("real", self.judges),
            targets=self.folder / "invented/targets.safetensors",
        )
        found: dict[str, Any] = {"faces": float(read_manifest(self.manifest)["kept"].mean())}
        for row in rows:
            limits = [row.get(name, math.nan) for name in ("eer", "eer_low", "eer_high")]
            found[f"eer versus {row['versus']}, {row['recogniser']}"] = limits
        loaded = load_features(self.of(VARIANT, [self.prdc])[0])
        owners = rows_of([file.split("/")[0] for file in loaded.files]).values()
        vendi = [vendi_score(loaded.features[own]) for own in owners if len(own) > 1]
        told = mean("vendi", vendi or [math.nan], rng)
        return found | {"vendi per person": [told.value, told.low, told.high]}

    @property
    def manifest(self) -> Path:
        return self.aligned / "manifest.parquet"

    def accuracy(self, aligned: Path, name: str) -> dict[str, Any]:
        """Of a recogniser trained on aligned faces: on each benchmark, and their mean."""
        study, out = self.plan.study, self.folder / "recognition" / name
        [path] = sorted((self.folder / "config/recognise").glob("demo-id3-base/*0.json"))
        frozen = self.frozen(f"recognise/demo-id3-base/{path.stem}", RecogniseSettings)
        recognise.run(frozen, aligned=[aligned], validation=Path(study.validation), out=out)
        table = out / "verification.csv"
        benchmarks = [Path(path) for path in study.benchmarks]
        verifying = self.frozen("verify", VerifySettings)
        verify.run(verifying, model=out / "model.safetensors", benchmarks=benchmarks, out=table)
        rows = pd.read_csv(table).set_index("benchmark")
        found = {str(n): [*map(float, r)] for n, r in rows[["accuracy", "low", "high"]].iterrows()}
        half = math.sqrt(sum(((high - low) / 2) ** 2 for _, low, high in found.values()))
        average = float(rows["accuracy"].mean())
        limits = [average - half / len(found), average + half / len(found)]
        return {"mean accuracy": [average, *limits]} | found


def faces_in(aligned: Path) -> int:
    """Number of faces of a set."""
    return int(read_manifest(aligned / "manifest.parquet")["kept"].sum())


def subset(aligned: Path, count: int, out: Path) -> Path:
    """A folder with so many faces of a set, of all people alike."""
    table = read_manifest(aligned / "manifest.parquet")
    table = table[table["kept"].astype(bool)]
    order = table.groupby("identity").cumcount().to_numpy().argsort(kind="stable")[:count]
    out.mkdir(parents=True)
    for name in sorted(set(table["identity"])):
        (out / name).symlink_to((aligned / name).resolve())
    write_manifest(out / "manifest.parquet", table.iloc[np.sort(order)])
    return out


def keep(args: argparse.Namespace, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what is known so far; numbers that there are not are null."""
    amounts = {name: value for name, value in vars(args).items() if isinstance(value, int)}
    rows = {what: {k: _plain(v) for k, v in row.items()} for what, row in found.items()}
    write_json(args.out, amounts | {"hardware": hardware(), "rows": rows})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """All rows as one Markdown table, numbers with their intervals."""
    heads = list(dict.fromkeys(head for row in found.values() for head in row))
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    for what, row in found.items():
        cells = [row.get(head, "") for head in heads]
        lines.append([what, *(_cell(cell) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("results/demo"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--images", type=int, default=8, help="of each person")
    parser.add_argument("--steps", type=int, default=12, help="of denoising")
    parser.add_argument("--epochs", type=int, default=15, help="of recognisers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/made_up_people.json")
    args = parser.parse_args(argv)
    base = merged(
        read_configs([ROOT / "config/demo_made_up.yaml"]),
        {
            "invent": {"people": args.people},
            "sample": {"images_per_identity": args.images, "steps": args.steps},
            "recognise": {"epochs": args.epochs, "first_validated_epoch": min(5, args.epochs)},
        },
    )
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        once = merged(base, {"sample": {"images_per_identity": 1, "steps": 1}})
        Arm(root / "warm", args.study, once).generate()  # what loads once is no image's time
        first: Arm | None = None
        for k, (what, change) in enumerate(CHANGES.items()):
            arm = Arm(root / str(k), args.study, merged(base, change))
            seconds = arm.generate()
            found[what] = arm.scores(np.random.default_rng(0)) | {"seconds per image": seconds}
            found[what] |= arm.accuracy(arm.aligned, "whole")
            first = first or arm
            keep(args, found)
        assert first is not None
        more = Arm(root / "more", args.study, merged(base, {"invent": {"people": 4 * args.people}}))
        more.generate()
        sets = {"made-up people": first.aligned, "photographs": args.study / "aligned/real"}
        sets |= {"ID-Booth": args.study / "aligned" / IDBOOTH}
        count = min(map(faces_in, sets.values()))
        chosen = {n: subset(p, count, root / "sets" / n) for n, p in sets.items()}
        chosen["4 times as many made-up people"] = more.aligned
        for what, aligned in chosen.items():
            about = {"images": faces_in(aligned)}
            found[f"trained on {what}"] = about | first.accuracy(aligned, what)
            keep(args, found)
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
