from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline_steps.evidence.audit.checks import PAIR_COLUMNS, SUMMARY_COLUMNS, VERDICTS
from pipeline_steps.evidence.names import WORST_TO_BEST
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.evidence.scores.identity import COMPARISON_COLUMNS, IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import POSE_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.evidence.tables.kinds import KINDS, RECOGNITION_COLUMNS
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.report import main
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.code import texts_behind

METHODS = ("untuned", "dreambooth", "portraitbooth", "idbooth")


def rows(columns: tuple[str, ...], **fixed: object) -> list[dict]:
    """One row per method whose numbers are the method's position."""
    found = []
    for position, method in enumerate(METHODS, start=1):
        names = {"base_model": "demo", "method": method, "prompts": "base", "reasons": ""}
        numbers: dict = dict.fromkeys(columns, position / 10)
        found.append(numbers | names | fixed)
    return found


class Study:
    def __init__(self, root: Path) -> None:
        self.root = root
        extractors = "frechet=a cmmd=a prdc=a face_quality=b prompt=c"
        quality = rows(QUALITY_COLUMNS, reference="real", extractors=extractors)
        for row in quality:
            row["n_synthetic"] = row["n_real"] = 9
        self.table("quality", QUALITY_COLUMNS, quality)
        identity = rows(IDENTITY_COLUMNS, versus="real", recogniser="judge")
        self.table("identity", IDENTITY_COLUMNS, identity)
        self.table("pose", POSE_COLUMNS, rows(POSE_COLUMNS, extractor="<b>pose</b>"))
        self.table("recognition", RECOGNITION_COLUMNS, [])
        verdicts = dict.fromkeys(VERDICTS.values(), "pass")
        audit = rows(SUMMARY_COLUMNS, recogniser="judge", verdict="pass", **verdicts)
        audit[-1] |= {"verdict": "fail", "copies_verdict": "fail", "sentence": "fail: <copied>."}
        for row in audit[:-1]:
            row["sentence"] = "pass: nothing suspicious."
        self.table("audit", SUMMARY_COLUMNS, audit)
        difference = {"base_model": "demo", "prompts": "base", "versus": "real", "metric": "fdr"}
        difference |= {"recogniser": "judge", "method": "idbooth", "minus_method": "dreambooth"}
        difference |= {"difference": 0.2, "low": 0.1, "high": 0.3}
        self.table("comparison", COMPARISON_COLUMNS, [difference])
        for name in ("overview.png", "samples.png"):
            write_png(root / "figures" / name, np.zeros((20, 20, 3), np.uint8))
        svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
        for name in ("distributions", "measures", "pose", "attributes", "groups"):
            (root / f"figures/{name}.svg").write_text(svg)
        group = dict.fromkeys(GROUP_COLUMNS, 0.5) | {"by": "gender", "recogniser": "judge"}
        group |= {"base_model": "demo", "method": "idbooth", "prompts": "base", "note": "n"}
        ratio = {"group": WORST_TO_BEST, "fnmr": 2.0, "fnmr_low": 1.5, "fnmr_high": 3.0}
        of_groups = [group | {"group": "F", "fnmr": 0.2}, group | {"group": "M", "fnmr": 0.1}]
        empty = dict.fromkeys(GROUP_COLUMNS, float("nan")) | {"note": "beyond chance: fnmr"}
        names = {name: group[name] for name in GROUP_COLUMNS[:5]}
        self.table("groups", GROUP_COLUMNS, [*of_groups, empty | names | ratio])
        for kind in KINDS:
            for form in ("md", "tex"):
                (root / f"tables/{kind}.{form}").write_text(f"{kind} {form}")
        kept = [
            {"identity": f"ID_{i % 3}", "kept": i > 0, "reason": "" if i else "no face"}
            for i in range(7)
        ]
        self.manifests = [root / "dataset/manifest.parquet"]
        self.manifests += [root / f"aligned/demo/{m}/base/manifest.parquet" for m in METHODS]
        for manifest in self.manifests:
            write_manifest(manifest, kept)
        unseen = {"identity": "ID_3", "kept": False, "reason": "no face"}
        refused = {"identity": "ID_4", "kept": False, "reason": "no consent"}
        write_manifest(self.manifests[0], [*kept, unseen, refused])
        self.pairs = [root / f"audit/demo/{method}/base.pairs.csv" for method in METHODS]
        for path in self.pairs:
            self.audit_pairs(path)
        config = {"study": "s<1>", "step": "report", "seed": 5, "weights": {}, "variant": {}}
        (root / "report.json").write_text(json.dumps(config | {"settings": {}}))

    def audit_pairs(self, path: Path) -> None:
        """A copy that was found and a swap that was not; the copy's photograph is missing."""
        pair: dict = dict.fromkeys(PAIR_COLUMNS, 0.5) | {"identity": "ID_1", "note": "recogniser 1"}
        pair |= {"file": "ID_1/0.png", "other_set": "generated", "other_file": "ID_1/0.png"}
        write_png(
            self.root / f"aligned/demo/{path.parent.name}/base/ID_1/0.png",
            np.zeros((20, 20, 3), np.uint8),
        )
        found = [
            pair | {"check": "copies", "rank": 1, "flagged": True},
            pair | {"check": "copies", "rank": 2, "flagged": False},
            pair | {"check": "swaps", "rank": 1, "flagged": False, "other_file": "lost.png"},
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(found, columns=list(PAIR_COLUMNS)).to_csv(path, index=False)

    def table(self, kind: str, columns: tuple[str, ...], content: list[dict]) -> None:
        path = self.root / "tables" / f"{kind}.csv"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame(content, columns=list(columns)).to_csv(path, index=False)

    def run(self, *extra: str) -> str:
        out = self.root / "report.html"
        argv = ["--config", str(self.root / "report.json"), "--tables", str(self.root / "tables")]
        argv += ["--figures", str(self.root / "figures"), "--out", str(out)]
        argv += ["--audit-pairs", *map(str, self.pairs)]
        assert main([*argv, "--manifests", *map(str, self.manifests), *extra]) == 0
        return out.read_text(encoding="utf-8")

    def guide(self, recogniser: str) -> None:
        """Say which recogniser guided the training."""
        weights = {"name": recogniser, "task": "recogniser", "architecture": "iresnet"}
        weights |= {"source": "x", "licence": "MIT", "commercial_use": False}
        path = self.root / "report.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"weights": {"recogniser": weights}}))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


class Resources(HTMLParser):
    """Collects what a browser would load, link targets, anchors, and unclosed tags."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loaded += [str(found[key]) for key in ("src", "srcset", "data") if key in found]
        assert tag not in ("script", "link", "iframe", "object")
        if tag == "a":
            self.links.append(str(found["href"]))
        if "id" in found:
            assert found["id"] not in self.anchors
            self.anchors.add(str(found["id"]))
        if tag == "img":
            assert found["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(study: Study) -> None:
    page = study.run()
    found = Resources()
    found.feed(page)
    assert found.open == []
    # Seven figures; per audited variant a copy with both images and a swap whose second is lost.
    assert len(found.loaded) == 7 + len(METHODS) * (2 + 1)
    assert all(source.startswith("data:image/") for source in found.loaded)
    inside = [link for link in found.links if link.startswith("#")]
    elsewhere = {link for link in found.links if not link.startswith(("#", "data:"))}
    assert elsewhere == {"explorer/index.html"}
    assert {link.removeprefix("#") for link in inside} <= found.anchors
    assert len(inside) > 8
    assert "url(" not in page
    assert "@import" not in page


def test_findings_tables_and_counts_are_on_the_page(study: Study) -> None:
    text = re.sub(r"<[^>]+>", " ", study.run())
    text = re.sub(r"\s+", " ", text)
    assert "DreamBooth &lt; PortraitBooth &lt; ID-Booth, holds in 1 of 1 comparisons" in text
    assert "better than DreamBooth beyond chance in 1 of 1" in text
    assert "0.20 [0.10, 0.30]" in text
    assert (
        "By gender, judge: the worst group is told apart from the best by some measure in 1 of 1"
        in text
    )
    assert "false non-match rate of F over M, Demo, Base, ID-Booth: 2.00 [1.50, 3.00]" in text
    assert "Demo, Base, ID-Booth 7 6 1 no face (1)" in text
    assert "fail Demo, Base, ID-Booth. &lt;copied&gt;." in text
    assert (
        "People 3 of 4 Photographs 6 Variants 4 Generated images 28 of which with a face 85.7%"
        in text
    )
    assert "seed 5" in text


def test_names_cannot_break_the_page(study: Study) -> None:
    page = study.run()
    assert "s&lt;1&gt;" in page
    assert "<b>pose</b>" not in page


def test_provenance_is_an_excerpt_and_optional(study: Study) -> None:
    assert 'id="provenance"' not in study.run()
    provenance = {
        "code": {"revision": "abc123", "changed_files": ["x.py"]},
        "versions": {"python": "3.11.9", "torch": "2.9", "leftpad": "1"},
        "hardware": {"processor": "CPU X", "cores": 2, "system": "Linux"},
        "machines": [{"processor": "CPU X", "gpu": None, "jobs": {"finetune": 2}}],
        "sources": {"data/set.zip": {"sha256": "beef"}},
        "steps": {"finetune": {"jobs": 2, "wall_seconds": 61.4, "memory_mib": 900.0}},
        "weights": {"demo": {"source": "res", "licence": "Apache-2.0", "commercial_use": True}},
    }
    file = study.root / "provenance.json"
    file.write_text(json.dumps(provenance))
    page = study.run("--provenance", str(file))
    for text in ("abc123, 1 files changed since", "CPU X, 2 cores", "beef", "Apache-2.0", ">61<"):
        assert text in page
    assert "leftpad" not in page
    file.write_text(json.dumps(provenance | {"code": None}))
    assert "not under version control" in study.run("--provenance", str(file))


def test_the_page_says_which_libraries_had_two_versions(study: Study) -> None:
    assert "more than one version" not in study.run()
    table = study.root / "tables" / "pose.csv"
    record: dict = {"study": "s<1>", "seed": 5, "inputs": {}}
    record["outputs"] = {table.name: sha256_file(table)}
    record["versions"] = ["sample: torch 2.7", "features: torch 2.8"]
    (table.parent / "all.record.json").write_text(json.dumps(record))
    assert "more than one version of a computing library: torch 2.7 (sample;" in study.run()


def test_the_same_study_gives_the_same_bytes(study: Study) -> None:
    assert study.run() == study.run()


def test_table_files_can_be_saved_from_the_page(study: Study) -> None:
    links = dict(re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]*)"', study.run()))
    kinds = ("quality", "identity", "pose", "groups", "audit")  # recognition has no rows
    names = {f"{kind}.{form}" for kind in kinds for form in ("csv", "md", "tex")}
    assert set(links) == names | {"comparison.csv"}
    for name, content in links.items():
        assert base64.b64decode(content) == (study.root / "tables" / name).read_bytes()


def test_the_page_says_which_judge_guided_the_training(study: Study) -> None:
    assert "identity losses" not in study.run()
    study.guide("judge")
    assert "The only judge is judge, the guide of training or sampling" in study.run()
    identity = pd.read_csv(study.root / "tables/identity.csv")
    # A second judge that finds the methods' order reversed.
    flipped = identity.assign(recogniser="other", fdr=-identity["fdr"])
    pd.concat([identity, flipped]).to_csv(study.root / "tables/identity.csv", index=False)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", study.run()))
    assert "The guide of training or sampling was judge" in text
    assert "other took no part" in text
    assert "agree on the method of the highest Fisher ratio in 0 of 1 comparisons" in text
    assert "Judged by judge (the guide): The paper’s order" in text
    assert "ID-Booth, holds in 1 of 1 comparisons. " in text
    assert "Judged by other (independent): The paper’s order" in text


def test_a_method_without_numbers_is_in_no_sentence_and_stops_none(study: Study) -> None:
    for kind, numbers in (("identity", ("eer", "fdr")), ("quality", ("fid",))):
        path = study.root / f"tables/{kind}.csv"
        frame = pd.read_csv(path)
        lost = frame["method"] == "idbooth"
        frame.loc[lost, [*numbers]] = float("nan")
        frame["reasons"] = np.where(lost, "no face", "")
        frame.to_csv(path, index=False)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", study.run()))
    assert "DreamBooth &lt; PortraitBooth, holds in 1 of 1" in text
    assert "lowest equal error rate against the real images 0.200" in text
    assert "Empty: Demo, Base, ID-Booth: no face." in text
    assert "nan" not in text.replace("Provenance", "").lower().split()


def test_an_audited_variant_without_its_pairs_is_named(study: Study) -> None:
    study.pairs.pop()
    with pytest.raises(StepError, match="row of demo/idbooth/base, but its pairs"):
        study.run()


def test_missing_parts_are_named(study: Study) -> None:
    (study.root / "figures/overview.png").unlink()
    with pytest.raises(StepError, match=r"overview.png is missing: run the figures step"):
        study.run()
    (study.root / "tables/pose.csv").unlink()
    with pytest.raises(StepError, match=r"pose.csv is missing"):
        study.run()


def test_editing_a_template_or_the_stylesheet_runs_the_report_again() -> None:
    behind = {Path(path).name for path in texts_behind(["report:run"])}
    assert {"page.report.html.j2", "page.css", "page.macros.html.j2"} <= behind
