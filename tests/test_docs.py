"""What the documentation says has to hold: commands, links, columns, keys, and filled-in tables."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from pipeline_steps import check_study
from pipeline_steps.diffusion.base_models import ARCHITECTURES
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.evidence.comparison import COMPARISON_COLUMNS
from pipeline_steps.evidence.scoring import IDENTITY_COLUMNS, POSE_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.faces.participants import read_participants
from pipeline_steps.files.errors import StepError
from pipeline_steps.preflight.costs import costs_of
from pipeline_steps.settings.plan import make_plan
from pipeline_steps.settings.registry import read_models
from pipeline_steps.settings.sample import read_prompt_set
from pipeline_steps.settings.study import read_configs
from pipeline_steps.tables import RECOGNITION_COLUMNS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import fill_card  # noqa: E402
import fill_tables  # noqa: E402
import table_text  # noqa: E402

CARD = ROOT / "resources" / "demo_world" / "README.md"
PAGES = [ROOT / "README.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]
COLUMNS = {
    "quality": QUALITY_COLUMNS,
    "identity": IDENTITY_COLUMNS,
    "pose": POSE_COLUMNS,
    "recognition": RECOGNITION_COLUMNS,
    "comparison": COMPARISON_COLUMNS,
}
# Files that a guide tells its reader to write.
WRITTEN = {
    "config/mine.yaml",
    "config/sd15.yaml",
    "config/squared.yaml",
    "pipeline_steps/diffusion/base_models/stable_diffusion_skip.py",
    "pipeline_steps/diffusion/methods/squaredbooth.py",
    "tests/diffusion/test_squaredbooth.py",
    "tests/diffusion/test_stable_diffusion_skip.py",
}
NAMES = ("measured", "summary", "quality", "identity", "comparison", "recognition", "timing")


def pages() -> dict[str, str]:
    return {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}


def shell_lines(text: str) -> list[str]:
    """Commands of all fenced sh blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = "".join(re.sub(r"^\s+", "", blocks_part, flags=re.M) for blocks_part in blocks)
    lines = joined.replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def headings(text: str) -> set[str]:
    """Anchors that GitHub makes of headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target = "".join(target)
        if re.match(r"[a-z]+:", target):  # elsewhere on the web
            continue
        file, _, anchor = target.partition("#")
        path = Path(os.path.normpath(page.parent / file)) if file else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in headings(path.read_text("utf-8")), f"{page.name} links to {target}"


def test_make_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = "\n".join(pages().values())
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_commands_name_programs_and_files_that_exist() -> None:
    made = (
        "results/",
        "data/",
        "resources/weights",
        "profiles/mine",
        "config/mine",
        "config/<",
        "benchmarks/res",
    )
    for name, text in pages().items():
        for line in shell_lines(text):
            for word in line.split():
                if word.startswith(made) or word in WRITTEN or "=" in word or "://" in word:
                    continue
                if re.match(r"(config|docs|profiles|envs|benchmarks)/", word):
                    assert (ROOT / word).exists(), f"{name}: {line}"
        for module in re.findall(r"python -m (pipeline_steps[\w.]*\w)", text):
            if module != "pipeline_steps":
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{name}: {module}"


def test_snakemake_commands_put_no_target_behind_a_list_of_files() -> None:
    # --configfile and --resources take every word that follows.
    for text in pages().values():
        for line in shell_lines(text):
            found = re.search(r"--resources (.*?)(?: -|$)", line)
            assert found is None or len(found[1].split()) == 1, line
            found = re.search(r"--configfile (.*?)(?: -|$)", line)
            assert found is None or all(w.endswith(".yaml") for w in found[1].split()), line


def test_paths_in_backticks_exist() -> None:
    for name, text in pages().items():
        for path in re.findall(r"`((?:pipeline_steps|tests|workflow|config|envs)/[\w/.-]+)`", text):
            assert path in WRITTEN or (ROOT / path).exists(), f"{name}: {path}"


def test_metrics_page_explains_every_column_and_no_other_table() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    shared = set(re.findall(r"`([\w-]+)`", parts[0]))
    sections = {part.partition(".csv")[0]: part for part in parts if ".csv" in part[:20]}
    assert sections.keys() == COLUMNS.keys()
    for table, columns in COLUMNS.items():
        explained = {
            name
            for row in re.findall(r"^\|(.*?)\|", sections[table], re.MULTILINE)
            for name in re.findall(r"`(\w+)`", row)
        }
        assert set(columns) - shared <= explained, table
        assert explained <= set(columns), table


def test_cluster_page_explains_every_key_of_the_slurm_profile() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text("utf-8"))
    for key, value in [*profile.items(), *profile["default-resources"].items()]:
        assert f"`{key}`" in text
        if not isinstance(value, dict):
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            row = re.search(rf"^\|[^|]*`{key}` \| `?([^|`]*?)`? \|", text, re.MULTILINE)
            assert row is not None, key
            assert row[1] == shown, key


def test_cluster_page_states_the_resources_of_the_rules() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    stated = {
        rule: (int(memory), int(minutes))
        for rules, memory, minutes in re.findall(r"^\| (`.+`) \| (\d+) \| (\d+) \|", text, re.M)
        for rule in re.findall(r"`(\w+)`", rules)
    }
    found = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"^rule ", file.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            numbers = [re.search(rf"{key}=(\d+)", block) for key in ("mem_mb", "runtime")]
            if all(numbers):
                found[block.partition(":")[0]] = tuple(int(n[1]) for n in numbers if n)
    assert {rule: found[rule] for rule in stated} == stated
    others = [numbers for rule, numbers in found.items() if rule not in stated]
    assert max(memory for memory, _ in others) <= 4000
    assert max(minutes for _, minutes in others) <= 60


def test_weights_page_lists_every_entry_that_is_fetched_as_the_registry_has_it() -> None:
    models = read_models(ROOT / "config" / "models.yaml")
    text = (ROOT / "docs" / "weights.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE))
    without = {name for name, entry in models.items() if entry.source == "none"}
    assert {name for name in models if not name.startswith("demo")} - without == rows.keys()
    for name, row in rows.items():
        entry = models[name]
        assert entry.source.removeprefix("hub:").rpartition("/")[2] in row, name
        _, _, size, licence, commercial = (cell.strip() for cell in row.split("|"))
        assert entry.size is not None
        assert size == f"{entry.size / 1e9:.1f} GB", name
        assert licence == entry.licence, name
        assert commercial == ("yes" if entry.commercial_use else "no"), name


def blocks(page: str, language: str = "") -> list[str]:
    """Fenced blocks of a page in one language."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [content for of, content in found if of == language]


def test_configurations_of_the_real_study_are_valid_over_its_preset(tmp_path: Path) -> None:
    own, prompts, trial, *_ = blocks("real-data.md", "yaml")
    preset = ROOT / "config" / "paper_sd21.yaml"
    for number, text in enumerate((own, trial)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        plan = make_plan(read_configs([preset, file]), "")
    assert plan.study.name == "trial"
    (tmp_path / "hats.yaml").write_text(prompts)
    assert read_prompt_set(tmp_path / "hats.yaml").slots.keys() == {"hat", "light"}
    (table,) = [text for text in blocks("real-data.md") if text.startswith("participant")]
    (tmp_path / "people.csv").write_text(table)
    people = read_participants(tmp_path / "people.csv")
    assert [(name, who.gender, who.consent) for name, who in people.items()] == [
        ("ID_1", "F", True),
        ("ID_2", "M", False),
    ]


def test_costs_of_the_real_studies_are_those_of_the_check(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "real-data.md").read_text("utf-8")
    rows = re.findall(r"^\| `(config/\w+\.yaml)`.*? \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for path, hours, disk in rows:
        costs = costs_of(make_plan(read_configs([ROOT / path]), path), tmp_path)
        total = check_study.table(costs)[-1]
        assert re.search(rf"  {hours}  +{disk}$", total), f"{path}: {total}"


def test_methods_and_architectures_are_documented() -> None:
    objectives = (ROOT / "docs" / "objectives.md").read_text("utf-8")
    base_models = (ROOT / "docs" / "adding-a-base-model.md").read_text("utf-8")
    for name, method in METHODS.items():
        row = re.search(rf"^\| `{name}` \|.*$", objectives, re.MULTILINE)
        assert row is not None, name
        if name == "portraitbooth":
            assert set(re.findall(r"`(\w+)`", row[0])) - {name} == set(method.uses)
    for architecture in ARCHITECTURES:
        assert f"`{architecture}`" in base_models


def test_citation_file_has_the_required_fields_and_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project


# Tables -------------------------------------------------------------------------------------------


def toy_study(root: Path) -> Path:
    """Tables and provenance of two methods, one prompt set and one judge."""
    extractors = "frechet=demo_attributes cmmd=x prdc=x face_quality=demo_quality"
    quality, identity = [], []
    for method, number in (("idbooth", 0.25), ("untuned", 0.5), ("dreambooth", 0.75)):
        key = {"base_model": "demo", "method": method, "prompts": "base"}
        for reference in ("real", "wild"):
            values = dict.fromkeys(QUALITY_COLUMNS[6:-1], number + 1)
            quality.append(key | {"reference": reference, "extractors": extractors} | values)
        for versus in ("real", "synthetic"):
            values = dict.fromkeys(IDENTITY_COLUMNS[7:], number)
            identity.append(key | {"versus": versus, "recogniser": "judge"} | values)
    comparison = {
        "base_model": "demo",
        "prompts": "base",
        "versus": "real",
        "recogniser": "judge",
        "method": "idbooth",
        "minus_method": "dreambooth",
        "metric": "fdr",
        "difference": -0.5,
        "low": -0.75,
        "high": -0.25,
    }
    recognition = [
        {
            "trained_on": "real",
            "base_model": "real",
            "method": "-",
            "prompts": "-",
            "seed": seed,
            "benchmark": benchmark,
            "role": role,
            "accuracy": accuracy,
            "accuracy_sd": 0.01,
            "n_pairs": 200,
            "low": 0.5,
            "high": 0.9,
        }
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
    for name, table in rows.items():
        frame = pd.DataFrame(table, columns=list(COLUMNS[name]))
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


def test_tables_hold_the_numbers_of_the_csv_files(tmp_path: Path) -> None:
    tables = fill_tables.study_tables(toy_study(tmp_path), date="2026-01-02", hardware="2 cores")
    assert tables.keys() == set(NAMES)
    assert tables["measured"] == "Measured on 2026-01-02, 2 cores, code revision `0123456789ab`."
    rows = tables["identity"].splitlines()
    assert [row.split(" | ")[3] for row in rows[2:]] == ["untuned", "DreamBooth", "ID-Booth"]
    assert "0.250 [0.250, 0.250]" in rows[-1]
    assert "1.75 [1.75, 1.75]" in tables["quality"]
    assert "FD (Fréchet distance) demo attributes, MMD x" in tables["quality"]
    # Validation stays out of the average: (0.65 + 0.75) / 2.
    assert "| photographs | – | – | 0.700 [" in tables["recognition"]
    assert "Plain (validation)" in tables["recognition"]
    assert "2 seeds per training set" in tables["recognition"]
    steps = [row.split(" | ")[0] for row in tables["timing"].splitlines()[2:]]
    assert steps == ["| `finetune`", "| `report`", "| all"]
    assert tables["timing"].endswith("| all | 7 | 25 | 41 | 900 |")


def test_a_difference_beyond_chance_is_bold_and_other_metrics_are_left_out(tmp_path: Path) -> None:
    table = fill_tables.study_tables(toy_study(tmp_path), date="d", hardware="h")["comparison"]
    minus = table_text.MINUS
    assert f"**{minus}0.50 [{minus}0.75, {minus}0.25]**" in table
    assert "9.0" not in table


def test_every_row_of_a_table_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    tables = fill_tables.study_tables(toy_study(tmp_path), date="d", hardware="h")
    for name, text in tables.items():
        counts = {line.count("|") for line in text.splitlines() if line.startswith("|")}
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
    quality, identity, recognition = (
        pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
        for name in ("quality", "identity", "recognition")
    )
    others = identity.assign(prompts="complex", recogniser="independent", eer=0.125, eer_low=0.1)
    text = table_text.summary(quality, pd.concat([identity, others]), recognition)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[2:-2]]
    assert [row[1] for row in rows] == ["untuned", "DreamBooth", "ID-Booth"]
    assert all(row[3].startswith("0.125 [0.100, ") for row in rows)
    assert all(row[2] == "" for row in rows)  # no quality of these prompts
    assert text.endswith("Prompts: Complex. Judge of EER and FDR: independent.")


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
