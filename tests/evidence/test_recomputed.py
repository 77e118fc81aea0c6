"""Finished tables against a second computation from the images, and the two against each other."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def recompute(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import recompute

    yield recompute
    for name in [name for name in sys.modules if name.split(".")[0].startswith("recompute")]:
        sys.modules.pop(name)


@pytest.fixture
def results(finished_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small study's results, of which tables and aligned photographs may be changed."""
    monkeypatch.chdir(finished_study)
    for part in (finished_study / "results" / "demo").iterdir():
        (tmp_path / part.name).symlink_to(part)
    for part in ("tables", "aligned"):
        (tmp_path / part).unlink()
        shutil.copytree(finished_study / "results" / "demo" / part, tmp_path / part)
    return tmp_path


def test_every_cell_follows_from_the_images(
    recompute: Any, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = recompute.main([str(results), "--intervals", "--images", "8"])
    told = capsys.readouterr().out.splitlines()
    assert status == 0, told
    assert not any(line.startswith(("DIFFERS", "not recomputed")) for line in told)
    cells = {word.split()[0]: int(word.split()[1]) for word in re.findall(r"\w+ \d+", told[-1])}
    for table in ("quality", "identity", "pose", "recognition", "audit"):
        frame = pd.read_csv(results / "tables" / f"{table}.csv")
        assert cells[table] == frame.size - len(frame)  # but for the column of words


def test_columns_that_nobody_recomputes_are_listed_and_no_error(
    recompute: Any, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for table in ("quality", "pose"):
        path = results / "tables" / f"{table}.csv"
        pd.read_csv(path).assign(a_new_metric=1.0).to_csv(path, index=False)
    from recomputed import sets

    sets.QUALITY["a_new_metric"] = lambda compared: 1.0  # written a second time for one of them
    assert recompute.main([str(results), "--images", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    listed = [line for line in told if line.startswith("not recomputed")]
    assert listed == ["not recomputed: pose.csv: column a_new_metric"]


def test_a_wrong_cell_a_wrong_image_and_a_lost_row_are_found(recompute: Any, results: Path) -> None:
    pose = results / "tables" / "pose.csv"
    frame = pd.read_csv(pose)
    frame.loc[1, "yaw_mean"] *= 1.0001
    frame.loc[0, "n"] += 1
    frame.iloc[:-1].to_csv(pose, index=False)
    study = recompute.Study(results, images=2)
    recompute.compare(study, "pose", recompute.pose_rows(study))
    found = "\n".join(study.problems)
    assert found.count("pose.csv") == 3
    assert "yaw_mean reads" in found and ": n reads" in found and "one side only" in found

    manifest = pd.read_parquet(results / "aligned" / "real" / "manifest.parquet")
    first, last = (results / "aligned" / "real" / file for file in manifest["file"].iloc[[0, -1]])
    shutil.copyfile(last, first)
    study = recompute.Study(results)
    study.features("real", "demo_recogniser")
    assert any("features of the images differ" in problem for problem in study.problems)
    problems = recompute.realigned(study, "real", study.sets["real"])
    assert [problem.split()[0] for problem in problems] == [manifest["file"].iloc[0]]
    Image.new("RGB", (112, 112)).save(first.with_name("more.png"))
    study = recompute.Study(results)
    assert len(study.sets["real"].files) == manifest["kept"].sum()
    assert any("images lie there" in problem for problem in study.problems)


@pytest.mark.parametrize("decimals", [8, 1])
def test_error_rates_and_intervals_of_two_implementations_are_equal(
    recompute: Any, decimals: int
) -> None:
    from recomputed import intervals, pairs

    from pipeline_steps.metrics.intervals import draw_counts
    from pipeline_steps.metrics.pairs import Comparison, Pairs
    from pipeline_steps.metrics.verification import (
        bootstrap_verification,
        comparison_error_rates,
    )

    rng = np.random.default_rng(decimals)
    people = [f"ID_{i}" for i in range(12) for _ in range(1 + i % 4)]
    centres = rng.normal(size=(12, 16))
    rows = centres[[int(p[3:]) for p in people]] + 1.1 * rng.normal(size=(len(people), 16))
    others = centres.repeat(3, axis=0) + 0.8 * rng.normal(size=(36, 16))
    gallery = [f"ID_{i}" for i in range(12) for _ in range(3)]
    scores, first, second = pairs.pairs(rows, people, others, gallery)
    scores = scores.round(decimals)  # ties, and a crossing at a threshold
    own, impostor = pairs.chosen(first, second, "all", rng)
    comparison = Comparison(
        *(Pairs(scores[which], first[which], second[which]) for which in (own, impostor)),
        tuple(sorted(set(people))),
    )
    rates = comparison_error_rates(comparison, level=0.9)
    found = pairs.rates(scores[own], scores[impostor])
    assert {k: v for k, v in found.items() if k != "fmr1000"} == pytest.approx(
        {k: getattr(rates, k) for k in found if k != "fmr1000"}, rel=1e-9
    )
    again = pairs.rate_limits(scores, first, second, own, impostor, 0.9, rng)
    expected = (rates.eer_low, rates.eer_high, rates.fdr_low, rates.fdr_high)
    assert tuple(again.values()) == pytest.approx(expected, rel=1e-6)
    draws = draw_counts(12, 20, rng)
    library = bootstrap_verification(comparison, draws)
    mine = pairs.bootstrap(scores, first, second, own, impostor, draws)
    np.testing.assert_allclose(
        mine, np.transpose([library.eer, library.fdr, library.genuine_mean]), rtol=1e-9
    )
    low, high = intervals.expanded_percentiles(mine[:, 1], 12, 0.95)
    assert low < rates.fdr < high


def test_markdown_shows_the_rounded_cells_and_marks_the_best(finished_study: Path) -> None:
    tables = finished_study / "results" / "demo" / "tables"
    quality = pd.read_csv(tables / "quality.csv", keep_default_na=False, na_values=[""])
    shown = markdown_rows((tables / "quality.md").read_text("utf-8"))
    names = quality[["base_model", "method", "prompts"]].drop_duplicates().to_numpy().tolist()
    for cells, name in zip(shown, names, strict=False):
        rows = quality[(quality[["base_model", "method", "prompts"]] == name).all(axis=1)]
        by_reference = rows.set_index("reference")
        expected = [
            f"{by_reference.loc[reference, column]:.3f}"
            for column in ("fid", "cmmd", "precision", "recall")
            for reference in ("real", "wild")
        ]
        first = rows.iloc[0]
        expected.append(f"{first['face_quality_mean']:.3f} ± {first['face_quality_sd']:.3f}")
        assert cells[3:] == expected, name
    recognition = pd.read_csv(tables / "recognition.csv")
    tests = recognition[recognition["role"] == "test"].groupby("trained_on", sort=False)["accuracy"]
    averages = [
        f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(tests.mean(), tests.std(ddof=0), strict=True)
    ]
    shown = markdown_rows((tables / "recognition.md").read_text("utf-8"))
    assert [cells[-1] for cells in shown] == averages


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of a page's tables without marks, headers left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {i for i, row in enumerate(rows) if set(row[0]) == {"-"}}
    plain = [[re.sub(r"\*\*|</?u>", "", cell) for cell in row] for row in rows]
    return [row for i, row in enumerate(plain) if i not in heads and i + 1 not in heads]
