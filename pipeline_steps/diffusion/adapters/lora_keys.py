"""Names of LoRA tensors in all the spellings that diffusers and PEFT have written.

====================================================  ==============================================
<layer>.lora_A.weight, .lora_B.weight                 diffusers since 0.28, PEFT
<layer>.lora_A.default.weight                         PEFT's state dict, with the adapter's name
<layer>.lora.down.weight, .lora.up.weight             diffusers 0.22 to 0.27
<layer>.lora_linear_layer.down.weight                 the same, of some scripts
<attention>.processor.to_q_lora.down.weight           diffusers up to 0.21; to_out is to_out.0
====================================================  ==============================================

before them ``unet.``, ``base_model.model.``, both, or nothing (diffusers up to 0.16); beside them
``<layer>.alpha`` where the file's header does not say alpha.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:unet\.)?(?:base_model\.model\.)?")
_PROCESSOR = re.compile(r"\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight$")
_LAYER = re.compile(
    r"\.(?:lora_(?P<letter>[AB])(?:\.[^.]+)?|lora(?:_linear_layer)?\.(?P<word>down|up))\.weight$"
)
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up"}
_OTHER_NETWORKS = ("text_encoder.", "text_encoder_2.", "transformer.", "vae.")


class LoraKey(NamedTuple):
    """What a tensor is.

    Attributes:
        layer: Name of the layer in the denoising network.
        part: "down" (A), "up" (B) or "alpha".
    """

    layer: str
    part: str


def parse_key(key: str) -> LoraKey | None:
    """The meaning of a tensor's name; None: no part of a denoising network's LoRA."""
    if key.startswith(_OTHER_NETWORKS):
        return None
    name = _PREFIX.sub("", key)
    if found := _PROCESSOR.search(name):
        attention, layer = name[: found.start()], found[1]
        return LoraKey(f"{attention}.{'to_out.0' if layer == 'to_out' else layer}", found[2])
    if found := _LAYER.search(name):
        return LoraKey(name[: found.start()], _PARTS[found["letter"] or found["word"]])
    if name.endswith(".alpha"):
        return LoraKey(name.removesuffix(".alpha"), "alpha")
    return None
