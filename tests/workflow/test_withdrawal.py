"""One person withdraws: all of theirs goes, nobody else's work is done again."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from tests.workflow.small_study import CONFIG, bare_environment, quick, snakemake

IDENTITY = "ID_2"
RESULTS = "results/demo"
LORAS = f"{RESULTS}/loras/demo/idbooth"
SAMPLED = [
    f"{RESULTS}/samples/demo/{method}/base/manifest.parquet" for method in ("untuned", "idbooth")
]
TABLE = f"{RESULTS}/tables/identity.csv"


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(finished_study, folder, symlinks=True)
    return folder


def step(study: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pipeline_steps.{name}", *arguments],
        cwd=study,
        env=bare_environment() | quick(),
        capture_output=True,
        text=True,
        check=False,
    )


def withdraw(study: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return step(study, "withdraw", "--study", CONFIG, *arguments)


def hash_of(content: bytes) -> str:
    return sha256(content).hexdigest()


def hashes_of_person(study: Path) -> set[str]:
    """SHA-256 of every photograph and file of the person, found by other means than the step's."""
    found = set()
    for path in (study / RESULTS).rglob("*"):
        own = IDENTITY in path.relative_to(study).parts or path.stem == IDENTITY
        if path.is_file() and own:
            found.add(hash_of(path.read_bytes()))
    for archive in (study / "data/demo_world/tfd").glob("*.zip"):
        with zipfile.ZipFile(archive) as photographs:
            for name in photographs.namelist():
                if name.split("/")[-2] == IDENTITY.removeprefix("ID_") and not name.endswith("/"):
                    found.add(hash_of(photographs.read(name)))
    return found


def places_of(study: Path, hashes: set[str]) -> list[str]:
    """Files below the results, the workflow's notes and the lists with one of these hashes."""
    hits = []
    for folder in (RESULTS, ".snakemake", "withdrawals"):
        for path in (study / folder).rglob("*"):
            if not path.is_file():
                continue
            content = path.read_bytes()
            text = content.decode("latin-1")
            if path.suffix == ".parquet":
                text += pd.read_parquet(path).to_csv()
            if hash_of(content) in hashes or hashes & set(re.findall(r"[0-9a-f]{64}", text)):
                hits.append(str(path.relative_to(study)))
    return hits


def times_of_others(study: Path) -> dict[str, int]:
    """When weights and samples of the others were written."""
    paths = [*(study / LORAS).glob("ID_*/*"), *(study / RESULTS / "samples").glob("**/*.png")]
    return {
        str(path.relative_to(study)): path.stat().st_mtime_ns
        for path in paths
        if IDENTITY not in path.parts
    }


def test_a_withdrawn_person_is_gone_and_nobody_else_is_made_again(study: Path) -> None:
    hashes, before = hashes_of_person(study), times_of_others(study)
    assert len(hashes) > 30
    assert len(places_of(study, hashes)) > 30
    done = withdraw(study, "--identity", IDENTITY, "--by", "A. Officer")
    assert done.returncode == 0, done.stderr
    assert places_of(study, hashes) == []

    output = snakemake(study, *SAMPLED)
    assert re.search(r"^finetune +2$", output, re.MULTILINE)  # shares looked at, nobody trained
    assert times_of_others(study) == before
    assert places_of(study, hashes) == []
    assert IDENTITY not in (study / RESULTS / "dataset/identities.csv").read_text("utf-8")
    stores = (study / RESULTS / "features").glob("**/.*.safetensors")
    with safe_open(next(p for p in stores if "wild" not in p.parts), "numpy") as store:
        owners = {name.split("/")[0] for name in json.loads(store.metadata()["files"])}
    assert owners == {"ID_1", "ID_3", "ID_4"}

    (record,) = (study / "withdrawals/demo").glob("*.json")
    told = json.loads(record.read_text("utf-8"))
    assert (told["identity"], told["by"]) == (IDENTITY, "A. Officer")
    assert told["verified"]["hits"] == []
    removed = {entry["path"] for entry in told["removed"]}
    assert f"{LORAS}/{IDENTITY}/pytorch_lora_weights.safetensors" in removed
    assert {f"{RESULTS}/{page}" for page in ("report.html", "explorer/index.html")} <= removed
    assert not (study / RESULTS / "explorer").exists()
    assert not any("/ID_1/" in path for path in removed)

    # Again: nothing is left to do, and the search comes to the same.
    again = withdraw(study, "--identity", IDENTITY).stderr
    assert "nothing of ID_2 is left" in again and "used: " not in again
    assert len(list(record.parent.iterdir())) == 2
    assert withdraw(study, "--verify", str(record)).returncode == 0
    face = next((study / RESULTS / "dataset/images/ID_1").iterdir())
    told["hashes"].append(hash_of(hash_of(face.read_bytes()).encode()))
    told.pop("sha256")
    other = study / "other.json"
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
    other.write_text(json.dumps(told | {"sha256": hash_of(canonical.encode())}))
    found = withdraw(study, "--verify", str(other))
    assert found.returncode == 1
    assert "1 of" in found.stdout


def test_consent_false_in_the_table_does_the_same_at_the_next_run(study: Path) -> None:
    hashes, before = hashes_of_person(study), times_of_others(study)
    table = study / "consent.csv"
    table.write_text(f"identity,gender,consent\n{IDENTITY},,false\n")
    config = (study / CONFIG).read_text("utf-8")
    changed = re.sub(r"gender_table: .*", "gender_table: consent.csv", config)
    assert changed != config
    (study / CONFIG).write_text(changed, "utf-8")
    snakemake(study, f"{RESULTS}/dataset/embeddings/index.json")
    assert places_of(study, hashes) == []
    assert times_of_others(study) == before
    assert list((study / "withdrawals/demo").glob(f"{IDENTITY}-*.md"))


def test_a_dry_run_lists_and_changes_nothing(study: Path) -> None:
    before = sorted(str(path) for path in study.rglob("*") if ".snakemake" not in path.parts)
    listed = withdraw(study, "--identity", IDENTITY, "--dry-run")
    after = sorted(str(path) for path in study.rglob("*") if ".snakemake" not in path.parts)
    assert f"{LORAS}/{IDENTITY}/training.json" in listed.stdout
    assert [path for path in after if "__pycache__" not in path] == [
        path for path in before if "__pycache__" not in path
    ]


def test_leftovers_of_people_who_left_the_sources_are_swept(study: Path) -> None:
    identities = study / RESULTS / "dataset/identities.csv"
    rows = [row for row in csv.reader(identities.open()) if row[0] != IDENTITY]
    identities.write_text("".join(",".join(row) + "\n" for row in rows))
    others = times_of_others(study)
    swept = withdraw(study, "--sweep")
    assert swept.returncode == 0, swept.stderr
    assert not list((study / RESULTS).glob(f"**/{IDENTITY}"))
    assert times_of_others(study) == others
    assert not (study / "data/demo_world/tfd/withdrawn.csv").exists()


def test_refusals_are_one_clear_sentence(study: Path) -> None:
    wrong = withdraw(study, "--identity", "ID_9")
    assert wrong.returncode == 2
    assert "'ID_9' is no identity of study demo; there are ID_1, ID_2, ID_3, ID_4" in wrong.stderr
    config = (study / CONFIG).read_text("utf-8")
    (study / CONFIG).write_text(
        re.sub(r"(figures:\n(?:  .*\n)*?)  identities: .*", r"\1  identities: [ID_2]", config)
    )
    shown = withdraw(study, "--identity", IDENTITY)
    assert "figures.identities of study demo names ID_2" in shown.stderr
    assert (study / LORAS / IDENTITY).is_dir()
