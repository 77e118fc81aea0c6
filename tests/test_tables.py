from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.evidence.audit.checks import SUMMARY_COLUMNS
from pipeline_steps.evidence.names import Names
from pipeline_steps.evidence.scores.identity import IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import POSE_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.evidence.tables.kinds import diversity_tables, empty_cells
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import record_place
from pipeline_steps.tables import main

METHODS = ("idbooth", "dreambooth", "untuned", "portraitbooth")
EXTRACTORS = "frechet=inception_v3 cmmd=clip_l14_336 prdc=inception_v3 face_quality=crfiqa"


class Study:
    """Score files of one base model, two prompt sets and four methods."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scores: list[Path] = []
        self.verification: list[Path] = []
        self.configure({})
        for prompts in ("complex", "base"):
            for position, method in enumerate(METHODS):
                self.add_variant(method, prompts, 0.1 * position)
        self.add(
            "quality",
            "reference",
            [self.quality("real", "-", "-", ref, 0.9) for ref in ("real", "wild")],
        )
        self.verify("real", 0, 0.5)
        for method in ("idbooth", "dreambooth"):
            for seed in (0, 1):
                offset = 0.02 * (method == "idbooth")
                self.verify(f"sd21-{method}-base", seed, 0.6 + 0.1 * seed + offset)

    def configure(self, settings: dict) -> None:
        frozen = {"study": "s", "step": "tables", "seed": 0, "weights": {}, "variant": {}}
        (self.root / "tables.json").write_text(json.dumps(frozen | {"settings": settings}))

    def add(self, kind: str, name: str, rows: list[dict]) -> None:
        columns = {"quality": QUALITY_COLUMNS, "identity": IDENTITY_COLUMNS, "pose": POSE_COLUMNS}
        path = self.root / kind / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=list(columns[kind])).to_csv(path, index=False)
        self.scores.append(path)

    def quality(self, base: str, method: str, prompts: str, reference: str, x: float) -> dict:
        numbers = dict.fromkeys(QUALITY_COLUMNS[6:-2], x)
        names = {"base_model": base, "method": method, "prompts": prompts, "reference": reference}
        return names | {"n_synthetic": 20, "n_real": 20, "extractors": EXTRACTORS} | numbers

    def add_variant(self, method: str, prompts: str, x: float) -> None:
        key = ("sd21", method, prompts)
        name = "-".join(key)
        self.add("quality", name, [self.quality(*key, ref, x) for ref in ("real", "wild")])
        names = dict(zip(("base_model", "method", "prompts"), key, strict=True))
        judges = [("arcface_r100", "real"), ("arcface_r100", "synthetic"), ("other", "real")]
        self.add(
            "identity",
            name,
            [
                names | {"recogniser": r, "versus": v} | dict.fromkeys(IDENTITY_COLUMNS[5:-1], x)
                for r, v in judges
            ],
        )
        self.add("pose", name, [names | dict.fromkeys(POSE_COLUMNS[3:-2], x) | {"extractor": "p"}])

    def verify(self, trained_on: str, seed: int, accuracy: float) -> None:
        path = self.root / "recognition" / trained_on / f"seed{seed}" / "verification.csv"
        path.parent.mkdir(parents=True)
        rows = [
            ("lfw", "validation", accuracy + 0.1),
            ("cplfw", "test", accuracy),
            ("agedb_30", "test", accuracy - 0.1),
        ]
        frame = pd.DataFrame(rows, columns=["benchmark", "role", "accuracy"])
        frame.assign(accuracy_sd=0.01, n_pairs=600, low=0.4, high=0.7, reasons="").to_csv(
            path, index=False
        )
        self.verification.append(path)

    def run(self, *extra: str) -> Path:
        argv = ["--config", str(self.root / "tables.json"), "--out", str(self.root / "tables")]
        argv += ["--scores", *map(str, self.scores), "--verification", *map(str, self.verification)]
        assert main([*argv, *extra]) == 0
        return self.root / "tables"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_two_versions_of_a_library_are_refused_unless_allowed(study: Study) -> None:
    for path, number in zip(study.scores, ("2.7", "2.8"), strict=False):
        record = {"study": "s", "seed": 0, "inputs": {}, "versions": [f"sample: torch {number}"]}
        digest = sha256_file(path)
        record_place(path).write_text(json.dumps(record | {"outputs": {path.name: digest}}))
    with pytest.raises(StepError, match=r"torch in sample 2\.7"):
        study.run()
    study.configure({"allow_mixed_versions": True})
    noted = json.loads(record_place(study.run()).read_text())["versions"]
    assert {"sample: torch 2.7", "sample: torch 2.8"} <= {*noted}


def test_rows_come_in_the_papers_order_whatever_the_order_of_files(study: Study) -> None:
    out = study.run()
    quality = pd.read_csv(out / "quality.csv", keep_default_na=False)
    assert tuple(quality.columns) == QUALITY_COLUMNS
    assert quality["base_model"].tolist() == ["real"] * 2 + ["sd21"] * 16
    assert quality["prompts"].tolist()[2:] == ["base"] * 8 + ["complex"] * 8
    assert quality["method"].tolist()[2:10:2] == [
        "untuned",
        "dreambooth",
        "portraitbooth",
        "idbooth",
    ]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    study.scores.reverse()
    study.verification.reverse()
    assert {path.name: path.read_bytes() for path in study.run().iterdir()} == before


def test_every_table_has_three_forms(study: Study) -> None:
    names = {path.name for path in study.run().iterdir()}
    kinds = ("quality", "identity", "pose", "recognition", "audit", "groups")
    tables = {f"{kind}.{suffix}" for kind in kinds for suffix in ("csv", "md", "tex")}
    assert names == tables | {"all.record.json"}


def test_quality_table_ranks_fine_tuned_methods_only(study: Study) -> None:
    study.configure({"labels": {"real": "TFD", "wild": "FFHQ"}})
    lines = (study.run() / "quality.md").read_text().splitlines()
    assert lines[2] == (
        "| Data from | Prompt | Fine-tuning | FID TFD ↓ | FID FFHQ ↓ | CMMD TFD ↓ | CMMD FFHQ ↓ | "
        "Precision TFD ↑ | Precision FFHQ ↑ | Recall TFD ↑ | Recall FFHQ ↑ | CR-FIQA ↑ |"
    )
    rows = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert [row[:3] for row in rows[:3]] == [
        ["TFD", "–", "–"],
        ["SD-2.1", "Base", "–"],
        ["SD-2.1", "Base", "DreamBooth"],
    ]
    # Values: idbooth 0, dreambooth 0.1, untuned 0.2, portraitbooth 0.3.
    by_method = {row[2]: row[3:] for row in rows[1:5]}
    assert by_method["ID-Booth"][0] == "**0.000**"
    assert by_method["DreamBooth"][0] == "<u>0.100</u>"
    assert by_method["–"] == ["0.200"] * 8 + ["0.200 ± 0.200"]
    assert by_method["PortraitBooth"][4] == "**0.300**"
    assert by_method["DreamBooth"][4] == "<u>0.100</u>"
    assert by_method["PortraitBooth"][8] == "**0.300 ± 0.300**"


def test_identity_has_one_table_per_recogniser_and_ranks_each_direction(study: Study) -> None:
    text = (study.run() / "identity.md").read_text()
    assert text.count("Compared with") == 2
    assert "judged by ArcFace r100" in text
    assert "judged by other" in text
    row = next(line for line in text.splitlines() if "real | SD-2.1 | Base | ID-Booth" in line)
    cells = row.strip("| ").split(" | ")[4:]
    lowest = ["**0.000**"] * 3 + ["**0.000 ± 0.000**"]
    # Worst genuine mean and FDR, best distance.
    assert cells == [*lowest, "0.000 ± 0.000", "0.000", "**0.000**"]


def test_recognition_averages_seeds_then_tests_and_leaves_validation_out(study: Study) -> None:
    lines = (study.run() / "recognition.md").read_text().splitlines()
    assert lines[2].endswith(
        "| Validation LFW ↑ | Accuracy AgeDB-30 ↑ | Accuracy CP-LFW ↑ | Accuracy Average ↑ |"
    )
    rows = {line.split(" | ")[2]: line.strip("| ").split(" | ")[3:] for line in lines[4:]}
    assert rows["–"] == ["0.600", "0.400", "0.500", "0.450"]  # one seed has no spread over seeds
    assert rows["DreamBooth"] == [
        "<u>0.750 ± 0.071</u>",
        "<u>0.550 ± 0.071</u>",
        "<u>0.650 ± 0.071</u>",
        "<u>0.600 ± 0.071</u>",
    ]
    assert rows["ID-Booth"][-1].startswith("**0.620")
    assert "over 1 to 2 seeds" in lines[0]
    frame = pd.read_csv(study.root / "tables" / "recognition.csv")
    assert set(frame["trained_on"]) == {"real", "sd21-idbooth-base", "sd21-dreambooth-base"}
    assert sorted(frame["seed"].unique()) == [0, 1]
    assert frame["role"].tolist()[:3] == ["test", "test", "validation"]


def test_distances_of_other_extractors_are_not_called_fid(study: Study) -> None:
    for path in (study.root / "quality").iterdir():
        path.write_text(path.read_text().replace("frechet=inception_v3", "frechet=small_cnn"))
    text = (study.run() / "quality.md").read_text()
    assert "FID" not in text
    assert "Fréchet (small_cnn)" in text


def test_intervals_are_printed_on_request(study: Study) -> None:
    assert "[" not in (study.run() / "identity.md").read_text()
    study.configure({"intervals": True})
    assert "**0.000 [0.000, 0.000]**" in (study.run() / "identity.md").read_text()


def replicate_files(
    study: Study, fdr: dict[str, np.ndarray], identities: dict[str, str]
) -> list[Path]:
    paths = []
    for method, values in fdr.items():
        paths.append(study.root / f"{method}.parquet")
        names = {"base_model": "sd21", "method": method, "prompts": "base", "versus": "real"}
        write_manifest(
            paths[-1],
            [
                names
                | {"recogniser": "arcface_r100", "identities_sha256": identities.get(method, "x")}
                | {"n_identities": 30, "replicate": i, "eer": 0.1, "fdr": v, "genuine_mean": 0.5}
                for i, v in enumerate(values)
            ],
        )
    return paths


def test_differences_between_methods_have_paired_intervals(study: Study) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(5, 2, 400)
    fdr = {"dreambooth": shared, "idbooth": shared + rng.normal(0.5, 0.1, 400), "untuned": shared}
    paths = replicate_files(study, fdr, {})
    out = study.run("--replicates", *map(str, paths))
    table = pd.read_csv(out / "comparison.csv")
    row = table[table["metric"] == "fdr"].iloc[0]
    assert (row["method"], row["minus_method"]) == ("idbooth", "dreambooth")
    assert row["difference"] == pytest.approx(-0.1)  # 0.0 - 0.1 in the identity table
    # The methods' own spread of 2 cancels; what remains is the spread of the difference.
    assert 0.2 < row["low"] < row["high"] < 0.8
    assert len(table) == 3  # the untuned model is no fine-tuning method


def test_methods_that_lost_an_identity_are_not_paired(study: Study) -> None:
    fdr = {"dreambooth": np.arange(5.0), "idbooth": np.arange(5.0)}
    paths = replicate_files(study, fdr, {"idbooth": "y"})
    table = pd.read_csv(study.run("--replicates", *map(str, paths)) / "comparison.csv")
    assert table["low"].isna().all()


def test_a_study_without_recognition_has_empty_tables_of_it(study: Study) -> None:
    study.verification.clear()
    out = study.run()
    assert len(pd.read_csv(out / "recognition.csv")) == 0
    assert (out / "recognition.md").read_text() == ""


def test_mixtures_and_repetitions_are_refused(study: Study) -> None:
    first = study.scores[0]
    study.scores.append(first)
    with pytest.raises(StepError, match="one row twice"):
        study.run()
    study.scores.pop()
    first.write_text(first.read_text().replace("prdc=inception_v3", "prdc=other"))
    with pytest.raises(StepError, match="different extractors"):
        study.run()
    first.write_text("a,b\n1,2\n")
    with pytest.raises(StepError, match="no table of the score step"):
        study.run()


def audit_row(method: str, verdict: str) -> dict:
    """A summary of the audit step."""
    names = {"base_model": "sd21", "method": method, "prompts": "base", "recogniser": "judge"}
    return dict.fromkeys(SUMMARY_COLUMNS, 3) | names | {"verdict": verdict, "fmr": 0.001}


def test_empty_cells_have_their_reason_under_the_table_and_in_a_list(study: Study) -> None:
    key = {"base_model": "sd21", "method": "none", "prompts": "base", "reasons": "no face"}
    of = {"reference": "real", "n_synthetic": 0, "n_real": 0, "extractors": EXTRACTORS}
    study.add("quality", "none", [key | of])
    judged = {"recogniser": "arcface_r100", "n_genuine": 0, "n_impostor": 0}
    rows = [key | judged | {"versus": "real", "fdr": float("inf")}]
    study.add("identity", "none", rows)
    out = study.run()
    for kind in ("quality", "identity"):
        text = (out / f"{kind}.md").read_text()
        assert "Empty: SD-2.1, Base, none: no face." in text
    assert re.search(r"\| Real \|.*none.*∞", (out / "identity.md").read_text(), re.IGNORECASE)
    assert empty_cells(out) == [
        f"{out}/quality.csv, sd21, base, none, real: no face",
        f"{out}/identity.csv, real, arcface_r100, sd21, base, none: no face",
    ]
    assert "Empty:" not in (out / "pose.md").read_text()


def test_audits_are_gathered_with_their_verdicts(study: Study) -> None:
    paths = []
    for method, verdict in (("idbooth", "look"), ("dreambooth", "pass")):
        paths.append(study.root / f"{method}.summary.csv")
        pd.DataFrame([audit_row(method, verdict)], columns=list(SUMMARY_COLUMNS)).to_csv(
            paths[-1], index=False
        )
    out = study.run("--audits", *map(str, paths))
    assert pd.read_csv(out / "audit.csv")["method"].tolist() == ["dreambooth", "idbooth"]
    lines = (out / "audit.md").read_text().splitlines()
    assert "Identity audit by judge at a false match rate of 0.001" in lines[0]
    assert lines[4].startswith("| SD-2.1 | Base | DreamBooth | pass | 3 | 3.00 |")
    study.scores.clear()
    with pytest.raises(StepError, match="one row twice"):
        study.run("--audits", *map(str, paths), str(paths[0]))


def test_captions_tell_the_judge_that_guided_training_from_independent_ones(study: Study) -> None:
    assert "identity losses" not in (study.run() / "identity.md").read_text()
    guide = {"name": "arcface_r100", "task": "recogniser", "architecture": "iresnet"}
    guide |= {"source": "x", "licence": "MIT", "commercial_use": False}
    frozen = json.loads((study.root / "tables.json").read_text())
    (study.root / "tables.json").write_text(json.dumps(frozen | {"weights": {"recogniser": guide}}))
    first, second = [
        line for line in (study.run() / "identity.md").read_text().splitlines() if "judged" in line
    ]
    assert "judged by ArcFace r100, the guide of training or sampling" in first
    assert "judged by other, an independent judge" in second


def test_further_measures_stand_in_a_table_of_their_own() -> None:
    rows = [
        {"base_model": "sd21", "method": method, "prompts": "base", "reference": reference}
        | {"n_synthetic": 20, "n_real": 20, "density": 0.5 + i, "kd": 1.0 - i}
        # Drawn down to a smaller reference set, a set has another Vendi score.
        | {"vendi": 4.0 + i + 2.0 * (reference == "wild"), "vendi_within_identity": 1.5 + i}
        | {"authpct": float("nan")}
        for i, method in enumerate(("dreambooth", "idbooth"))
        for reference in ("real", "wild")
    ]
    (table,) = diversity_tables(pd.DataFrame(rows), Names())
    titles = [(column.title, column.subtitle) for column in table.columns]
    assert titles == [
        *(("KD", "Real"), ("KD", "In the wild"), ("Density", "Real"), ("Density", "In the wild")),
        *(("Vendi", "Real"), ("Vendi", "In the wild"), ("Vendi per identity", "")),
    ]
    assert [cell.mark for cell in table.rows[1].cells] == ["best"] * 7
    assert [cell.text for cell in table.rows[0].cells] == [
        *("1.000", "1.000", "0.500", "0.500", "4.00", "6.00", "1.50"),
    ]
    without = pd.DataFrame(rows).drop(columns=["density", "kd", "vendi", "vendi_within_identity"])
    assert diversity_tables(without, Names()) == []


def check_latex(text: str) -> None:
    """Environments and braces nest, rows are as wide as their table, no bare special character."""
    bare = re.sub(r"\\[\\&%$#_{}~^]|\\[a-z]+\*?", lambda m: " " if len(m[0]) > 2 else "", text)
    # Letters beyond ASCII are fine since LaTeX of 2018, other signs are not.
    assert all(c.isascii() or c.isalpha() for c in bare)
    assert not set("#_%~^") & set(re.sub(r"\\label\{[^}]*\}", "", text_without_commands(text)))
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert text.replace(r"\$", "").count("$") % 2 == 0
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in block[1].splitlines():
            if line.endswith(r"\\"):
                spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                cells = len(re.findall(r"(?<!\\)&", line)) + 1
                assert cells - len(spans) + sum(spans) == len(block[0]), line


def text_without_commands(text: str) -> str:
    return re.sub(r"\\(?:[&%$#_{}~^]|[a-z]+\{\})", "", text)


def test_latex_is_well_formed_whatever_the_names_are(study: Study) -> None:
    awkward = {"real": r"A_B & 50 % {x} ~^\ #1 $", "idbooth": "Ünïcode “quoted” ≥ 1"}
    study.configure({"labels": awkward, "intervals": True})
    out = study.run()
    for kind in ("quality", "identity", "pose", "recognition"):
        text = (out / f"{kind}.tex").read_text()
        assert text.count(r"\begin{tabular}") >= 1
        check_latex(text)
    for broken in (r"\begin{table}", "{", "a_b", "100 %"):
        with pytest.raises((AssertionError, IndexError)):
            check_latex((out / "pose.tex").read_text() + broken)
