"""The face region of the identity losses: against F.interpolate, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline_steps.faces.detection import crop_and_resize, integer_boxes

BOXES = torch.tensor(
    [
        [3.7, 5.2, 41.9, 60.1],  # shrunk
        [10.0, 12.0, 22.0, 21.0],  # enlarged
        [-4.5, -3.1, 70.2, 71.0],  # larger than the image
        [30.2, 31.0, 30.9, 50.0],  # thinner than a pixel
    ]
)
BOUNDS = [(3, 5, 41, 60), (10, 12, 22, 21), (0, 0, 64, 64), (30, 31, 31, 50)]


def test_boxes_are_cut_to_whole_pixels_inside_the_image():
    assert [tuple(box) for box in integer_boxes(BOXES, 64, 64).tolist()] == BOUNDS


@pytest.mark.parametrize("size", [112, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_interpolation_of_the_integer_crop(size, dtype):
    x = torch.rand(4, 3, 64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    out = crop_and_resize(x, BOXES, size)
    assert out.dtype == dtype
    for i, (x1, y1, x2, y2) in enumerate(BOUNDS):
        expected = functional.interpolate(
            x[i : i + 1, :, y1:y2, x1:x2], (size, size), mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(out[i : i + 1], expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences():
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.0, 1.0, 7.0, 6.0], [2.5, 0.0, 5.0, 8.0]])
    assert torch.autograd.gradcheck(lambda image: crop_and_resize(image, boxes, 5), (x,))


def test_gradient_stays_inside_the_box():
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    crop_and_resize(x, BOXES[:1]).sum().backward()
    assert x.grad is not None
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[5:60, 3:41] = True
    assert (x.grad[:, :, ~inside] == 0).all()
    assert (x.grad[:, :, inside] > 0).all()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(3.0 * 112 * 112))


def test_half_precision_is_interpolated_in_single_precision():
    x = torch.rand(1, 3, 64, 64).to(torch.bfloat16)
    out = crop_and_resize(x, BOXES[:1])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, crop_and_resize(x.float(), BOXES[:1]).to(torch.bfloat16))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one box for each"):
        crop_and_resize(torch.rand(2, 3, 8, 8), BOXES[:1])
    with pytest.raises(ValueError, match="floating-point"):
        crop_and_resize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), BOXES[:1])
