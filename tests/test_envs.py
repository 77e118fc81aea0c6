"""One lock for every way to install: make, conda and the container hold the same packages."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVS = ROOT / "envs"


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


LOCK = lines_of((ROOT / "requirements.lock").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, str]:
    """Name to version of what the lock holds for this Python."""
    requirements = [Requirement(line) for line in LOCK]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def test_the_lock_names_exact_versions_and_no_address() -> None:
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9._-]+==[^;@/ ]+( ; [a-z_]+ [<>=]+ '[0-9.]+')?", line), line


def test_every_dependency_of_the_project_is_locked_within_its_bounds() -> None:
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    versions = locked()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in versions
        assert requirement.specifier.contains(versions[name]), requirement


def test_this_environment_is_the_locked_one() -> None:
    wrong = {name: v for name, v in locked().items() if version(name) != v}
    assert not wrong


def test_conda_installs_the_lock_on_a_python_that_the_project_supports() -> None:
    script = (ENVS / "environment.post-deploy.sh").read_text()
    assert lines_of(script.split("<<'LOCK'\n")[1].split("LOCK\n")[0]) == LOCK
    environment = yaml.safe_load((ENVS / "environment.yaml").read_text())
    (python,) = [d for d in environment["dependencies"] if d.startswith("python ")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python ="))
    assert "nodefaults" in environment["channels"]


def test_the_container_installs_the_lock_on_a_python_that_the_project_supports() -> None:
    recipe = (ENVS / "apptainer.def").read_text()
    (python,) = re.findall(r"^From: python:([\d.]+)-", recipe, re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    (place,) = re.findall(r"^ *requirements\.lock (\S+)$", recipe, re.MULTILINE)
    assert re.search(rf"pip install .*--no-deps --requirement {place}$", recipe, re.MULTILINE)
