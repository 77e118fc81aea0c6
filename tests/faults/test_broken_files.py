"""Files that were cut or removed: one sentence with file and remedy, never a silent use."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline_steps.io.images import encode_png
from pipeline_steps.io.weights import placed
from tests.workflow.small_study import snakemake, start, write_config

sys.path.insert(0, str(Path(__file__).parent))

from step_processes import Ended, run_step

R = "results/demo"
FINETUNE = (
    f"finetune --config {R}/config/finetune/demo/idbooth.json --dataset {R}/dataset"
    f" --prior {R}/prior/demo --out {R}/loras/demo/idbooth"
)
FINETUNE_ANEW = FINETUNE.replace(f"--out {R}/loras/demo/idbooth", "--out x")  # nobody is finished
SAMPLE = (
    f"sample --config {R}/config/sample/demo/idbooth/base.json --dataset {R}/dataset"
    f" --loras {R}/loras/demo/idbooth --out {R}/samples/demo/idbooth/base"
)
ALIGN = (
    f"align --config {R}/config/align.json"
    f" --manifest {R}/samples/demo/idbooth/base/manifest.parquet"
    f" --out {R}/aligned/demo/idbooth/base"
)
FEATURES = (
    f"features --config {R}/config/features/demo_recogniser.json --aligned {R}/aligned/real"
    f" --out {R}/features/real/demo_recogniser.safetensors"
)
SCORE = (
    f"score --config {R}/config/score/identity.json --kind identity"
    f" --variant-features {R}/features/demo/idbooth/base/demo_recogniser.safetensors"
    f" {R}/features/demo/idbooth/base/demo_recogniser_b.safetensors"
    f" --real {R}/features/real/demo_recogniser.safetensors"
    f" {R}/features/real/demo_recogniser_b.safetensors --out x.csv --replicates x.parquet"
)
VERIFY = (
    f"verify --config {R}/config/verify.json"
    f" --model {R}/recognition/demo-idbooth-base/seed0/model.safetensors"
    " --benchmarks data/demo_world/benchmarks/plain.bin --out x.csv"
)
RECOGNITION = f"{R}/recognition/demo-idbooth-base/seed0/verification.csv"
TABLES = (
    f"tables --config {R}/config/tables.json --out x --scores {R}/scores/identity/reference.csv"
    f" {R}/scores/identity/demo/idbooth/base.csv --verification {RECOGNITION}"
)
PREPARE = f"prepare --config {R}/config/prepare.json --out {R}/dataset"


def cut(path: Path) -> None:
    """What a copy that broke off leaves: two thirds."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def lose_last_row(path: Path) -> None:
    """A table that was cut at the end of a line looks whole."""
    *rows, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows))


def remove(path: Path) -> None:
    path.unlink()


# Step, what happens to which file, and what the sentence has to name beside the file.
CASES: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "archive": (PREPARE, cut, "data/demo_world/tfd/TD_RGB_A_Set2.zip", "again"),
    "manifest": (FINETUNE, cut, f"{R}/dataset/manifest.parquet", "run again"),
    "identity table": (FINETUNE, cut, f"{R}/dataset/identities.csv", "run again"),
    "prior image": (FINETUNE_ANEW, cut, f"{R}/prior/demo/images/1.png", "--forcerun prior"),
    "prior embeddings": (FINETUNE_ANEW, cut, f"{R}/prior/demo/embeddings.safetensors", "run again"),
    "configuration": (FINETUNE, cut, f"{R}/config/finetune/demo/idbooth.json", "snakemake"),
    "weights": (
        SAMPLE,
        cut,
        f"{R}/loras/demo/idbooth/ID_2/pytorch_lora_weights.safetensors",
        "--forcerun finetune",
    ),
    "weights gone": (
        SAMPLE,
        remove,
        f"{R}/loras/demo/idbooth/ID_2/pytorch_lora_weights.safetensors",
        "--forcerun finetune",
    ),
    "record": (SAMPLE, cut, f"{R}/loras/demo/idbooth/ID_2/training.json", "--forcerun finetune"),
    "sample": (ALIGN, cut, f"{R}/samples/demo/idbooth/base/ID_2/1.png", "--forcerun sample"),
    "features": (SCORE, cut, f"{R}/features/real/demo_recogniser.safetensors", "run again"),
    "score": (TABLES, lose_last_row, f"{R}/scores/identity/demo/idbooth/base.csv", "run again"),
    "verification": (TABLES, lose_last_row, RECOGNITION, "run again"),
    "benchmark": (VERIFY, cut, "data/demo_world/benchmarks/plain.bin", "again"),
    "recogniser": (
        VERIFY,
        cut,
        f"{R}/recognition/demo-idbooth-base/seed0/model.safetensors",
        "again",
    ),
}


@pytest.fixture(scope="module")
def study(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "project"
    shutil.copytree(finished_study, folder, symlinks=True)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_one_sentence_that_names_it_and_the_remedy(
    case: str, study: Path, tmp_path: Path
) -> None:
    command, damage, file, remedy = CASES[case]
    path = study / file
    whole = path.read_bytes()
    try:
        damage(path)
        ended = run_step(study, command, tmp_path / "log.txt")
    finally:
        path.write_bytes(whole)
    expect_sentence(ended, file, remedy)


def expect_sentence(ended: Ended, *parts: str) -> None:
    assert ended.status == 2, ended.errors
    assert "Traceback" not in ended.errors
    assert ended.sentence.startswith("error: ")
    for part in parts:
        assert part in ended.sentence


def test_a_broken_photograph_stops_its_identity_alone(study: Path, tmp_path: Path) -> None:
    """Nobody else waits for it, and the run says who is missing."""
    manifest_file = f"{R}/dataset/images/ID_3"
    image = sorted((study / manifest_file).glob("*.png"))[0]
    whole, loras = image.read_bytes(), study / R / "loras/demo/idbooth"
    shutil.rmtree(loras)
    try:
        cut(image)
        ended = run_step(study, FINETUNE, tmp_path / "log.txt")
    finally:
        image.write_bytes(whole)
    expect_sentence(ended, "1 of 4 identities were not fine-tuned (ID_3", image.name, "prepare")
    done = {path: path.read_bytes() for path in loras.glob("ID_*/*.safetensors")}
    assert {path.parent.name for path in done} == {"ID_1", "ID_2", "ID_4"}
    assert run_step(study, FINETUNE, tmp_path / "log.txt").status == 0
    assert (loras / "ID_3/pytorch_lora_weights.safetensors").is_file()
    assert all(path.read_bytes() == content for path, content in done.items())


def test_features_whose_twin_broke_are_extracted_again(study: Path, tmp_path: Path) -> None:
    path = study / R / "features/real/demo_recogniser.safetensors"
    assert run_step(study, FEATURES, tmp_path / "log.txt").status == 0
    whole = path.read_bytes()
    cut(path)  # the twin is the same file under another name
    assert run_step(study, FEATURES, tmp_path / "log.txt").status == 0
    assert path.read_bytes() == whole


def test_missing_weights_are_named_with_what_to_do(study: Path, tmp_path: Path) -> None:
    config = study / R / "config/features/demo_recogniser.json"
    whole = config.read_text("utf-8")
    content = json.loads(whole)
    entry = placed(content["weights"]["extractor"])
    gone = entry["source"]
    content["weights"]["extractor"] = entry | {"source": f"{gone}.gone"}
    try:
        config.write_text(json.dumps(content))
        ended = run_step(study, FEATURES, tmp_path / "log.txt")
    finally:
        config.write_text(whole)
    expect_sentence(ended, f"{gone}.gone")


def test_a_card_that_is_gone_is_one_sentence(study: Path, tmp_path: Path) -> None:
    """The scheduler gave the job a card that the driver cannot use."""
    environment = {"CUDA_VISIBLE_DEVICES": "7"}
    ended = run_step(study, FEATURES, tmp_path / "log.txt", environment=environment)
    expect_sentence(ended, "cannot use GPU 7", "nvidia-smi", "gpu=0")


def test_a_person_in_whose_photographs_nobody_is_seen_is_named_and_the_others_are_done(
    study: Path, tmp_path: Path
) -> None:
    """Through the workflow: everything is there without that person, and the run has failed."""
    project = tmp_path / "project"
    shutil.copytree(study, project, symlinks=True)
    without_faces(project / "data/demo_world/tfd/TD_RGB_A_Set2.zip")
    check = f"{R}/dataset/complete.json"
    shares = [f"{R}/loras/demo/idbooth/shares/{number}-of-2.json" for number in range(2)]
    job = start(project, check, *shares)
    output, _ = job.communicate()
    assert job.returncode == 1, output[-4000:]
    assert (
        "1 of 4 identities: ID_2 (no face (prepare.detector), position excluded (prepare" in output
    )
    others = {"ID_1", "ID_3", "ID_4"}
    assert {path.name for path in (project / R / "dataset/images").iterdir()} == others
    trained = [name for path in shares for name in json.loads((project / path).read_text("utf-8"))]
    assert set(trained) == others
    before = {path: path.stat().st_mtime_ns for path in (project / R / "loras").rglob("*")}
    write_config(project, {"check_dataset.on_empty_identity": "skip"})
    output = snakemake(project, check, *shares)
    assert not re.search(r"(prepare|finetune)\s+\d", output)
    assert {path: path.stat().st_mtime_ns for path in (project / R / "loras").rglob("*")} == before
    left_out = json.loads((project / check).read_text("utf-8"))["left_out"]
    assert left_out == {
        "ID_2": ["no face (prepare.detector)", "position excluded (prepare.positions)"]
    }


def without_faces(archive: Path) -> None:
    """Put a plain grey image in the place of every photograph."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if not name.endswith("/")]
    grey = encode_png(np.full((256, 256, 3), 128, dtype=np.uint8))
    with zipfile.ZipFile(archive, "w") as written:
        for name in names:
            written.writestr(name, grey)
