"""Write the files that follow from the settings models: schema, commented default, pinned hashes.

In:  the models of this package, ``config/demo.yaml`` (its values) and ``config/models.yaml``.
Out: ``workflow/schemas/config.schema.json``; ``config/demo.yaml`` with every setting and fresh
     comments, the values kept; ``config/models.yaml`` with the hashes of the embedded weights.

With --check nothing is written; the exit status is 1 where a file differs from what it should be.
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from pipeline_steps.io.atomic import json_text, write_text
from pipeline_steps.io.weights import PROJECT_ROOT, content_hashes
from pipeline_steps.study.command import ExitStatus, command, run_main
from pipeline_steps.study.registry import read_models
from pipeline_steps.study.settings.base import Section, choices
from pipeline_steps.study.settings.study import Study, read_study

WIDTH = 100
HEADER = """\
# The study of the embedded world: small enough for two CPU cores, and every setting there is.
#
# Comments are written by `python -m pipeline_steps.study.generate`, values are yours. Another
# study's file states only what differs from the defaults given in brackets; they are the paper's.
"""
EMBEDDED = "resources/demo_world/"
HIDDEN = {  # filled in when a study is frozen
    *("sample.prompt_set", "sample.gate.align", "sample.gate.code"),
    *("check_dataset.expected", "sample_together.sample"),
}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}


def generated() -> dict[Path, str]:
    """Path of every generated file to the text it should have."""
    demo = PROJECT_ROOT / "config" / "demo.yaml"
    models = PROJECT_ROOT / "config" / "models.yaml"
    study = read_study(yaml.safe_load(demo.read_text(encoding="utf-8")), str(demo))
    return {
        PROJECT_ROOT / "workflow" / "schemas" / "config.schema.json": schema(),
        demo: commented(study),
        models: pinned(models),
    }


def schema() -> str:
    """JSON schema of a configuration file."""
    return json_text(Study.model_json_schema())


def commented(study: Study) -> str:
    """Every setting of a study as YAML, each with what it means, its range and its default."""
    return HEADER + "\n".join(_lines(study, "", 0)) + "\n"


def pinned(path: Path) -> str:
    """The registry's text with the present hashes of all entries whose weights lie in the project.

    Weights that someone fetched are not pinned by this: their hashes are to come from elsewhere.
    """
    text = path.read_text(encoding="utf-8")
    for name, entry in read_models(path).items():
        if (
            entry.source.startswith("resources/demo_world/")
            and Path(PROJECT_ROOT, entry.source).exists()
        ):
            text = pin(text, name, content_hashes(entry))
    return text


def pin(text: str, name: str, hashes: Mapping[str, str]) -> str:
    """The registry's text with one entry's ``sha256`` replaced."""
    block = re.search(rf"^{re.escape(name)}:.*\n(?:[ ]+.*\n)*", text, re.MULTILINE)
    if block is None:
        raise ValueError(f"no entry {name!r}")
    entry = re.sub(r"^  sha256:.*\n(?:    .*\n)*", "", block[0], flags=re.MULTILINE)
    lines = "".join(f"    {file}: {digest}\n" for file, digest in sorted(hashes.items()))
    return text[: block.start()] + entry + f"  sha256:\n{lines}" + text[block.end() :]


def _lines(section: Section, prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    shown = [name for name in type(section).model_fields if f"{prefix}{name}" not in HIDDEN]
    for name in shown:
        value = getattr(section, name)
        if depth == 0:
            yield ""
        elif isinstance(value, Section) and name != shown[0]:
            yield f"{indent}#"
        if isinstance(value, Section):
            yield from _comment(_summary(type(value)), indent)
            yield f"{indent}{name}:" if type(value).model_fields else f"{indent}{name}: {{}}"
            yield from _lines(value, f"{prefix}{name}.", depth + 1)
        else:
            yield from _comment(_meaning(type(section).model_fields[name]), indent)
            plain = section.model_dump(mode="json", include={name})[name]
            yield from _assignment(name, plain, indent)


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(model: type[Section]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _meaning(field: FieldInfo) -> str:
    limits = [
        f"{sign} {_limit(value)}"
        for item in field.metadata
        for bound, sign in BOUNDS.items()
        if (value := getattr(item, bound, None)) is not None
    ]
    remarks = [", ".join(limits)] if limits else []
    words = choices(field.annotation)
    if words:
        remarks.append("one of " + ", ".join(map(str, words)))
    if not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
        remarks.append(f"default {_flow(_plain(default))}")
    return (
        f"{field.description or ''} [{'; '.join(remarks)}]" if remarks else field.description or ""
    )


def _limit(value: float) -> str:
    if isinstance(value, int) and value > 2**31 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}"


def _assignment(name: str, value: Any, indent: str) -> list[str]:
    line = f"{indent}{name}: {_flow(value)}"
    if len(line) <= WIDTH or not isinstance(value, (list, dict)) or not value:
        return [line]
    if isinstance(value, list):
        return [f"{indent}{name}:", *(f"{indent}  - {_flow(item)}" for item in value)]
    return [f"{indent}{name}:", *(f"{indent}  {key}: {_flow(v)}" for key, v in value.items())]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def run(*, check: bool = False) -> ExitStatus:
    """Write the files, or compare them.

    Args:
        check: Write nothing, show differences.
    """
    differs = False
    for path, text in generated().items():
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found == text:
            continue
        if check:
            difference = difflib.unified_diff(
                found.splitlines(), text.splitlines(), str(path), "generated", lineterm=""
            )
            print("\n".join(difference))
            differs = True
        else:
            write_text(path, text)
            print(f"written: {path}", file=sys.stderr)
    return ExitStatus(differs)


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
