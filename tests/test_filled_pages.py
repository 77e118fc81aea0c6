"""Tables and pictures of the pages are filled in from a finished study's files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline_steps.evidence.scores.identity import COMPARISON_COLUMNS, IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import QUALITY_COLUMNS
from pipeline_steps.evidence.tables.kinds import KINDS
from pipeline_steps.runtime.errors import StepError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import fill_card  # noqa: E402
import fill_tables  # noqa: E402

CARD = ROOT / "resources" / "demo_world" / "README.md"
COLUMNS = {name: kind.columns for name, kind in KINDS.items()} | {"comparison": COMPARISON_COLUMNS}
NAMES = ("measured", "summary", "quality", "identity", "comparison", "recognition", "timing")


def toy_study(root: Path) -> Path:
    """Tables and provenance of two methods, one prompt set and one judge."""
    extractors = "frechet=demo_attributes cmmd=x prdc=x face_quality=demo_quality"
    quality, identity = [], []
    for method, number in (("idbooth", 0.25), ("untuned", 0.5), ("dreambooth", 0.75)):
        key = {"base_model": "demo", "method": method, "prompts": "base"}
        for reference in ("real", "wild"):
            values = dict.fromkeys(QUALITY_COLUMNS[6:-2], number + 1)
            names = {"reference": reference, "extractors": extractors}
            quality.append(key | names | {"n_synthetic": 9, "n_real": 9} | values)
        for versus in ("real", "synthetic"):
            values = dict.fromkeys(IDENTITY_COLUMNS[7:-1], number)
            identity.append(key | {"versus": versus, "recogniser": "judge"} | values)
    comparison = {"base_model": "demo", "prompts": "base", "versus": "real", "recogniser": "judge"}
    comparison |= {"method": "idbooth", "minus_method": "dreambooth", "metric": "fdr"}
    comparison |= {"difference": -0.5, "low": -0.75, "high": -0.25}
    trained = {"trained_on": "real", "base_model": "real", "method": "-", "prompts": "-"}
    trained |= {"accuracy_sd": 0.01, "n_pairs": 200, "low": 0.5, "high": 0.9}
    recognition = [
        trained | {"seed": seed, "benchmark": benchmark, "role": role, "accuracy": accuracy}
        for seed in (0, 1)
        for benchmark, role, accuracy in (
            ("plain", "validation", 0.9),
            ("cross_age", "test", 0.6 + 0.1 * seed),
            ("cross_pose", "test", 0.75),
        )
    ]
    rows = {
        "quality": quality,
        "identity": identity,
        "comparison": [comparison, comparison | {"metric": "eer", "difference": 9.0}],
        "recognition": recognition,
    }
    (root / "tables").mkdir()
    for name, columns in COLUMNS.items():
        frame = pd.DataFrame(rows.get(name, []), columns=list(columns))
        frame.to_csv(root / "tables" / f"{name}.csv", index=False)
    step = {"wall_seconds": 12.4, "processor_seconds": 20.6, "memory_mib": 900.0}
    provenance = {
        "code": {"revision": "0123456789abcdef0123"},
        "steps": {"report": step | {"jobs": 1}, "finetune": step | {"jobs": 6}},
    }
    (root / "provenance.json").write_text(json.dumps(provenance))
    (root / "figures").mkdir()
    for name in fill_tables.PICTURES:
        Image.new("RGB", (40, 20), "red").save(root / "figures" / f"{name}.png")
    return root


def test_changed_code_is_told_beside_the_revision(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    provenance = json.loads((study / "provenance.json").read_text())
    provenance["code"]["changed_files"] = ["pipeline_steps/score.py"]
    (study / "provenance.json").write_text(json.dumps(provenance))
    told = fill_tables.study_tables(study, date="2026-01-02", hardware="2 cores")["measured"]
    assert told.endswith("code revision `0123456789ab`, files changed since: 1.")


def test_tables_hold_the_numbers_of_the_csv_files(tmp_path: Path) -> None:
    tables = fill_tables.study_tables(toy_study(tmp_path), date="2026-01-02", hardware="2 cores")
    assert tables.keys() >= set(NAMES)
    assert tables["measured"] == "Measured on 2026-01-02, 2 cores, code revision `0123456789ab`."
    rows = tables["identity"].splitlines()
    methods = ["untuned", "DreamBooth", "ID-Booth"]
    assert [row.split(" | ")[3] for row in rows[4:]] == methods * 2  # vs real, vs synthetic
    assert "**0.250 [0.250, 0.250]**" in rows[-1]
    assert "1.750 [1.750, 1.750]" in tables["quality"]
    assert "Fréchet (demo attributes) photographs ↓" in tables["quality"]
    # Validation stays out of the average: (0.65 + 0.75) / 2.
    (row,) = tables["recognition"].splitlines()[4:]
    assert row.startswith("| photographs | – | – | 0.900 ± 0.000 | 0.650 ± 0.071 |")
    assert "| 0.700 ± 0.035 [" in row
    assert "mean ± standard deviation over 2 seeds" in tables["recognition"]
    steps = [row.split(" | ")[0] for row in tables["timing"].splitlines()[2:]]
    assert steps == ["| `finetune`", "| `report`", "| all"]
    assert tables["timing"].endswith("| all | 7 | 25 | 41 | 900 |")


def test_a_difference_beyond_chance_is_bold_and_other_metrics_are_left_out(tmp_path: Path) -> None:
    table = fill_tables.study_tables(toy_study(tmp_path), date="d", hardware="h")["comparison"]
    assert "**−0.50 [−0.75, −0.25]**" in table
    assert "9.0" not in table


def test_every_row_of_a_table_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    tables = fill_tables.study_tables(toy_study(tmp_path), date="d", hardware="h")
    for name, text in tables.items():
        for part in text.split("\n\n"):
            counts = {line.count("|") for line in part.splitlines() if line.startswith("|")}
            assert len(counts) <= 1, name


def fill_pages(root: Path, study: Path) -> dict[str, str]:
    """Both pages after filling, by the option that names them."""
    files = {"readme": root / "README.md", "results": root / "results.md"}
    command = ["--study", str(study), "--date", "d", "--hardware", "h"]
    command += ["--images", str(root / "images")]
    for option, file in files.items():
        command += [f"--{option}", str(file)]
    assert fill_tables.main(command) == 0
    return {option: file.read_text("utf-8") for option, file in files.items()}


def test_filling_the_pages_twice_changes_nothing_and_keeps_the_rest(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    toy_study(study)
    before = {
        "readme": (ROOT / "README.md").read_text("utf-8"),
        "results": (ROOT / "docs" / "results.md").read_text("utf-8"),
    }
    (tmp_path / "README.md").write_text(before["readme"])
    (tmp_path / "results.md").write_text(before["results"])
    first = fill_pages(tmp_path, study)
    assert fill_pages(tmp_path, study) == first
    marked = re.compile(r"(<!-- table:\w+ -->\n).*?(<!-- /table -->)", re.DOTALL)
    for page, text in first.items():
        assert marked.sub(r"\1\2", text) == marked.sub(r"\1\2", before[page])
        assert "Measured on d, h" in text
    for name in fill_tables.PICTURES:
        with Image.open(tmp_path / "images" / f"{name}.webp") as picture:
            assert picture.width == fill_tables.PICTURES[name]
            assert picture.height == picture.width // 2


def test_a_study_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"samples\.png is missing: finish the study"):
        fill_tables.write_pictures(tmp_path, tmp_path)


def test_summary_has_a_row_per_method_of_the_last_prompts_by_the_last_judge(tmp_path: Path) -> None:
    folder = toy_study(tmp_path) / "tables"
    frames = {
        name: pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
        for name in ("quality", "identity", "recognition")
    }
    identity = frames["identity"]
    others = identity.assign(prompts="complex", recogniser="independent", eer=0.125, eer_low=0.1)
    photographs = others.head(1).assign(base_model="real", method="-", prompts="-", versus="real")
    shown = frames | {"identity": pd.concat([identity, others, photographs])}
    lines = fill_tables.summary(shown).splitlines()
    assert lines[0] == "Prompts: Complex. Judge of EER and FDR: independent."
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines[4:]]
    assert [row[1] for row in rows] == ["–", "untuned", "DreamBooth", "ID-Booth"]
    assert all(row[3].startswith("0.125 [0.100, ") for row in rows)
    assert all(row[2] == "" for row in rows)  # no quality of these prompts
    assert rows[0][5].startswith("0.700 [")
    assert all(row[5] == "" for row in rows[1:])


@pytest.mark.parametrize("text", ["", "<!-- table:a -->\nx\n<!-- /table -->\n" * 2])
def test_a_missing_or_repeated_marker_is_refused(text: str) -> None:
    with pytest.raises(StepError, match="table:a"):
        fill_tables.fill(text, {"a": "x"})


def test_an_unfinished_study_is_refused(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    (study / "provenance.json").write_text('{"steps": {}}')
    with pytest.raises(StepError, match="finish the study"):
        fill_tables.study_tables(study, date="d", hardware="h")


def test_card_gets_sizes_and_measurements(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.read_text("utf-8"))
    (tmp_path / "recogniser").mkdir()
    tensors = {"a": np.zeros((3, 4), np.float16), "b": np.zeros(5, np.float16)}
    save_file(tensors, tmp_path / "recogniser" / "model.safetensors", metadata={"format": "pt"})
    row = {"what": "EER", "value": 0.0125, "low": 0.01, "high": 0.02, "n": 600}
    part = {"date": "2026-01-02", "hardware": "2 cores", "rows": [row, row | {"low": None}]}
    (tmp_path / "m.json").write_text(json.dumps({"recognisers": part, "identity": {"rows": []}}))
    command = ["--weights", str(tmp_path), "--measurements", str(tmp_path / "m.json")]
    assert fill_card.main(command) == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "| `recogniser/model.safetensors` | 17 | 0.00 |" in text
    assert "| EER | 0.013 [0.010, 0.020] | 600 | 2026-01-02 | 2 cores |" in text
    assert "| EER | 0.013 | 600 |" in text


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="train the weights"):
        fill_card.weights_table(tmp_path)
