"""Face Fusion in the sampler: who looks at whose photographs, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline_steps import sample, sample_together
from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning
from pipeline_steps.diffusion.face_fusion import FILE_NAME, FaceFusion
from pipeline_steps.diffusion.sampling import references
from pipeline_steps.diffusion.sampling.references import (
    References,
    Together,
    choose,
    joined,
    keys_of,
    masks_of,
)
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample_latents
from pipeline_steps.io.images import read_image, write_png
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.io.tensors import save_tensors
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import (
    GroupSettings,
    PromptSet,
    ReferenceSettings,
    SampleSettings,
    TogetherSettings,
)
from tests.diffusion.tiny_study import base_weights, write_dataset

HOW = Sampling(steps=2, guidance=3.0, scheduler="ddim", batch_size=8)
PEOPLE = ("ID_1", "ID_2")
PROMPTS = PromptSet(name="words", template="photo of {token} person")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """A dataset, and strong random weights."""
    from pipeline_steps.diffusion.base_models import load_base_model

    folder = tmp_path_factory.mktemp("inputs")
    write_dataset(folder / "dataset", {"ID_1": 3, "ID_2": 1})
    fusion = FaceFusion(load_base_model(base_weights(pipeline_folder)).unet)
    fusion.initialise(torch.Generator().manual_seed(0))
    strong = {name: 10 * p for name, p in fusion.state().items()}
    save_tensors(folder / "weights" / FILE_NAME, strong)
    return folder


def frozen(pipeline_folder: Path, method: str = "facefusion", **of: object) -> Frozen:
    asked = ReferenceSettings.model_validate({"count": 2, **of})
    settings = SampleSettings(
        images_per_identity=2, steps=2, references=asked, prompt_set=PROMPTS, scheduler="ddim"
    )
    variant = {"base_model": "tiny", "method": method, "prompts": "words"}
    weights = {"base_model": base_weights(pipeline_folder)}
    return Frozen("test", "sample", 7, settings, weights, variant)


def requests(identity: str, adapter: int) -> list[ImageRequest]:
    return [ImageRequest(identity, i, f"a face {i}", "", i, adapter) for i in range(2)]


def latents(base: BaseModel, wanted: list[ImageRequest], bank: object, **how: object) -> Tensor:
    made = dict[tuple[str, int], Tensor]()
    for batch, z in sample_latents(base, wanted, HOW, bank=bank, **how):  # type: ignore[arg-type]
        made |= {(r.identity, r.index): one for r, one in zip(batch, z, strict=True)}
    return torch.stack([made[r.identity, r.index] for r in wanted])


@pytest.fixture
def bank(
    base: BaseModel, inputs: Path, pipeline_folder: Path
) -> Iterator[references.OnePersonEach]:
    handed = References(frozen(pipeline_folder), inputs / "dataset", inputs / "weights")
    with handed.on(base, PEOPLE) as on_network:
        yield on_network


def test_batches_mix_people(base: BaseModel, bank: references.OnePersonEach) -> None:
    apart = [latents(base, requests(name, k), bank) for k, name in enumerate(PEOPLE)]
    both = [r for k, name in enumerate(PEOPLE) for r in requests(name, k)]
    mixed = latents(base, both, bank, predict=base.predict)
    assert torch.allclose(torch.cat(apart), mixed, atol=1e-4)
    assert not torch.allclose(apart[0], apart[1], atol=1e-2)  # other references, the same noise


def test_keys_kept_or_computed_at_every_step_are_equal_bit_for_bit(
    base: BaseModel, bank: references.OnePersonEach, inputs: Path, pipeline_folder: Path
) -> None:
    kept = latents(base, requests("ID_1", 0), bank, predict=base.predict)
    handed = References(frozen(pipeline_folder), inputs / "dataset", inputs / "weights")
    computed = 0

    def predict(noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        nonlocal computed
        computed += 1
        fusion, [layer, *_] = bank.fusion, bank.fusion.layers.values()
        look = layer.look
        assert look is not None
        images = [handed._read(name, base.resolution) for name in PEOPLE]
        keys = joined([keys_of(base, fusion, own) for own in images])
        fusion.look(replace(look, keys=keys))
        return base.predict(noisy, timesteps, condition)

    fresh = latents(base, requests("ID_1", 0), bank, predict=predict)
    assert computed == HOW.steps
    assert torch.equal(kept, fresh)


def test_the_step_paints_people_with_the_prompts_and_seeds_of_all_methods(
    inputs: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    def sampled(out: str, method: str = "facefusion", **of: object) -> list[dict[str, object]]:
        return sample.run(
            frozen(pipeline_folder, method, **of),
            dataset=inputs / "dataset",
            out=tmp_path / out,
            loras=None if method == "untuned" else inputs / "weights",
        )

    own, plain, others = sampled("own"), sampled("plain", "untuned"), sampled("one", count=1)
    for name in ("prompt", "seed", "identity", "index"):
        assert [row[name] for row in own] == [row[name] for row in plain]
    assert {row["weights_source"] for row in own} == {"references"}
    assert len({row["weights_sha256"] for row in own}) == len(PEOPLE)
    for rows in (plain, others):
        assert not {row["sha256"] for row in own} & {row["sha256"] for row in rows}


def test_references_are_chosen_by_name_quality_or_the_most_frontal(inputs: Path) -> None:
    manifest = read_manifest(inputs / "dataset" / "manifest.parquet", ["file"])
    own = manifest[(manifest["identity"] == "ID_1") & manifest["kept"]]
    ahead, aside = ([0, 0, 2, 0, x, 1, 0, 2, 2, 2] for x in (1.0, 1.8))
    rows = own.assign(landmarks=[aside, ahead, aside]).to_dict("records")
    first, second, third = sorted(own["file"])
    turned = references._turned
    assert [*choose(rows, "ID_1", ReferenceSettings(count=2), turned)] == [second, first]
    named = ReferenceSettings(count=2, named={"ID_1": (Path(third).name,)})
    assert [*choose(rows, "ID_1", named, turned)] == [third]
    by_name = ReferenceSettings(count=1, order="name")
    assert [*choose(rows, "ID_1", by_name, turned)] == [first]

    class Bright:
        """Takes light for quality."""

        def quality(self, images: np.ndarray) -> np.ndarray:
            return images.mean((1, 2, 3))

    lack = partial(references._lack_of_quality, Bright(), inputs / "dataset")
    worst_last = [row["file"] for row in sorted(rows, key=lack)]
    assert len({lack(row) for row in rows}) == 3
    ranked = ReferenceSettings(count=3, order="quality")
    assert [*choose(rows, "ID_1", ranked, lack)] == worst_last
    assert lack({"landmarks": None}) == float("inf")
    with pytest.raises(
        StepError, match=r"no nose\.png in which a face was found; there are 0\.png"
    ):
        choose(rows, "ID_1", ReferenceSettings(named={"ID_1": ("nose.png",)}), turned)


def test_wrong_inputs_are_told_in_a_sentence(
    base: BaseModel, inputs: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    config, dataset = frozen(pipeline_folder), inputs / "dataset"
    with pytest.raises(StepError, match="run train_generator"):
        References(config, dataset, tmp_path)
    with pytest.raises(StepError, match="no usable photograph"):
        References(config, dataset, inputs / "weights").origin("nobody", "sks")
    save_tensors(tmp_path / FILE_NAME, {"down.attn2.processor.to_k_face.weight": torch.zeros(2, 2)})
    with (
        pytest.raises(StepError, match="another base model"),
        References(config, dataset, tmp_path).on(base, PEOPLE),
    ):
        pass


def test_people_with_masks_are_each_seen_in_their_half_alone(
    base: BaseModel, bank: references.OnePersonEach
) -> None:
    masks = masks_of(["left", "right"], base.resolution, base.resolution)
    seen = Together(bank, masks)
    seen.activate([0], length=2, guided=True)
    for layer in bank.fusion.layers.values():
        look = layer.look
        assert look is not None
        assert look.may_attend is not None
        assert look.rows is not None
        assert look.rows.tolist() == [2, 3]  # guidance's other side sees nobody
        key = look.keys[layer.name][0]
        places = key.shape[2] // (len(PEOPLE) * 2)  # of the layer; two references of each person
        side = round(places**0.5)
        may = look.may_attend(places, key.shape[2])[0].view(side, side, len(PEOPLE), -1)
        for person, (own, other) in enumerate(((0, -1), (-1, 0))):
            if side > 1:  # where one query is both halves, it looks at nobody
                assert may[:, own, person].all()
            assert not may[:, other, person].any()


def test_images_of_several_people_are_labelled_and_nobodys(
    inputs: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    write_png(tmp_path / "mask.png", np.full((32, 48, 3), 255, np.uint8))
    write_png(tmp_path / "small.png", np.full((16, 16, 3), 255, np.uint8))

    def sampled(**groups: dict[str, object]) -> pd.DataFrame:
        asked = {name: GroupSettings.model_validate(of) for name, of in groups.items()}
        plain = frozen(pipeline_folder)
        settings = TogetherSettings(groups=asked, sample=plain.settings)
        sample_together.run(
            replace(plain, settings=settings),
            dataset=inputs / "dataset",
            out=tmp_path / "out",
            loras=inputs / "weights",
        )
        return read_manifest(tmp_path / "out" / "manifest.parquet")

    pair = {"people": PEOPLE, "masks": ("left", str(tmp_path / "mask.png")), "size": (32, 48)}
    found = sampled(pair=pair | {"images": 2}, melted={"people": PEOPLE, "images": 1})
    assert found["label"].tolist() == ["together", "together", "morph"]
    assert "identity" not in found  # so whatever counts people's images counts none of these
    assert read_image(tmp_path / "out" / found["file"][0]).shape == (32, 48, 3)
    again = sampled(pair=pair | {"masks": ("right", "left"), "images": 1})
    assert again["sha256"][0] != found["sha256"][0]
    assert not (tmp_path / "out/melted/0.png").exists()
    with pytest.raises(StepError, match=r"small.png has 16x16 pixels, the images have 48x32"):
        sampled(pair=pair | {"masks": ("left", str(tmp_path / "small.png"))})
    with pytest.raises(StepError, match="ID_9 has no usable photograph"):
        sampled(pair={"people": ("ID_9",)})
    with pytest.raises(ValueError, match="2 people but 1 masks: give each person a mask"):
        sampled(pair=pair | {"masks": ("left",)})
