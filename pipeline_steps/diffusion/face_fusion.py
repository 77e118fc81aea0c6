"""Face Fusion: a denoising network that looks at photographs of the person whom it shows.

At every cross-attention layer (`attn2`) of the frozen network, the hidden state h_f that a
reference image has *at that very layer* gives face keys W_kf h_f and face values W_vf h_f, which
stand behind the text's in one softmax. W_kf and W_vf are all that is trained. Source: "Fusion is
all you need: Face Fusion for customized identity-preserving image synthesis" (Eq. 1-7).

The module goes into packages as it is, see ``packaging``: it needs PyTorch and `fused_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.diffusion.fused_attention import allowed, fused_attention

SMALL = 0.02  # standard deviation of the initial W_vf
FILE_NAME = "face_fusion.safetensors"


class Base(Protocol):
    """What is needed of a BaseModel."""

    def encode_prompts(self, prompts: Sequence[str | None]) -> Any: ...

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor: ...


Hidden = dict[str, Tensor]  # layer -> hidden states of images there, [n, tokens, width]
Keys = dict[str, tuple[Tensor, Tensor]]  # layer -> face keys and values, [n, heads, n_face, d]


@dataclass(frozen=True)
class Look:
    """What the images of a batch look at beside the text.

    Attributes:
        keys: Of each person's references.
        rows: int64 [n], places in the network's batch of the images that look; the others see the
            text alone. None: all look, the first at the first person, and so on.
        whom: int64 [n], whose references these look at, by place among the keys.
        may_attend: n_q and n_face to what :func:`fused_attention` takes; None: all is open.
    """

    keys: Keys
    rows: Tensor | None = None
    whom: Tensor | None = None
    may_attend: Callable[[int, int], Tensor] | None = None


class FusedAttention(nn.Module):
    """Processor of one cross-attention layer, with W_kf and W_vf [heads * d, width]."""

    def __init__(self, attention: Any, name: str) -> None:
        super().__init__()
        weight = attention.to_q.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": torch.float32, "bias": False}
        self.to_k_face = nn.Linear(weight.shape[1], weight.shape[0], **like)
        self.to_v_face = nn.Linear(weight.shape[1], weight.shape[0], **like)
        self.name, self.heads = name, attention.heads
        self.seen: list[Tensor] | None = None  # hidden states, while somebody records them
        self.look: Look | None = None

    def keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Face keys and values (Eq. 2, 6) of references: [n, references, tokens, width]."""
        hidden = hidden.flatten(1, 2).to(self.to_k_face.weight.dtype)
        return self._split(self.to_k_face(hidden)), self._split(self.to_v_face(hidden))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """diffusers' call: the layer's output for hidden states [b, n_q, width]."""
        if self.seen is not None:
            self.seen.append(hidden_states)
        query = self._split(attn.to_q(hidden_states))
        key = self._split(attn.to_k(encoder_hidden_states))
        value = self._split(attn.to_v(encoder_hidden_states))
        if self.look is None:
            out = F.scaled_dot_product_attention(query, key, value)
        elif (rows := self.look.rows) is None:
            out = self._fused(query, key, value, self.look)
        else:
            out = F.scaled_dot_product_attention(query, key, value)
            fused = self._fused(query[rows], key[rows], value[rows], self.look)
            out = out.index_copy(0, rows, fused)
        result: Tensor = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return result

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, look: Look) -> Tensor:
        face_key, face_value = (
            (x if look.whom is None else x[look.whom]).to(query.dtype) for x in look.keys[self.name]
        )
        may = look.may_attend and look.may_attend(query.shape[2], face_key.shape[2])
        return fused_attention(query, key, value, face_key, face_value, may)


class FaceFusion:
    """W_kf and W_vf at every cross-attention layer of a network, which is changed until `remove`.

    Args:
        network: diffusers' UNet2DConditionModel; its own weights are frozen.
        processor: of each layer.

    Attributes:
        layers: Name of each layer's processor to it, as diffusers names it.
    """

    def __init__(self, network: Any, processor: type[FusedAttention] = FusedAttention) -> None:
        network.requires_grad_(False)
        self._network, self._before = network, dict(network.attn_processors)
        self.layers = {
            f"{name}.processor": processor(module, f"{name}.processor")
            for name, module in network.named_modules()
            if name.endswith(".attn2")
        }
        network.set_attn_processor({**self._before, **self.layers})

    def remove(self) -> None:
        """Give the network its own processors back."""
        self._network.set_attn_processor(dict(self._before))

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [p for layer in self.layers.values() for p in layer.parameters()]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """W_kf is the layer's own W_q, so that like finds like; W_vf is small and random.

        The first faces hardly change what the text asks for: on the embedded world the error of the
        untrained weights is 0.0904, and 0.0900 without references; with those of the block's own
        self-attention in their place it is 0.170.
        """
        for name, layer in self.layers.items():
            attention = self._network.get_submodule(name.removesuffix(".processor"))
            layer.to_k_face.weight.copy_(attention.to_q.weight)
            values = layer.to_v_face.weight
            values.copy_(SMALL * torch.randn(values.shape, generator=generator))

    def state(self) -> dict[str, Tensor]:
        """Weights by diffusers' names, ``<layer>.attn2.processor.to_k_face.weight``."""
        return {
            f"{name}.{part}": tensor
            for name, layer in self.layers.items()
            for part, tensor in layer.state_dict().items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill in what :meth:`state` gave. Raises ValueError where it is another network's."""
        own = self.state()
        unfit = sorted(own.keys() ^ tensors.keys())
        unfit += [
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ]
        if unfit:
            raise ValueError(f"the weights are of another base model: {unfit[0]} does not fit")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def hidden_of(self, run: Callable[[], object]) -> Hidden:
        """Hidden states of what the network is shown while ``run()`` lasts; it sees no faces."""
        self.look(None)
        for layer in self.layers.values():
            layer.seen = []
        try:
            run()
            return {name: torch.cat(layer.seen or []) for name, layer in self.layers.items()}
        finally:
            for layer in self.layers.values():
                layer.seen = None

    @torch.no_grad()
    def read(self, base: Base, clean: Tensor) -> Hidden:
        """Hidden states of clean latents [n, c, h, w] at t = 0, under the empty prompt."""
        nothing, zero = base.encode_prompts([None] * len(clean)), clean.new_zeros(len(clean))
        return self.hidden_of(lambda: base.predict(clean, zero.long(), nothing))

    def keys(self, hidden: Hidden) -> Keys:
        """Face keys and values of references, hidden states [n, references, tokens, width]."""
        return {name: layer.keys(hidden[name]) for name, layer in self.layers.items()}

    def look(self, look: Look | None) -> None:
        """Choose what the images of the next batches look at; None: at the text alone."""
        for layer in self.layers.values():
            layer.look = look


def together(people: Sequence[Keys], masks: Tensor | None) -> Look:
    """Several people in one image (Eq. 6, 7), for all images of a batch.

    Args:
        people: keys of each, of one person's references each.
        masks: where each one's face is, [people, h, w], see ``fused_attention.allowed``; None: all
            look at everybody, which gives a morph.

    Raises:
        ValueError: there are not as many masks as people.
    """
    if masks is not None and len(masks) != len(people):
        raise ValueError(f"{len(people)} people but {len(masks)} masks: give each person a mask")
    keys = {
        name: (
            torch.cat([own[name][0] for own in people], 2),
            torch.cat([own[name][1] for own in people], 2),
        )
        for name in people[0]
    }
    if masks is None:
        return Look(keys)
    shares = [next(iter(own.values()))[0].shape[2] for own in people]  # alike in all layers

    def may_attend(queries: int, tokens: int) -> Tensor:
        counts = torch.tensor([tokens * share // sum(shares) for share in shares])
        whose = torch.arange(len(people)).repeat_interleave(counts).to(masks.device)
        return allowed(masks, whose, queries)[None]

    return Look(keys, may_attend=may_attend)
