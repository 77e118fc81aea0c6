"""Steps after sampling by the number of people: time, memory and disk, and what 10 000 would take.

    python benchmarks/scale.py --people 125 250 500

Pixels and embeddings are cheap random ones, the networks those of the embedded world, the study
config/demo_made_up.yaml with embeddings of 512 numbers. Every step is a process with one thread.
Two steps whose time is the networks' see one image of 25. Memory is the largest anonymous
one, without pages of files that the system drops at will. Beside it a dry run of
config/id3_10k.yaml on empty inputs: its time and its jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measured import hardware
from skimage import data

from pipeline_steps.io.atomic import write_json
from pipeline_steps.io.hashes import sha256_bytes
from pipeline_steps.io.images import encode_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.shards import pack
from pipeline_steps.io.tensors import save_features
from pipeline_steps.study.command import run_main
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[1]
VARIANT, STUDY, WANTED, WIDTH = "demo/id3/base", "demo_made_up", 10_000, 512
NAMES = {"base_model": "demo", "method": "id3", "prompts": "base"}
POWERS = {"score identity": 2}  # all pairs; all else, and memory, grow with the images
PART = 25  # one image of so many goes through the networks
FACE = np.ascontiguousarray(data.astronaut()[40:200, 140:300])  # NASA, public domain
JUDGES = ("demo_recogniser", "demo_recogniser_b")
WIDTHS = {"recogniser": WIDTH, "quality": 1, "pose": 3, "skin_tone": 1, "prompt": 1}
TRAIN = """
import sys, torch
from pathlib import Path
from pipeline_steps.recognition.backbones import Architecture
from pipeline_steps.recognition.dataset import load_training_set
from pipeline_steps.recognition.margins import MarginHead
from pipeline_steps.recognition.training import Training
from pipeline_steps.runtime.errors import Interrupted
from pipeline_steps.study.settings.base import load_frozen
from pipeline_steps.study.settings.recognition import RecogniseSettings
settings = load_frozen(Path(sys.argv[1]), RecogniseSettings).settings
found = load_training_set([Path(sys.argv[2])], beside=Path(sys.argv[3]))
found.sha256()
classes = len(found.identities)
size = settings.embedding_dim
head = MarginHead(size, classes, loss=settings.loss, scale=settings.scale, margin=settings.margin)
training = Training(Architecture.of(settings).build(), head, settings, settings.batch_size)
pixels, labels = torch.from_numpy(found.images), torch.from_numpy(found.labels)
try:
    training.run_epoch(pixels, labels, 0, None, lambda: training.step >= 5)
except Interrupted:
    pass
"""


Measured = dict[str, dict[str, list[float]]]  # step to numbers, one for each study


class World:
    """A study of made-up people as it is when all images are sampled and aligned."""

    def __init__(self, root: Path, people: int, each: int) -> None:
        self.root, self.at, self.each = root, root / "results" / STUDY, each
        self.rng = np.random.default_rng(people)
        self.plan = plan = make_plan(read_configs([ROOT / "config" / f"{STUDY}.yaml"]), STUDY)
        for path, text in plan.frozen.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        self.people = [f"MU_{k + 1}" for k in range(people)]
        self.put("real", [f"ID_{k + 1}" for k in range(20)], 8)
        self.put("wild", [f"{k:05}" for k in range(2000)], 1)
        self.put(VARIANT, self.people, each)
        self.sample()
        (self.at / "invented").mkdir()
        head = "identity,gender,n_images,source,consent,folder\n"
        lines = [f"{name},,0,invented,nobody: does not exist,\n" for name in self.people]
        (self.at / "invented/identities.csv").write_text(head + "".join(lines))
        centres = self.rng.standard_normal((people, WIDTH)).astype(np.float32)
        header = {"weights_sha256": JUDGES[0]}
        place = self.at / "invented/targets.safetensors"
        save_features(place, centres, self.people, key="embeddings", **header)

    def put(self, source: str, people: Sequence[str], each: int) -> None:
        """Aligned faces in shards, their manifest, and features by all extractors."""
        folder, rows = self.at / "aligned" / source, []
        for name in people:
            tint = self.rng.integers(60, 200, (each, 6, 6, 3), dtype=np.uint8)
            tint[..., 0] += 50  # skin is redder than blue
            for k, small in enumerate(tint):
                png = encode_png(cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC))
                place = folder / name / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(png)
                file, digest = f"{name}/{k}.png", sha256_bytes(png)
                row = {"identity": name, "file": file, "source_file": file, "sha256": digest}
                rows.append(row | {"source_sha256": digest, "kept": True, "reason": ""})
            pack(folder / name, [f"{k}.png" for k in range(each)])
        write_manifest(folder / "manifest.parquet", rows)
        files, owner = [str(row["file"]) for row in rows], np.repeat(np.arange(len(people)), each)
        images = json.dumps([row["sha256"] for row in rows])
        for extractor in self.plan.extractors:
            task = self.plan.models[extractor].task
            width = WIDTHS.get(task, 64)
            centres = self.rng.standard_normal((len(people), width), dtype=np.float32)
            noise = self.rng.standard_normal((len(rows), width), dtype=np.float32)
            header = {"images": images, "extractor": extractor, "task": task}
            place = self.at / "features" / source / f"{extractor}.safetensors"
            values = centres[owner] + noise
            save_features(place, values, files, weights_sha256=extractor, **header)

    def sample(self) -> None:
        """The shares' manifests with y of every image, and few people's samples in shards."""
        folder, few = self.at / "samples" / VARIANT, self.people[: max(2, len(self.people) // PART)]
        told = {"prompt": "", "negative_prompt": "", "seed": 0, "steps": 1, "guidance": 1.0}
        told |= {"scheduler": "ddpm", "weights_sha256": "", "attempt": 0, "kept": True} | NAMES
        for share, names in enumerate(np.array_split(np.array(self.people), 10)):
            rows = [
                {"identity": str(name), "index": k, "file": f"{name}/{k}.png", "sha256": None}
                | told
                | {"target": self.rng.standard_normal(WIDTH, dtype=np.float32)}
                for name in names
                for k in range(self.each)
            ]
            write_manifest(folder / f"shares/{share}-of-10.parquet", rows)
        for name in few:
            for k in range(self.each):
                place = folder / name / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(encode_png(np.roll(FACE, k % 8, axis=1)))
            pack(folder / name, [f"{k}.png" for k in range(self.each)])
        rows = [{"identity": n, "file": f"{n}/{k}.png"} for n in few for k in range(self.each)]
        write_manifest(folder / "few.parquet", [row | {"prompt": ""} for row in rows])

    def steps(self) -> dict[str, list[Any]]:
        """What is run, by name: the step and its arguments."""
        at, config = self.at, self.at / "config"
        aligned, features = at / "aligned", at / "features"
        few = self.root / "few/aligned" / VARIANT

        def of(source: str, *names: str) -> list[Path]:
            return [features / source / f"{name}.safetensors" for name in names]

        def scored(kind: str, wild: bool) -> list[Any]:
            names = self.plan.study.score.extractors(kind)
            step = ["score", "--config", config / f"score/{kind}.json", "--kind", kind]
            step += ["--variant-features", *of(VARIANT, *names), "--real", *of("real", *names)]
            step += ["--wild", *of("wild", *names)] if wild else []
            return [*step, "--out", at / f"scores/{kind}/{VARIANT}.csv"]

        audit = ["audit", "--config", config / "audit.json", "--out", at / f"audit/{VARIANT}"]
        for flag, source in (("variant", VARIANT), ("real", "real"), ("wild", "wild")):
            suffix = {"variant": "--variant-features"}.get(flag, f"--{flag}")
            audit += [suffix, *of(source, JUDGES[1])]
            audit += [f"--{flag}-aligned".replace("--variant-", "--"), aligned / source]
        shares = sorted((at / "samples" / VARIANT / "shares").iterdir())
        samples = at / "samples" / VARIANT
        [recognise] = sorted(config.glob("recognise/demo-id3-base/*.json"))
        align = ["align", "--config", config / "align.json", "--out", few]
        embed = ["features", "--config", config / f"features/{JUDGES[0]}.json", "--aligned", few]
        place = self.root / f"few/features/{VARIANT}/{JUDGES[0]}.safetensors"
        identity = [*scored("identity", False), "--replicates", at / "draws.parquet"]
        identity += ["--targets", at / "invented/targets.safetensors"]
        export = ["export", "--config", config / f"export/{VARIANT}.json", "--samples", samples]
        export += ["--aligned", aligned / VARIANT, "--tables", at / "tables", "--out", at / "out"]
        return {
            "align (1 of 25)": [*align, "--manifest", samples / "few.parquet"],
            "features (1 of 25)": [*embed, "--out", place],
            "gather": ["gather", "--parts", *shares, "--out", samples / "manifest.parquet"],
            "score quality": scored("quality", True),
            "score identity": identity,
            "score pose": scored("pose", True),
            "audit": audit,
            "recognise (5 steps)": [recognise, aligned / VARIANT, self.root],
            "export": [*export, "--identities", at / "invented/identities.csv"],
        }

    def tables(self) -> None:
        """Stand-ins for the study's tables, whose rows are as many for any number of people."""
        (self.at / "tables").mkdir(exist_ok=True)
        found = {"audit": f"audit/{VARIANT}.summary.csv"}
        found |= {kind: f"scores/{kind}/{VARIANT}.csv" for kind in ("quality", "identity")}
        for name, path in found.items():
            text = (self.at / path).read_text().replace(",fail,", ",look,")
            (self.at / f"tables/{name}.csv").write_text(text)


def measured(step: Sequence[Any], root: Path) -> dict[str, float]:
    """Run a step; seconds, seconds of processor, MB of memory, MB written."""
    command = [sys.executable, "-m", f"pipeline_steps.{step[0]}", *step[1:]]
    if isinstance(step[0], Path):
        command = [sys.executable, "-c", TRAIN, *step]
    before, start = written(root), time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environment, stdout=said, stderr=said
        )
        memory = 0
        while True:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory = max(memory, *map(int, re.findall(r"RssAnon:\s+(\d+)", status)), 0)
            except OSError:
                pass
            found, code, used = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(code)
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{step[0]} failed:\n{said.read()[-3000:]}")
    return {
        "seconds": round(time.monotonic() - start, 1),
        "processor": round(used.ru_utime + used.ru_stime, 1),
        "memory_mb": round(memory / 1024),
        "disk_mb": round((written(root) - before) / 1e6, 1),
    }


def written(root: Path) -> int:
    """Bytes below a folder."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())


def extrapolated(people: Sequence[int], values: Sequence[float], power: int) -> float:
    """At WANTED people: a constant and a power of their number, by least squares."""
    design = np.stack([np.ones(len(people)), np.asarray(people, float) ** power], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(design, np.asarray(values), rcond=None)
    return round(float(max(fixed, 0.0) + max(slope, 0.0) * WANTED**power), 1)


def dry_run(root: Path) -> dict[str, float]:
    """Seconds and jobs of `snakemake -n` for config/id3_10k.yaml, on inputs that are empty."""
    plan = make_plan(read_configs([ROOT / "config/id3_10k.yaml"]), "id3_10k")
    for path in plan.put_in:
        place = root / path
        if Path(path).suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"")
        else:
            place.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "--cores", "2"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(root)]
    command += ["--configfile", str(ROOT / "config/id3_10k.yaml")]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - start, 1)
    jobs = re.findall(r"^total\s+(\d+)", done.stdout + done.stderr, re.MULTILINE)
    if not jobs:
        raise SystemExit((done.stdout + done.stderr)[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor": round(processor, 1), "jobs": int(jobs[0])}


def keep(args: argparse.Namespace, dry: dict[str, float], found: Measured) -> None:
    """Write the numbers so far, with what they say of WANTED people."""
    steps: dict[str, Any] = {}
    for step, rows in found.items():
        people = args.people[: len(rows["seconds"])]
        steps[step] = rows | {
            f"{what}_of_{WANTED}": extrapolated(
                people, values, POWERS.get(step, 1) if what == "processor" else 1
            )
            for what, values in rows.items()
            if len(people) > 1 and what != "seconds"  # others' work on the machine is in them
        }
    told = {"people": args.people, "images_each": args.images, "hardware": hardware()}
    write_json(args.out, told | {"dry_run_of_id3_10k": dry, "steps": steps})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--images", type=int, default=50, help="of each person")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scale.json")
    args = parser.parse_args(argv)
    found: Measured = {}
    with tempfile.TemporaryDirectory() as name:
        dry = dry_run(Path(name) / "dry")
        print(f"snakemake -n of id3_10k: {dry}", flush=True)
        for people in args.people:
            root = Path(name) / str(people)
            world = World(root, people, args.images)
            for step, command in world.steps().items():
                if step == "export":
                    world.tables()
                for what, value in measured(command, root).items():
                    found.setdefault(step, {}).setdefault(what, []).append(value)
                print(people, step, {k: v[-1] for k, v in found[step].items()}, flush=True)
            keep(args, dry, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
