"""Detection held against facenet-pytorch's own detector; the face region and its gradients."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from skimage import data
from torch.nn import functional
from torch.nn import functional as F
from torchvision.ops import batched_nms

from pipeline_steps.faces import mtcnn
from pipeline_steps.faces.detection import Detector, crop_and_resize, integer_boxes

ASTRONAUT = data.astronaut()  # NASA, public domain: one face among other things
CAT = data.chelsea()


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture(scope="module")
def reference():
    return MTCNN()


def resized(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def two_faces():
    """A large face on the left, a small one on the right."""
    face = ASTRONAUT[20:220, 130:330]
    canvas = np.full((220, 360, 3), 90, np.uint8)
    canvas[10:210, 5:205] = face
    canvas[60:160, 240:340] = resized(face, 100)
    return canvas


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(ASTRONAUT, id="whole"),
        pytest.param(ASTRONAUT[:180, 140:400], id="wide"),
        pytest.param(resized(ASTRONAUT[20:220, 130:330], 64), id="small"),
        pytest.param(two_faces(), id="two"),
        pytest.param(ASTRONAUT[90:180, 180:270], id="cut off"),
    ],
)
def test_equals_facenet_pytorchs_detector(detector, reference, image):
    boxes, probabilities, landmarks = reference.detect([image], landmarks=True)
    face = detector.detect([image])[0]
    if boxes[0] is None:
        assert face is None
        return
    assert 1 + len(face.others) == len(boxes[0])
    np.testing.assert_allclose(face.box, boxes[0][0].astype(float), atol=1e-3)
    np.testing.assert_allclose(face.landmarks, landmarks[0][0].astype(float), atol=1e-3)
    assert face.probability == pytest.approx(float(probabilities[0][0]), abs=1e-5)


def test_batching_and_order_change_nothing(detector):
    small = resized(ASTRONAUT[20:220, 130:330], 96)
    images = [small, CAT[:96, :96].copy(), small[:, ::-1].copy(), two_faces(), small // 2, small]
    alone = [detector.detect([image])[0] for image in images]
    together = detector.detect(images)
    assert alone[1] is None
    assert together[1] is None
    for one, other in zip(alone, together, strict=True):
        if one is not None:
            assert other is not None
            assert len(other.others) == len(one.others)
            np.testing.assert_allclose(other.box, one.box, atol=1e-3)
            np.testing.assert_allclose(other.landmarks, one.landmarks, atol=1e-3)


def test_tensor_and_arrays_give_the_same(detector):
    image = resized(ASTRONAUT, 256)
    from_tensor = detector.detect_tensor(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    np.testing.assert_array_equal(from_tensor.box, detector.detect([image])[0].box)


def test_largest_face_is_taken_and_all_are_counted(detector):
    face = detector.detect([two_faces()])[0]
    assert len(face.others) == 1
    assert face.box[2] < 220


def test_landmarks_stand_in_the_image_order(detector):
    left_eye, right_eye, nose, left_mouth, right_mouth = detector.detect([ASTRONAUT])[0].landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_padding_finds_faces_at_the_border_in_the_images_own_coordinates(detector):
    whole = detector.detect([ASTRONAUT])[0]
    padded = detector.detect([ASTRONAUT], padding=0.5)[0]
    np.testing.assert_allclose(padded.landmarks, whole.landmarks, atol=3.0)
    top = int(whole.box[1]) + 40  # through the eyebrows
    cut = ASTRONAUT[top:, 120:320]
    assert detector.detect([cut])[0] is None
    found = detector.detect([cut], padding=0.5)[0]
    np.testing.assert_allclose(found.landmarks, whole.landmarks - [120, top], atol=4.0)


@pytest.mark.parametrize("shape", [(8, 8, 3), (16, 300, 3), (12, 12, 3)])
def test_images_smaller_than_any_face_have_none(detector, shape):
    assert detector.detect([np.zeros(shape, np.uint8)]) == [None]


def test_noise_and_nothing(detector):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    assert detector.detect([noise]) == [None]
    assert detector.detect([]) == []


def test_candidates_at_the_border_are_cut_and_those_outside_dropped():
    boxes = torch.tensor([[-5.0, -5, 6, 6, 1], [20, 20, 31, 40, 1], [-9, -9, -2, -2, 1]])
    inside, bounds = mtcnn._pixel_bounds(boxes, 30, 30)
    assert inside.tolist() == [True, True, False]
    assert bounds.tolist() == [[0, 0, 6, 6], [19, 19, 30, 30]]


def test_candidates_are_cut_out_by_exact_area_averages():
    images = torch.from_numpy(np.stack([ASTRONAUT[:90, 150:260], ASTRONAUT[90:180, 150:260]]))
    images = images.permute(0, 3, 1, 2)
    bounds = torch.tensor([[3, 5, 60, 71], [100, 80, 110, 90], [0, 0, 110, 90]])
    owner = torch.tensor([1, 0, 1])
    crops = mtcnn._area_crops(mtcnn._integral(images), owner, bounds, 24)
    for crop, index, (x1, y1, x2, y2) in zip(crops, owner, bounds.tolist(), strict=True):
        cut = images[index, None, :, y1:y2, x1:x2].double()
        expected = F.interpolate(cut, (24, 24), mode="area")[0]
        torch.testing.assert_close(crop.double(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("image", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3))])
def test_anything_but_uint8_colour_is_refused(detector, image):
    with pytest.raises(ValueError, match="uint8"):
        detector.detect([image])


def test_negative_padding_is_refused(detector):
    with pytest.raises(ValueError, match="padding"):
        detector.detect([ASTRONAUT], padding=-0.1)


@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_torchvisions(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(60, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + torch.rand(60, 2, generator=generator) * 40], dim=1)
    scores = torch.rand(60, generator=generator)
    group = torch.randint(0, 3, (60,), generator=generator)
    table = torch.cat([boxes, scores[:, None]], dim=1)
    expected = batched_nms(boxes, scores, group, 0.5)
    assert sorted(mtcnn._suppress(table, group, 0.5).tolist()) == sorted(expected.tolist())


def test_detection_does_not_import_what_it_does_not_need():
    program = "import pipeline_steps.faces.detection, sys; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


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
