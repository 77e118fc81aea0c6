"""YAML files that people write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from pipeline_steps.runtime.errors import StepError


def read_mapping(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Args:
        path: The file.
        what: Its role, for messages, e.g. "configuration".

    Raises:
        StepError: the file is missing, no UTF-8 text, no YAML, holds no keys, or one twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_repeated_keys(node)
        content = None if node is None else loader.construct_document(node)
    except FileNotFoundError as error:
        raise StepError(f"{what} {path} is missing: write it, or name another") from error
    except IsADirectoryError as error:
        raise StepError(f"{what} {path} is a folder: name a file in it") from error
    except UnicodeDecodeError as error:
        raise StepError(f"{what} {path} is no UTF-8 text: save it with that encoding") from error
    except OSError as error:
        raise StepError(f"{what} {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise StepError(f"{what} {path} is not YAML{_problem(error)}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise StepError(f"{what} {path}: expected keys with values, found {found}")
    return content


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    """YAML forbids a key that stands twice in one mapping; PyYAML lets the last one win.

    Raises:
        yaml.MarkedYAMLError: naming key and line.
    """
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated_keys(child)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} stands there twice; remove one of the two"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
            _refuse_repeated_keys(value)


def _problem(error: yaml.YAMLError) -> str:
    """Line and reason, and what to do about the most frequent one."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if "'\\t'" in problem:
        problem = "a tab stands there; indent with spaces"
    return f": {problem}" if mark is None else f", line {mark.line + 1}: {problem}"
