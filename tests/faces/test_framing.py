"""Square crops: geometry, and points that follow the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_steps.faces.alignment import Square, shrunk, unshrunk


def test_square_is_centred_on_the_face_and_shows_the_margin():
    square = Square.about_face(np.array([100.0, 120.0, 160.0, 200.0]), 480, 640, margin=2.0)
    assert square == Square(left=50.5, top=80.5, side=160.0)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([5.0, 10.0, 85.0, 90.0], Square(0.0, 0.0, 160.0)),
        ([560.0, 400.0, 640.0, 480.0], Square(480.0, 320.0, 160.0)),
        ([100.0, 100.0, 500.0, 400.0], Square(60.5, 0.0, 480.0)),
    ],
)
def test_square_stays_inside_the_image(box, expected):
    assert Square.about_face(np.array(box), 480, 640, margin=2.0) == expected


def test_face_stands_in_the_middle_of_its_crop():
    square = Square.about_face(np.array([100.0, 120.0, 160.0, 200.0]), 480, 640, margin=2.0)
    np.testing.assert_allclose(square.points(np.array([130.0, 160.0]), 64), 31.5)


@pytest.mark.parametrize("size", [32, 100, 333])
def test_points_follow_the_pixels(size):
    image = np.zeros((200, 260, 3), np.uint8)
    image[90:93, 140:143] = 255
    square = Square(left=60.5, top=20.25, side=150.0)
    cut = square.cut(image, size)[..., 0].astype(float)
    rows, columns = np.mgrid[:size, :size]
    centre = [(cut * columns).sum() / cut.sum(), (cut * rows).sum() / cut.sum()]
    np.testing.assert_allclose(centre, square.points(np.array([141.0, 91.0]), size), atol=0.1)


def test_fine_patterns_are_averaged_and_not_aliased():
    image = np.zeros((256, 256, 3), np.uint8)
    image[::2] = 255
    cut = Square(0, 0, 256).cut(image, 32)
    assert np.abs(cut.astype(float) - 127.5).max() < 8


def test_shrinking_and_back():
    image = np.zeros((301, 400, 3), np.uint8)
    image[100:106, 200:206] = 255
    small, across, down = shrunk(image, 200)
    assert small.shape == (150, 200, 3)
    rows, columns = np.nonzero(small[..., 0])
    weights = small[rows, columns, 0].astype(float)
    centre = np.array([np.average(columns, weights=weights), np.average(rows, weights=weights)])
    np.testing.assert_allclose(unshrunk(centre, across, down), [202.5, 102.5], atol=0.5)
    same, across, down = shrunk(image, 400)
    assert same is image
    assert (across, down) == (1.0, 1.0)
