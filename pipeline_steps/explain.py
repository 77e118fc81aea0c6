"""Tell where a result comes from, or what runs again after which change.

In:  a file of a study's results: a table (with --row one of its rows), score, figure, feature file,
     generated or aligned image, recogniser, or fine-tuned weights; and the records, manifests and
     headers that the steps wrote.
Out: a tree on standard output, as text or JSON (--json). Every link is checked against the files as
     they are now; the exit status is 1 where one does not hold.

With --matrix: everything that a user can change in a study (--study) against the rules of the jobs
that run again. Settings are tried one by one, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipeline_steps.evidence.ancestry import Ancestry, Node
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.command import ExitStatus, command, run_main
from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.reruns import as_text as as_matrix
from pipeline_steps.study.reruns import matrix as rows_of
from pipeline_steps.study.settings.study import read_configs

SHOWN = 3  # of many like parts, where not all are asked for


def run(path: Path, *, row: int | None = None) -> Node:
    """The tree of a file.

    Args:
        path: the file.
        row: of a table, counted from 0.

    Raises:
        StepError: it is no file of a study's results, or there is no such row.
    """
    results = results_of(path)
    node = Ancestry(results, results.parent.parent).of(path, row)
    place = results / "provenance.json"
    if place.is_file():
        told = loads(place.read_text(encoding="utf-8"))
        node.facts["code"] = told["code"]
        frozen = told["config"].items()
        used = [name for name, of in frozen if of["sha256"] == node.facts.get("config_sha256")]
        node.facts |= {"config": used[0]} if used else {}
    return node


def results_of(path: Path) -> Path:
    """The results folder that a file lies in: the one with the frozen configurations.

    Raises:
        StepError: there is none.
    """
    for folder in path.parents:
        if (folder / "config").is_dir() and folder.parent.name == "results":
            return folder
    raise StepError(f"{path} lies in no study's results: expected results/<study>/…")


def as_text(node: Node, *, full: bool = False, depth: int = 0) -> Iterator[str]:
    """Lines of a tree; of many like parts only the first, unless ``full``."""
    indent = "  " * depth
    yield f"{indent}{node.what}"
    for key, value in node.facts.items():
        yield f"{indent}    {key}: {_plain(value)}"
    for doubt in node.doubts:
        yield f"{indent}    DOES NOT HOLD: {doubt}"
    shown = node.parts if full or len(node.parts) <= 2 * SHOWN else _chosen(node.parts)
    for part in shown:
        yield from as_text(part, full=full, depth=depth + 1)
    if len(shown) < len(node.parts):
        yield f"{indent}  … and {len(node.parts) - len(shown)} more (--full)"


def _chosen(parts: Sequence[Node]) -> list[Node]:
    """The first few parts, and the last ones that have parts of their own, such as weights."""
    first = list(parts[:SHOWN])
    return first + [part for part in parts[-1:] if part.what.endswith(".safetensors")]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def tell(
    file: Annotated[Path | None, tyro.conf.Positional] = None,
    *,
    row: int | None = None,
    full: bool = False,
    json: bool = False,
    matrix: bool = False,
    study: Sequence[Path] = (Path("config/demo.yaml"),),
) -> ExitStatus:
    """Print the tree of a file, or the matrix of a study.

    Args:
        file: A file below results/<study>.
        row: Row of a table, counted from 0.
        full: Show every image.
        json: Print the whole tree as JSON.
        matrix: What runs again after which change, instead of a file's tree.
        study: Study configuration of the matrix (YAML); of several the later ones win, key by key.

    Returns:
        1 where a link does not hold, else 0.

    Raises:
        StepError: neither a file nor a matrix is asked for, or see :func:`run`.
    """
    if matrix:
        config = read_configs(study)
        print(as_matrix(rows_of(make_plan(config, ", ".join(map(str, study))), config)))
        return ExitStatus(0)
    if file is None:
        raise StepError("name a file below results/<study>, or pass --matrix")
    node = run(file, row=row)
    doubts = node.all_doubts()
    if json:
        print(dumps(node.as_json(), indent=1, default=str))
    else:
        print("\n".join(as_text(node, full=full)))
        print(f"\n{len(doubts)} links do not hold." if doubts else "\nEvery link holds.")
        for doubt in doubts:
            print(f"  {doubt}")
    return ExitStatus(bool(doubts))


main = command(tell)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
