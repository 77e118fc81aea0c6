"""Fused attention against its equations, written out key by key."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline_steps.diffusion.fused_attention import allowed, fused_attention

B, HEADS, QUERIES, TEXT, FACE, D = 2, 3, 6, 4, 5, 8


def drawn() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(B, HEADS, n, D, generator=generator, dtype=torch.float64)
        for n in (QUERIES, TEXT, TEXT, FACE, FACE)
    ]


def literal(
    query: Tensor,
    text: tuple[Tensor, Tensor],
    face: tuple[Tensor, Tensor],
    open_: Tensor,
    alpha: float,
) -> Tensor:
    """Eq. 3-7: a softmax over text keys and those face keys that M leaves open, then the sum."""
    out = torch.zeros_like(query)
    for b in range(B):
        for h in range(HEADS):
            for q in range(QUERIES):
                pairs = [(text[0][b, h, k], text[1][b, h, k]) for k in range(TEXT)]
                pairs += [
                    (face[0][b, h, k], face[1][b, h, k]) for k in range(FACE) if open_[b, q, k]
                ]
                weights = [math.exp(alpha * float(query[b, h, q] @ key)) for key, _ in pairs]
                for weight, (_, value) in zip(weights, pairs, strict=True):
                    out[b, h, q] += weight / sum(weights) * value
    return out


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_papers_equations_to_rounding(masked: bool, scale: float | None) -> None:
    query, *keys = drawn()
    may = torch.ones(B, QUERIES, FACE, dtype=torch.bool)
    if masked:
        may = torch.rand(may.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        may[0, 0] = False  # sees the text alone

    found = fused_attention(query, *keys, may_attend=may if masked else None, scale=scale)

    wanted = literal(query, (keys[0], keys[1]), (keys[2], keys[3]), may, scale or D**-0.5)
    assert (found - wanted).abs().max() <= 1e-12


def test_several_references_are_further_keys() -> None:
    query, text_key, text_value, key, value = drawn()
    one = fused_attention(query, text_key, text_value, key, value)
    twice = fused_attention(
        query, text_key, text_value, torch.cat([key, key], 2), torch.cat([value, value], 2)
    )
    assert (one - twice).abs().max() > 1e-3  # the text weighs less: one softmax for all
    shut = torch.ones(B, QUERIES, 2 * FACE, dtype=torch.bool)
    shut[..., FACE:] = False
    again = fused_attention(
        query, text_key, text_value, torch.cat([key, key], 2), torch.cat([value, value], 2), shut
    )
    assert (one - again).abs().max() <= 1e-12


def test_no_gradient_reaches_a_closed_key() -> None:
    query, text_key, text_value, key, value = drawn()
    key.requires_grad_()
    value.requires_grad_()
    may = torch.ones(B, QUERIES, FACE, dtype=torch.bool)
    may[:, :, 2] = False
    fused_attention(query, text_key, text_value, key, value, may).square().sum().backward()
    for gradient in (key.grad, value.grad):
        assert gradient is not None
        assert gradient[:, :, 2].abs().max() == 0
        assert gradient[:, :, [0, 1, 3, 4]].abs().min(dim=-1).values.max() > 0


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (16, 24), (8, 12), (4, 6), (2, 3)])
def test_at_every_size_a_query_in_a_mask_sees_no_other_face(rows: int, columns: int) -> None:
    masks = torch.zeros(2, 64, 96)
    masks[0, 20:44, 5:40] = 1
    masks[1, 10:50, 60:90] = 0.5
    whose = torch.tensor([0, 0, 1])

    may = allowed(masks, whose, rows * columns).reshape(rows, columns, 3)

    for y in range(rows):
        for x in range(columns):
            patch = masks[:, y * 64 // rows : (y + 1) * 64 // rows]
            left, right = x * 96 // columns, (x + 1) * 96 // columns
            inside = [bool((patch[face, :, left:right] > 0).any()) for face in (0, 1)]
            assert may[y, x].tolist() == [not inside[1], not inside[1], not inside[0]]


def test_masks_of_another_aspect_ratio_are_refused() -> None:
    for queries in (24, 10, 7, 2):
        with pytest.raises(ValueError, match="aspect ratio"):
            allowed(torch.ones(1, 64, 64), torch.zeros(1, dtype=torch.int64), queries)
