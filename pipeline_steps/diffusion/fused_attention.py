"""Fused attention: text and photographs of a person in one softmax, and whom a query may see.

Source: Face Fusion (Eq. 3-7). It needs PyTorch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fused_attention(
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    face_key: Tensor,
    face_value: Tensor,
    may_attend: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention to text and faces in one softmax (Eq. 3-5; several references: Eq. 6).

    Args:
        query: [b, heads, n_q, d].
        text_key, text_value: [b, heads, n_text, d]; every query may look at them.
        face_key, face_value: [b, heads, n_face, d], of all references, one behind the other.
        may_attend: bool [b, n_q, n_face], for all heads: whether a query may look at a face key
            (Eq. 7); None: at all of them, and no matrix of n_q times n_face is written anywhere.
        scale: alpha of Eq. 4; None: 1 / sqrt(d).

    Returns:
        [b, heads, n_q, d].
    """
    key, value = torch.cat([text_key, face_key], 2), torch.cat([text_value, face_value], 2)
    mask = None
    if may_attend is not None:
        mask = F.pad(may_attend, (text_key.shape[2], 0), value=True)[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def allowed(masks: Tensor, whose: Tensor, queries: int) -> Tensor:
    """Which face keys each query may look at: none of a face while it lies in another's mask.

    Args:
        masks: Where each person's face is, [people, h, w], above zero inside; of any size with the
            image's aspect ratio. A query that covers any of a mask's pixels lies in it, so that at
            no layer a pixel of one face sees another's keys.
        whose: int64 [n_face], the person of each key.
        queries: n_q, the number of places of the layer.

    Returns:
        bool [n_q, n_face] (Eq. 7).

    Raises:
        ValueError: the layer's places have another aspect ratio.
    """
    height, width = masks.shape[1:]
    rows = round((queries * height / width) ** 0.5)
    if rows < 1 or queries % rows or rows * width != queries // rows * height:
        raise ValueError(
            f"masks of {width} x {height} pixels do not fit a layer of {queries} places: give "
            "them the image's aspect ratio"
        )
    inside = F.adaptive_max_pool2d(masks.float()[:, None], (rows, queries // rows)) > 0
    others = inside.flatten(1).sum(0) - inside.flatten(1).int()  # [people, n_q]
    return (others == 0)[whose].mT
