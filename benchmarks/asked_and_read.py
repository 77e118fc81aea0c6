"""Do made-up people look as old, and look where they were asked to? By the embedded world's reader.

    python benchmarks/asked_and_read.py --study results/demo_made_up

The attribute network reads age, pitch, yaw and roll from each generated image; the manifest says
what was asked. Prints correlation and slope of read on asked, with 95 % intervals over people, and
the same for unseen renders, whose truth is known: no image can be read better than those.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from measured import REPLICATES, Row, add, table
from numpy.typing import NDArray

from pipeline_steps.demo_world.pretraining.attributes import NUMBERS
from pipeline_steps.demo_world.pretraining.images import Photographs, photograph_people
from pipeline_steps.demo_world.rendering.population import HELD_OUT
from pipeline_steps.diffusion.id3 import ATTRIBUTES
from pipeline_steps.faces.extractors import AttributeNet
from pipeline_steps.faces.recogniser import load_network, to_input
from pipeline_steps.io.images import read_image
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.study.registry import read_models

ROOT = Path(__file__).parents[1]
UNITS = NUMBERS | {"age": 100.0}
RENDERED = Photographs(2026, HELD_OUT, 20, 6)

Values = NDArray[np.float64]


def read(images: Sequence[NDArray[np.uint8]]) -> dict[str, Values]:
    """Attribute to what the network reads in images uint8 [64, 64, 3], years and degrees."""
    weights = read_models(ROOT / "config" / "models.yaml")["demo_attributes"].with_contents()
    network = load_network(weights, AttributeNet.from_state_dict)
    with torch.inference_mode():
        found = network(to_input(torch.from_numpy(np.stack(images))))
    return {name: found[name][:, 0].double().numpy() * UNITS[name] for name in ATTRIBUTES}


def correlation(asked: Values, seen: Values) -> float:
    """Pearson's."""
    return float(np.corrcoef(asked, seen)[0, 1])


def slope(asked: Values, seen: Values) -> float:
    """Of the least-squares line of what is read over what was asked."""
    return float(np.polyfit(asked, seen, 1)[0])


def compared(what: str, people: Sequence[str], asked: Values, seen: Values) -> list[Row]:
    """Correlation and slope, with percentile intervals of a bootstrap over people."""
    rng = np.random.default_rng(0)
    names = np.array(people)
    of = [np.flatnonzero(names == name) for name in dict.fromkeys(people)]
    draws = [
        np.concatenate([of[k] for k in rng.integers(len(of), size=len(of))])
        for _ in range(REPLICATES)
    ]
    measures: list[Callable[[Values, Values], float]] = [correlation, slope]
    rows = []
    for measure in measures:
        low, high = np.quantile([measure(asked[at], seen[at]) for at in draws], [0.025, 0.975])
        value = measure(asked, seen)
        rows.append(Row(f"{what}, {measure.__name__}", value, float(low), float(high), len(asked)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=Path("results/demo_made_up"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/asked_and_read.json")
    args = parser.parse_args(argv)
    rows = []
    columns = photograph_people(RENDERED, range(RENDERED.people))
    people = [str(k // RENDERED.each) for k in range(len(columns["pictures"]))]
    seen = read(list(columns["pictures"]))
    for name in ATTRIBUTES:
        truth = columns[name].astype(float) * (100 if name == "age" else 1)
        rows += compared(f"renders, {name}", people, truth, seen[name])
    for path in sorted(args.study.glob("samples/*/id3/*/manifest.parquet")):
        frame = read_manifest(path, ("identity", "file", "kept", *ATTRIBUTES))
        frame = frame[frame["kept"]]
        seen = read([read_image(path.parent / file) for file in frame["file"]])
        for name in ATTRIBUTES:
            asked = frame[name].to_numpy(float)
            rows += compared(
                f"id3/{path.parent.name}, {name}", list(frame["identity"]), asked, seen[name]
            )
    print(table(rows))
    add(args.out, "asked_and_read", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
