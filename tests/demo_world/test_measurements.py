"""benchmarks/demo_world.py: what it counts, and the file it writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.color

from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.runtime.errors import StepError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "demo_world.py"


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_demo_world", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def test_what_is_asked_for_is_read_off_a_prompt(measure: ModuleType) -> None:
    asked = measure.demo_study.asked_of
    start = "photo of sks person, close-up portrait"
    assert asked(start, "place") == asked(start, "expression") == "none"
    start = f"{start}, sad expression"
    assert (asked(start, "place"), asked(start, "expression")) == ("none", "sad")
    assert asked(f"{start}, busy construction site environment", "place") == "construction site"


def test_skin_is_held_against_the_own_persons_photographs(
    measure: ModuleType, tmp_path: Path
) -> None:
    def aligned(folder: Path, greys: dict[str, list[int]]) -> None:
        rows = []
        for identity, values in greys.items():
            for k, value in enumerate(values):
                image = np.zeros((112, 112, 3), np.uint8)
                image[60:84, 20:90] = value
                write_png(folder / identity / f"{k}.png", image)
                rows.append({"identity": identity, "file": f"{identity}/{k}.png", "kept": True})
        rows.append({"identity": "ID_1", "file": None, "kept": False})
        write_manifest(folder / "manifest.parquet", rows)

    study = tmp_path / "aligned"
    aligned(study / "real", {"ID_1": [119, 119], "ID_2": [60, 60, 60]})
    aligned(study / "demo" / "idbooth" / "base", {"ID_1": [119], "ID_2": [119, 60]})
    photographs, images = measure.demo_study.skin(tmp_path)
    assert (photographs.what, photographs.value) == (
        "skin, photographs",
        pytest.approx(0, abs=1e-3),
    )
    greys = np.full((1, 2, 3), [[[119], [60]]], np.uint8)
    light, dark = skimage.color.rgb2lab(greys)[0, :, 0]
    expected = (0 + (light - dark) / 2) / 2  # people count alike
    assert images.value == pytest.approx(expected, rel=0.01)
    assert (images.what, images.n) == ("skin, demo idbooth, base prompts", 2)


def test_intervals_are_wilsons_and_the_bootstraps(measure: ModuleType) -> None:
    row = measure.proportion("hits", 8, 10)
    assert (row.value, row.n) == (0.8, 10)
    assert (row.low, row.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert measure.proportion("all", 10, 10).high == pytest.approx(1.0)
    values = np.random.default_rng(0).normal(3, 1, 400)
    row = measure.mean("mean", list(values), np.random.default_rng(1))
    assert row.value == pytest.approx(values.mean())
    assert row.high - row.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    with pytest.raises(StepError, match="nothing to count"):
        measure.proportion("none", 0, 0)


def test_parts_are_added_to_the_file_and_missing_ones_are_named(
    measure: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = tmp_path / "study", tmp_path / "measured.json"
    rows = [{"identity": "ID_1", "kept": k < 3} for k in range(4)]
    rows.append({"identity": "ID_2", "kept": False})
    write_manifest(study / "aligned" / "demo" / "untuned" / "base" / "manifest.parquet", rows)
    write_manifest(study / "aligned" / "demo" / "idbooth" / "base" / "manifest.parquet", rows)
    out.write_text(json.dumps({"renderer": {"rows": []}}))
    arguments = ["--study", str(study), "--out", str(out)]
    assert measure.main(["--only", "faces", *arguments]) == 0
    written = json.loads(out.read_text())
    assert set(written) == {"renderer", "faces"}
    found, worst = written["faces"]["rows"][-2:]
    assert found["what"] == "face found, demo untuned, base prompts"
    assert (found["value"], found["n"]) == (0.6, 5)
    assert (worst["value"], worst["n"]) == (0.0, 1)
    assert measure.main(["--only", "identity", *arguments]) == 1
    assert "run the study first" in capsys.readouterr().out


def test_the_identity_tables_rows_are_taken_as_they_are(
    measure: ModuleType, tmp_path: Path
) -> None:
    table = tmp_path / "study" / "tables" / "identity.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "base_model,method,prompts,versus,recogniser,n_genuine,n_impostor,"
        "eer,eer_low,eer_high,fdr,fdr_low,fdr_high\n"
        "demo,idbooth,base,real,r,10,90,0.12,0.1,0.2,2.5,,\n"
    )
    out = tmp_path / "measured.json"
    study = str(tmp_path / "study")
    assert measure.main(["--only", "identity", "--study", study, "--out", str(out)]) == 0
    eer, fdr = json.loads(out.read_text())["identity"]["rows"]
    assert eer["what"] == "EER, demo idbooth base, vs real, r"
    assert (eer["value"], eer["low"], eer["high"], eer["n"]) == (0.12, 0.1, 0.2, 100)
    assert (fdr["value"], fdr["low"], fdr["high"]) == (2.5, None, None)
