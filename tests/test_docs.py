"""What the documentation says has to hold: commands, links, columns, keys."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline_steps import check_study
from pipeline_steps.diffusion.base_models import ARCHITECTURES
from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.evidence.audit.checks import SUMMARY_COLUMNS
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.evidence.scores.identity import COMPARISON_COLUMNS, IDENTITY_COLUMNS
from pipeline_steps.evidence.scores.quality import POSE_COLUMNS, QUALITY_COLUMNS
from pipeline_steps.evidence.tables.kinds import RECOGNITION_COLUMNS
from pipeline_steps.identities.participants import read_participants
from pipeline_steps.preflight.costs import costs_of
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.sampling import read_prompt_set
from pipeline_steps.study.settings.study import read_configs

ROOT = Path(__file__).parents[1]
CARD = ROOT / "resources" / "demo_world" / "README.md"
PAGES = [ROOT / "README.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]
COLUMNS = {
    "quality": QUALITY_COLUMNS,
    "identity": IDENTITY_COLUMNS,
    "pose": POSE_COLUMNS,
    "recognition": RECOGNITION_COLUMNS,
    "comparison": COMPARISON_COLUMNS,
    "groups": GROUP_COLUMNS,
    "audit": SUMMARY_COLUMNS,
}
# Files that a guide tells its reader to write.
WRITTEN = {
    "config/mine.yaml",
    "config/sd15.yaml",
    "config/squared.yaml",
    "pipeline_steps/colours.py",
    "pipeline_steps/diffusion/base_models/stable_diffusion_skip.py",
    "pipeline_steps/diffusion/methods/squaredbooth.py",
    "pipeline_steps/metrics/mean_shift.py",
    "tests/diffusion/test_squaredbooth.py",
    "tests/diffusion/test_stable_diffusion_skip.py",
    "tests/faces/test_mean_colour.py",
    "tests/metrics/test_mean_shift.py",
}


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
                file = f"{module.replace('.', '/')}.py"
                assert file in WRITTEN or (ROOT / file).is_file(), f"{name}: {module}"


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
            shown = ", ".join(value) if isinstance(value, list) else shown
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
    places = {"none", *(f"resources/weights/{name}" for name in models)}  # another entry's, too
    without = {name for name, entry in models.items() if entry.source in places}
    assert {name for name in models if not name.startswith("demo")} - without == rows.keys()
    for name, row in rows.items():
        entry = models[name]
        assert re.sub("^(hub|pypi):", "", entry.source).split()[0].rpartition("/")[2] in row, name
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
