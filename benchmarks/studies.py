"""A study's steps, called from a benchmark: its configurations in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline_steps.study.plan import make_plan
from pipeline_steps.study.settings.base import Frozen, Section, load_frozen

S = TypeVar("S", bound=Section)


class StudyFolder:
    """The frozen configurations of a study, written below `folder`.

    Attributes:
        folder: In the place of `results/<name>`.
        plan: Of the study.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.plan = make_plan(dict(config), str(config["name"]))
        for path, text in self.plan.frozen.items():
            place = folder / path.removeprefix(f"{self.plan.results}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")

    def frozen(self, name: str, settings: type[S]) -> Frozen[S]:
        """A step's configuration, e.g. `sample/demo/id3/base`."""
        return load_frozen(self.folder / "config" / f"{name}.json", settings)
