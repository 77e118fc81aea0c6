"""ID3's network: a denoiser that is told a face embedding and attributes in the place of words.

An embedding y and the attributes s (age in years, pitch, yaw and roll in degrees) become tokens of
the denoiser's cross-attention. What is not known of an image is NaN and has tokens of its own, so
that a network can be asked for anybody, or for somebody of any age.

Source: "ID3: Identity-Preserving-yet-Diversified Diffusion Models for Synthetic Face Recognition"
(Xu et al., NeurIPS 2024), whose MLP is 512, 256, 768 wide; how many tokens there are, and how the
attributes enter, is inferred.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pipeline_steps.diffusion.base_models.base import BaseModel, Conditioning

FILE_NAME = "id3.safetensors"
TRAINED_ON = "trained_on"  # attributes of training images [m, 4], beside the weights in the file
ATTRIBUTES = {"age": 100.0, "pitch": 90.0, "yaw": 90.0, "roll": 90.0}
"""Attributes of an image and the largest absolute value of each: years, degrees."""
WAVES = 4  # sines and cosines by which the MLP sees an attribute
TRAINED = {"all": "", "attention": ".attentions."}  # which of the denoiser's weights, by name


class ConditionNetwork(nn.Module):
    """Embeddings and attributes -> tokens, by one MLP for either.

    Args:
        embedding: width of the embeddings.
        width: of the denoiser's cross-attention.
        hidden: of the MLPs.
        tokens: that an embedding becomes; each attribute becomes one.
    """

    def __init__(self, embedding: int, width: int, hidden: int = 256, tokens: int = 4) -> None:
        super().__init__()
        facts = 1 + 2 * WAVES + len(ATTRIBUTES)
        self.identity = _mlp(embedding, hidden, tokens * width)
        self.attributes = _mlp(facts, hidden, width)
        self.unknown = nn.Parameter(torch.zeros(tokens + len(ATTRIBUTES), width))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ConditionNetwork:
        """The network of a state dict. Raises KeyError or ValueError where it is none."""
        hidden, embedding = tensors["identity.0.weight"].shape
        places, width = tensors["unknown"].shape
        network = cls(embedding, width, hidden, places - len(ATTRIBUTES))
        try:
            network.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return network

    def forward(self, y: Tensor, s: Tensor) -> Tensor:
        """Tokens [n, tokens + 4, width].

        Args:
            y: embeddings [n, d] of any length; a row with NaN: anybody.
            s: attributes [n, 4] in the order and the units of ATTRIBUTES; NaN: any.
        """
        somebody = y.isfinite().all(dim=1)
        unit = nn.functional.normalize(torch.where(somebody[:, None], y, 0.0))
        identity = self.identity(unit * unit.shape[1] ** 0.5).unflatten(
            1, (-1, self.norm.weight.numel())
        )
        known = s.isfinite()
        scaled = torch.where(known, s, 0.0) / s.new_tensor(list(ATTRIBUTES.values()))
        angles = scaled[..., None] * torch.pi / 2 * torch.arange(1, WAVES + 1, device=s.device)
        which = torch.eye(len(ATTRIBUTES), device=s.device).expand(len(s), -1, -1)
        facts = torch.cat([scaled[..., None], angles.sin(), angles.cos(), which.to(s)], dim=-1)
        tokens = torch.cat([identity, self.attributes(facts)], dim=1)
        told = torch.cat([somebody[:, None].expand(identity.shape[:2]), known], dim=1)
        result: Tensor = self.norm(torch.where(told[..., None], tokens, self.unknown))
        return result


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Id3(nn.Module):
    """A denoiser and its condition network.

    Args:
        denoiser: diffusers' UNet2DConditionModel; a copy of it is trained.
        condition: of the denoiser's width of cross-attention.
        trains: a key of TRAINED.
    """

    def __init__(self, denoiser: Any, condition: ConditionNetwork, trains: str = "all") -> None:
        super().__init__()
        self.condition = condition
        self.unet = copy.deepcopy(denoiser)
        for name, p in self.unet.named_parameters():
            p.requires_grad_(TRAINED[trains] in name)

    def state(self) -> dict[str, Tensor]:
        """All that is trained, by name."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    @classmethod
    def of(cls, denoiser: Any, tensors: Mapping[str, Tensor]) -> Id3:
        """What :meth:`state` gave, on the denoiser that it was trained from.

        Raises:
            ValueError: the tensors are of another network.
        """
        try:
            network = cls(denoiser, ConditionNetwork.of(_below(tensors, "condition.")))
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error
        own = network.unet.state_dict()
        for name, tensor in _below(tensors, "unet.").items():
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"the weights are of another base model: {name} does not fit")
            own[name].copy_(tensor)
        if network.condition.norm.weight.numel() != denoiser.config.cross_attention_dim:
            raise ValueError("the tokens are not as wide as the base model's cross-attention")
        return network.requires_grad_(False).eval()

    def tell(self, base: BaseModel, y: Tensor, s: Tensor) -> Conditioning:
        """What the denoiser is told; arguments as of the condition network."""
        from pipeline_steps.diffusion.base_models.base import Conditioning

        added = base.encode_prompts([None] * len(y)).added
        weight = self.condition.norm.weight
        hidden = self.condition(y.to(weight), s.to(weight))
        return Conditioning(hidden.to(base.dtype), added)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t.float() for k, t in tensors.items() if k.startswith(prefix)}
