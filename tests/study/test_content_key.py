"""Keys follow what the code does, not how it is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline_steps.study.key import code_hash, content_key, source_hash

SOURCE = '''
def double(x):
    """Twice x."""
    return 2 * x
'''


def test_comments_docstrings_and_layout_do_not_count() -> None:
    same = "def double(x):\n    # other words\n    return (2 *\n        x)\n"
    assert source_hash(same) == source_hash(SOURCE)
    assert source_hash(SOURCE.replace("2 *", "3 *")) != source_hash(SOURCE)


def test_keys_name_their_parts() -> None:
    assert content_key(rank=8, alpha=16) != content_key(rank=16, alpha=8)
    assert content_key(rank=8, alpha=16) == content_key(alpha=16, rank=8)


def test_a_steps_code_is_the_same_twice_and_differs_between_steps() -> None:
    assert code_hash("sample") == code_hash("sample")
    assert code_hash("sample") != code_hash("finetune")


KEYS = """
import json
from pipeline_steps.study.key import code_hash
from pipeline_steps.diffusion.methods import METHODS, module_of
print(json.dumps({name: code_hash("finetune", module_of(name)) for name in METHODS}))
"""


def code_hashes(root: Path) -> dict[str, str]:
    """Method to the hash of its code, as a project of that folder sees it."""
    run = subprocess.run(
        [sys.executable, "-c", KEYS], cwd=root, capture_output=True, text=True, check=True
    )
    hashes: dict[str, str] = json.loads(run.stdout)
    return hashes


def test_a_new_method_or_a_change_of_one_concerns_no_other(tmp_path: Path) -> None:
    package = tmp_path / "pipeline_steps"
    shutil.copytree(Path(__file__).parents[2] / package.name, package)
    before = code_hashes(tmp_path)
    methods = package / "diffusion" / "methods"
    text = (methods / "portraitbooth.py").read_text()
    (methods / "squaredbooth.py").write_text(text.replace("positive)\n", "positive).square()\n"))
    (methods / "idbooth.py").write_text(
        (methods / "idbooth.py").read_text() + "\nMARGIN = 2\n# and a comment\n"
    )
    for module in ("checkpoints", "cohort_plan", "memory", "loss_report"):
        with (package / "diffusion" / f"{module}.py").open("a") as file:
            file.write("\nUNUSED = 1\n")
    after = code_hashes(tmp_path)
    assert set(after) - set(before) == {"squaredbooth"}
    assert len(set(after.values())) == len(after)
    assert {name for name in before if after[name] != before[name]} == {"idbooth"}

    with (package / "diffusion" / "objectives.py").open("a") as file:
        file.write("\nSHARED = 1\n")
    assert all(code_hashes(tmp_path)[name] != after[name] for name in after)
