"""How well whole images show what their prompts ask for, one number each.

A further network that reads both is a function and an entry in READERS; which of them a study
asks, its weights say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline_steps.faces.extractors import CLIP, AttributeNet, from_folder
from pipeline_steps.faces.pixels import normalised, resized
from pipeline_steps.faces.recogniser import load_network, to_input
from pipeline_steps.io.weights import Weights, locate
from pipeline_steps.runtime.errors import StepError

TASK = "prompt"  # of the registry's entries
NOTHING_ASKED = -1.0  # of an image whose prompt asks for nothing that the network reads

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Reader:
    """A network that reads images and prompts.

    Attributes:
        preprocessing: what happens to image and prompt, in words.
        score: whole images uint8 [n, h, w, 3] RGB and their n prompts -> float32 [n, 1], higher is
            closer; NOTHING_ASKED, or at least 0.
    """

    preprocessing: str
    score: Callable[[Images, Sequence[str]], NDArray[np.float32]]


def load_reader(weights: Weights, device: str | torch.device = "cpu") -> Reader:
    """The reader of a registry entry.

    Raises:
        StepError: the weights are missing or unfit, or nothing reads prompts by this architecture.
    """
    build = READERS.get(weights.architecture)
    if weights.task != TASK or build is None:
        raise StepError(
            f"weights {weights.name!r}: nothing reads prompts by {weights.task}/"
            f"{weights.architecture}; there are {', '.join(f'{TASK}/{name}' for name in READERS)}"
        )
    return build(weights, device)


def _attributes(weights: Weights, device: str | torch.device) -> Reader:
    """Share of what a prompt asks for that the attribute network reads back from the image.

    The entry's option ``classes`` says in which words: attribute -> word of each class.
    """
    network = load_network(weights, AttributeNet.from_state_dict).to(device)
    classes = weights.options.get("classes")
    heads = {name: head.out_features for name, head in network.heads.items()}
    given = classes if isinstance(classes, dict) else {}
    words = {str(name): [str(word) for word in own] for name, own in given.items()}  # type: ignore[union-attr]
    if not words or any(heads.get(name) != len(own) for name, own in words.items()):
        raise StepError(
            f"weights {weights.name!r}: options.classes has to name every class of some of the "
            f"network's attributes, {heads}"
        )

    @torch.inference_mode()
    def score(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
        found = network(to_input(torch.from_numpy(images)).to(device))
        read = {name: found[name].argmax(1).tolist() for name in words}
        rows = []
        for k, prompt in enumerate(prompts):
            asked = asked_of(prompt, words)
            right = [read[name][k] == wanted for name, wanted in asked.items()]
            rows.append(sum(right) / len(right) if right else NOTHING_ASKED)
        return np.array(rows, np.float32).reshape(-1, 1)

    return Reader(f"RGB, any size, (x / 255 - 0.5) / 0.5; classes by their words, {words}", score)


def asked_of(prompt: str, classes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Attributes that a prompt asks for, and the class of each: the first whose words it has."""
    found = {
        name: [k for k, word in enumerate(words) if re.search(rf"\b{re.escape(word)}\b", prompt)]
        for name, words in classes.items()
    }
    return {name: of[0] for name, of in found.items() if of}


def _clip(weights: Weights, device: str | torch.device) -> Reader:
    """100 times the cosine of image and prompt, at least 0.

    Source: Hessel et al., "CLIPScore: A reference-free evaluation metric for image captioning",
    EMNLP 2021, without its factor of 2.5; prompts are cut to what the text tower takes.
    """
    from transformers import CLIPModel, CLIPTokenizer

    network = from_folder(weights, CLIPModel, device)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(locate(weights), local_files_only=True)
    except (OSError, ValueError) as error:
        raise StepError(
            f"weights {weights.name!r}: {locate(weights)} has no tokenizer: fetch "
            f"{', '.join(weights.files)}"
        ) from error
    side = int(network.config.vision_config.image_size)
    longest = int(network.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def score(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
        tokens = tokenizer(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        pixels = normalised(resized(images, side), *CLIP).to(device)
        both = network(pixel_values=pixels, **tokens)
        cosines = F.cosine_similarity(both.image_embeds, both.text_embeds)
        return np.asarray((100 * cosines).clamp(min=0).float().cpu().numpy()[:, None], np.float32)

    return Reader(
        f"RGB, PIL bicubic to {side}x{side} in floating point, CLIP's mean and standard deviation; "
        f"prompts cut to {longest} tokens",
        score,
    )


READERS: dict[str, Callable[[Weights, str | torch.device], Reader]] = {
    "attributes": _attributes,
    "clip": _clip,
}
"""Architecture of a registry entry of this task to what builds its reader."""
