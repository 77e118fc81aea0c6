"""Alignment to the template, and square crops."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data
from skimage.transform import SimilarityTransform, warp

from pipeline_steps.faces import alignment
from pipeline_steps.faces.alignment import Square, shrunk, unshrunk

# Landmarks of the astronaut's photograph, in its 512 x 512 pixels.
ASTRONAUT = np.array(
    [[205.0, 101.7], [246.8, 103.7], [224.7, 129.0], [201.7, 139.2], [245.3, 141.9]]
)


def test_similarity_transform_equals_scikit_images():
    rng = np.random.default_rng(5)
    for _ in range(20):
        source = rng.normal(size=(5, 2)) * 40 + 100
        target = rng.normal(size=(5, 2)) * 40 + 100
        expected = SimilarityTransform.from_estimate(source, target).params[:2]
        np.testing.assert_allclose(
            alignment.similarity_transform(source, target), expected, rtol=1e-9, atol=1e-9
        )


def test_similarity_transform_recovers_a_known_one():
    angle, scale, shift = np.radians(25), 0.4, np.array([12.0, -7.0])
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = ASTRONAUT @ matrix.T + shift
    found = alignment.similarity_transform(ASTRONAUT, moved)
    np.testing.assert_allclose(found, np.column_stack([matrix, shift]), atol=1e-9)
    np.testing.assert_allclose(alignment.transform_points(found, ASTRONAUT), moved, atol=1e-9)


def test_a_mirrored_face_is_not_reflected_onto_the_template():
    mirrored = alignment.ARCFACE_TEMPLATE * [-1.0, 1.0]
    matrix = alignment.similarity_transform(mirrored, alignment.ARCFACE_TEMPLATE)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("size", [112, 96])
def test_aligned_face_equals_scikit_images_warp(size):
    image = data.astronaut()
    target = alignment.ARCFACE_TEMPLATE * size / 112
    transform = SimilarityTransform.from_estimate(ASTRONAUT, target)
    expected = warp(
        image, transform.inverse, output_shape=(size, size), order=1, cval=0.0, preserve_range=True
    )
    aligned = alignment.align_to_template(image, ASTRONAUT, size)
    assert aligned.dtype == np.uint8
    assert aligned.shape == (size, size, 3)
    difference = np.abs(aligned - expected)
    assert difference.max() < 4.0  # OpenCV interpolates with five bits of fraction
    assert difference.mean() < 0.6


def test_outside_of_the_image_is_black_and_colours_keep_their_order():
    image = np.empty((112, 112, 3), np.uint8)
    image[:] = (200, 100, 50)
    shifted = alignment.ARCFACE_TEMPLATE - 30.0
    aligned = alignment.align_to_template(image, shifted)
    assert (aligned[:29, :29] == 0).all()
    assert (aligned[32:, 32:] == (200, 100, 50)).all()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.ones((5, 2)), alignment.ARCFACE_TEMPLATE, "coincide"),
        (np.full((5, 2), np.nan), alignment.ARCFACE_TEMPLATE, "finite"),
        (np.ones((4, 2)), alignment.ARCFACE_TEMPLATE, "equal arrays"),
        (np.ones((5, 3)), np.ones((5, 3)), "equal arrays"),
    ],
)
def test_points_without_a_transform_are_refused(source, target, message):
    with pytest.raises(ValueError, match=message):
        alignment.similarity_transform(source, target)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)])
def test_anything_but_uint8_colour_is_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        alignment.align_to_template(image, ASTRONAUT)


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
