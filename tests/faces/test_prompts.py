"""Networks that read from whole images whether these show what their prompts ask for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_steps import features
from pipeline_steps.faces.extractors import CLIP, AttributeNet
from pipeline_steps.faces.pixels import normalised, resized
from pipeline_steps.faces.prompts import NOTHING_ASKED, load_reader
from pipeline_steps.io.hashes import sha256_file
from pipeline_steps.io.images import write_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import load_features
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.evidence import FeaturesSettings
from tests.registry import entry

CLASSES = {"mood": ["calm", "happy"], "place": ["none", "bus", "city street"]}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a happy person, busy bus", "a person in a city street", "a busy person", "happy, bus"]


@pytest.fixture
def attributes(tmp_path):
    """A network that reads a bus and a happy mood from every image."""
    torch.manual_seed(0)
    network = AttributeNet({name: len(words) for name, words in CLASSES.items()}, (4, 4))
    for name, seen in (("mood", 1), ("place", 1)):
        torch.nn.init.zeros_(network.heads[name].weight)
        network.heads[name].bias.data = torch.nn.functional.one_hot(
            torch.tensor(seen), len(CLASSES[name])
        ).float()
    save_file(network.state_dict(), tmp_path / "attributes.safetensors")
    return entry("prompt", "attributes", tmp_path / "attributes.safetensors", classes=CLASSES)


def test_attributes_are_read_back_by_the_words_of_their_classes(attributes) -> None:
    found = load_reader(attributes).score(IMAGES, PROMPTS)
    assert found.ravel().tolist() == [1.0, 0.0, NOTHING_ASKED, 1.0]
    odd = attributes.model_copy(update={"options": {"classes": {"mood": ["calm"]}}})
    with pytest.raises(StepError, match=r"options\.classes has to name every class"):
        load_reader(odd)


def test_clip_scores_are_a_hundred_times_clips_own_cosines(tmp_path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    words = [
        "<|endoftext|>",
        "<|startoftext|>",
        *sorted({c for p in PROMPTS for c in p} | {"</w>"}),
    ]
    words += [f"{c}</w>" for c in words[2:]]
    (tmp_path / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    text = small | {"vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": 0}
    vision = small | {"image_size": 32, "patch_size": 16}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    network.eval().save_pretrained(tmp_path)
    found = load_reader(entry("prompt", "clip", tmp_path)).score(IMAGES, PROMPTS)
    for k, prompt in enumerate(PROMPTS):  # one at a time, so nothing is padded
        tokens = CLIPTokenizer.from_pretrained(tmp_path)(
            prompt, truncation=True, max_length=12, return_tensors="pt"
        )
        pixels = normalised(resized(IMAGES[k : k + 1], 32), *CLIP)
        with torch.no_grad():
            own = network(pixel_values=pixels, **tokens).logits_per_image
        wanted = 100 * float(own / network.logit_scale.exp())
        assert found[k, 0] == pytest.approx(max(wanted, 0.0), abs=1e-3)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(StepError, match="has no tokenizer"):
        load_reader(entry("prompt", "clip", tmp_path))


def test_the_features_step_reads_whole_images_again_when_a_prompt_changes(
    tmp_path, attributes
) -> None:
    samples, aligned = tmp_path / "samples", tmp_path / "aligned"
    faces = np.random.default_rng(1).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    made, kept = [], []
    for k, prompt in enumerate(PROMPTS):
        file = f"ID_1/{k}.png"
        write_png(samples / file, IMAGES[k])
        write_png(aligned / file, faces[k])
        made.append({"file": file, "prompt": prompt, "sha256": sha256_file(samples / file)})
        kept.append({"file": file, "source_file": file, "landmarks": None, "kept": k != 1})
    write_manifest(aligned / "manifest.parquet", kept)

    def read() -> tuple[int, list[float]]:
        write_manifest(samples / "manifest.parquet", made)
        frozen = Frozen("t", "features", 0, FeaturesSettings(), {"extractor": attributes})
        out = tmp_path / "features" / "prompts.safetensors"
        given = {"aligned": aligned, "samples": samples / "manifest.parquet"}
        fresh = features.run([frozen], out=[out], device="cpu", **given)
        return fresh[0], load_features(out).features.ravel().tolist()

    assert read() == (3, [1.0, NOTHING_ASKED, 1.0])
    made[3]["prompt"] = "happy, city street"
    assert read() == (1, [1.0, NOTHING_ASKED, 0.5])
