"""The verify_templates step from a model and a folder to its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_steps import verify_templates
from pipeline_steps.io.images import write_png
from pipeline_steps.recognition.backbones import Architecture, embed, save_backbone
from pipeline_steps.runtime.errors import StepError

PEOPLE, TEMPLATES, IMAGES = 12, 3, 3


def template_set(folder: Path) -> Path:
    """Templates of noisy images of random patterns, all pairs of different templates."""
    rng = np.random.default_rng(0)
    members, owners = [], {}
    for person in range(PEOPLE):
        pattern = rng.normal(size=(4, 4, 3))
        for k in range(TEMPLATES):
            template = f"{person}-{k}"
            owners[template] = person
            for i in range(IMAGES):
                noisy = pattern + rng.normal(0, 1.2, pattern.shape)
                pixels = 128 + 40 * np.kron(noisy, np.ones((28, 28, 1)))
                write_png(
                    folder / "images" / f"{template}_{i}.png",
                    pixels.clip(0, 255).astype(np.uint8),
                )
                file = f"{template}_{i}.png"
                members.append({"template": template, "media": f"m{i // 2}", "file": file})
    names = sorted(owners)
    pairs = [
        {"template_a": a, "template_b": b, "same": int(owners[a] == owners[b])}
        for n, a in enumerate(names)
        for b in names[n + 1 :]
    ]
    pd.DataFrame(members).to_csv(folder / "templates.csv", index=False)
    pd.DataFrame(pairs).to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    built_as = Architecture((1, 1, 1, 1), (16,) * 5, embedding_dim=32, input_size=32)
    save_backbone(root / "model.safetensors", built_as.build(), built_as, {})
    frozen = {"study": "t", "step": "verify_templates", "seed": 0, "weights": {}, "variant": {}}
    settings = {"fmrs": [0.01, 0.1, 1e-5]}
    (root / "c.json").write_text(json.dumps({**frozen, "settings": settings}))
    template_set(root / "ijb")
    return root


def run(root: Path, out: Path) -> list[dict[str, str]]:
    arguments = [f"--config={root / 'c.json'}", f"--model={root / 'model.safetensors'}"]
    assert verify_templates.main([*arguments, "--sets", str(root / "ijb"), f"--out={out}"]) == 0
    with out.open() as stream:
        return list(csv.DictReader(stream))


def test_rates_equal_a_computation_by_hand(folder: Path, tmp_path: Path) -> None:
    from pipeline_steps.io.images import read_image
    from pipeline_steps.recognition.backbones import load_backbone

    rows = run(folder, tmp_path / "templates.csv")
    network = load_backbone(folder / "model.safetensors")[0]
    rows_of = {}
    for file in sorted((folder / "ijb" / "images").iterdir()):
        rows_of[file.stem] = embed(network, read_image(file)[None], input_size=32)[0]
    pooled = {}
    for template in {stem.rsplit("_", 1)[0] for stem in rows_of}:
        a, b, c = (rows_of[f"{template}_{i}"] for i in range(3))
        total = (a + b) / 2 + c  # media m0, m0, m1
        pooled[template] = total / np.linalg.norm(total)
    pairs = pd.read_csv(folder / "ijb" / "pairs.csv")
    scores = np.array([
        pooled[a] @ pooled[b]
        for a, b in zip(pairs["template_a"], pairs["template_b"], strict=True)
    ])  # fmt: skip
    same = pairs["same"].to_numpy() == 1
    impostor = np.sort(scores[~same])[::-1]
    for row, allowed in zip(rows, (5, 59), strict=False):  # of 594 impostors
        expected = (scores[same] > impostor[allowed]).mean()
        assert float(row["tpr"]) == pytest.approx(expected, abs=1e-6)
        assert 0 < expected < 1
        assert float(row["low"]) < expected < float(row["high"])
    assert [row["fmr"] for row in rows] == ["0.01", "0.1", "1e-05"]
    assert rows[2]["tpr"] == ""  # 594 impostors cannot measure one in 100 000
    assert (rows[0]["n_genuine"], rows[0]["n_impostor"]) == ("36", "594")
    assert (rows[0]["set"], rows[0]["n_templates"], rows[0]["images_left_out"]) == (
        *("ijb", "36", "0"),
    )


def test_unreadable_images_are_counted_and_their_neighbours_go_on(
    folder: Path, tmp_path: Path
) -> None:
    copy = template_set(tmp_path / "ijb")
    for i in range(IMAGES):
        (copy / "images" / f"3-1_{i}.png").write_bytes(b"no picture")
    (copy / "images" / "5-0_2.png").unlink()
    for name in ("c.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    row = run(tmp_path, tmp_path / "templates.csv")[0]
    assert row["n_templates"] == "35"
    assert row["images_left_out"] == "4"
    assert row["pairs_left_out"] == "35"
    for file in (copy / "images").iterdir():
        file.unlink()
    with pytest.raises(StepError, match="none of the images"):
        run(tmp_path, tmp_path / "templates.csv")
