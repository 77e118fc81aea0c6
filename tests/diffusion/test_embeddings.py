"""ID3 in the sampler: what each image is told, for people with photographs and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline_steps import sample
from pipeline_steps.diffusion.base_models import load_base_model
from pipeline_steps.diffusion.base_models.base import BaseModel
from pipeline_steps.diffusion.id3 import FILE_NAME, TRAINED_ON, ConditionNetwork, Id3
from pipeline_steps.diffusion.sampling.embeddings import Embeddings
from pipeline_steps.diffusion.sampling.plan import keys_of, plan_images
from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample_latents
from pipeline_steps.faces.recogniser import embedded_by
from pipeline_steps.identities.dataset import TARGETS, read_subjects
from pipeline_steps.io.manifests import read_manifest, write_manifest
from pipeline_steps.io.tensors import save_features, save_tensors
from pipeline_steps.io.weights import Weights
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import EmbeddingSettings, PromptSet, SampleSettings
from tests.diffusion.tiny_study import base_weights, recogniser_weights, write_dataset

PROMPTS = PromptSet(name="words", template="photo of {token} person")
HOW = Sampling(steps=2, guidance=3.0, scheduler="ddim", batch_size=8)
FACE = 2  # tokens of an embedding
FACTS = torch.tensor([[30.0, 1.0, -20.0, 0.0], [60.0, 2.0, 40.0, float("nan")]])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return recogniser_weights(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, judge: Weights) -> Path:
    """A dataset, one of people without photographs, and strong random weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write_dataset(folder / "dataset", {"ID_1": 3, "ID_2": 1}, judge)
    unet = load_base_model(base_weights(pipeline_folder)).unet
    torch.manual_seed(0)
    network = Id3(
        unet, ConditionNetwork(48, unet.config.cross_attention_dim, 16, FACE), "attention"
    )
    tensors = {k: 3 * t for k, t in network.state().items()} | {TRAINED_ON: FACTS}
    save_tensors(folder / "weights" / FILE_NAME, tensors)
    made_up = folder / "made_up"
    made_up.mkdir()
    (made_up / "identities.csv").write_text("identity,gender\nMU_1,\nMU_2,\n")
    write_manifest(made_up / "manifest.parquet", [], ["identity", "file", "sha256", "kept"])
    anchors = np.eye(2, 48, dtype=np.float32)
    header = embedded_by(judge)
    save_features(made_up / TARGETS, anchors, ["MU_1", "MU_2"], key="embeddings", **header)
    return folder


@pytest.fixture
def frozen(pipeline_folder: Path, judge: Weights) -> Frozen[SampleSettings]:
    settings = SampleSettings(
        images_per_identity=2, steps=2, prompt_set=PROMPTS, scheduler="ddim", guidance=3
    )
    variant = {"base_model": "tiny", "method": "id3", "prompts": "words"}
    weights = {"base_model": base_weights(pipeline_folder), "recogniser": judge}
    return Frozen("test", "sample", 7, settings, weights, variant)


def told(frozen: Frozen[SampleSettings], **of: object) -> Frozen[SampleSettings]:
    asked = EmbeddingSettings.model_validate(of)
    return replace(frozen, settings=frozen.settings.model_copy(update={"embeddings": asked}))


def test_embeddings_lie_beside_the_anchor_and_attributes_are_drawn_together(
    frozen: Frozen[SampleSettings], inputs: Path
) -> None:
    handed = Embeddings(frozen, inputs / "made_up", inputs / "weights")
    rows = [row for name in ("MU_1", "MU_2") for row in handed.conditions(name)]
    cosines = [row["target"][k // 2] for k, row in enumerate(rows)]
    assert all(0.7 - 1e-6 <= value <= 0.9 + 1e-6 for value in cosines) and len(set(cosines)) == 4
    assert all(np.isclose(np.linalg.norm(row["target"]), 1) for row in rows)
    for row in rows:  # a training image's, all four
        assert (row["age"], row["roll"]) in ((30.0, 0.0), (60.0, None))
        assert row["prompt"].startswith(f"age {row['age']:.0f}, pitch")
    narrow = told(frozen, attributes={"age": [40, 41]}, likeness=[1, 1])
    [row, _] = Embeddings(narrow, inputs / "made_up", inputs / "weights").conditions("MU_1")
    assert 40 <= row["age"] <= 41 and row["yaw"] in (-20.0, 40.0) and row["target"][0] == 1
    nothing = told(frozen, attributes=None)
    [row, _] = Embeddings(nothing, inputs / "made_up", inputs / "weights").conditions("MU_1")
    assert row["prompt"] == "" and row["age"] is row["yaw"] is None


def latents(base: BaseModel, bank: object, *wanted: ImageRequest) -> Tensor:
    parts = [z for _, z in sample_latents(base, wanted, HOW, bank=bank)]  # type: ignore[arg-type]
    return torch.cat(parts)


def test_each_image_is_told_its_own(
    base: BaseModel, frozen: Frozen[SampleSettings], inputs: Path
) -> None:
    one, other = (ImageRequest(f"ID_{k}", 0, "", "", 5, k - 1) for k in (1, 2))
    before = base.unet
    handed = Embeddings(frozen, inputs / "dataset", inputs / "weights")
    with handed.on(base, ["ID_1", "ID_2"]) as bank:
        together = latents(base, bank, one, other)
        torch.testing.assert_close(together[:1], latents(base, bank, one), atol=1e-4, rtol=0)
        both = bank.condition([one, replace(one, of="ID_2"), replace(other, of="ID_1")]).hidden
        # another person's face, the image's own attributes
        assert torch.equal(both[0, :FACE], both[2, :FACE])
        assert torch.equal(both[0, FACE:], both[1, FACE:])
        assert not torch.allclose(both[0, :FACE], both[1, :FACE])
    assert not torch.allclose(together[0], together[1], atol=1e-2)  # the same noise
    assert base.unet is before


def test_people_without_photographs_are_sampled_and_kept_while_their_anchors_stay(
    frozen: Frozen[SampleSettings], inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "images"
    sample.run(frozen, dataset=inputs / "made_up", out=out, loras=inputs / "weights")
    rows = read_manifest(out / "shares" / "0-of-1.parquet")
    assert list(rows["identity"]) == ["MU_1"] * 2 + ["MU_2"] * 2 and rows["kept"].all()
    assert len(rows["target"][0]) == 48 and set(rows["weights_source"]) == {"embeddings"}
    subjects = read_subjects(inputs / "made_up")

    def keys(of: Frozen[SampleSettings]) -> list[str]:
        handed = Embeddings(of, inputs / "made_up", inputs / "weights")
        return keys_of(of, plan_images(of, subjects, handed))

    more = replace(frozen, settings=frozen.settings.model_copy(update={"images_per_identity": 3}))
    assert set(keys(frozen)) < set(keys(more))
    assert set(keys(frozen)).isdisjoint(keys(told(frozen, likeness=[0.5, 0.7])))


def test_what_cannot_be_told_is_refused(
    frozen: Frozen[SampleSettings], inputs: Path, tmp_path: Path, judge: Weights
) -> None:
    with pytest.raises(StepError, match="run train_generator"):
        Embeddings(frozen, inputs / "dataset", tmp_path)
    save_tensors(tmp_path / FILE_NAME, {"unet.x": np.zeros(1)})
    with pytest.raises(StepError, match="no network of ID3"):
        Embeddings(frozen, inputs / "dataset", tmp_path)
    write_dataset(tmp_path / "dataset", {"ID_1": 1}, judge)
    path = tmp_path / "dataset" / "embeddings" / "ID_1.safetensors"
    empty = np.zeros((0, 48), np.float32)
    save_features(path, empty, [], key="embeddings", **embedded_by(judge))
    handed = Embeddings(frozen, tmp_path / "dataset", inputs / "weights")
    with pytest.raises(StepError, match="ID_1 has no photograph"):
        handed.conditions("ID_1")
