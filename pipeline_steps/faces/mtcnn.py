"""The three-stage face detector MTCNN over batches of equal-sized images.

Source: Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional
networks", IEEE SPL 2016, with the networks, weights and conventions of facenet-pytorch 2.6 (MIT;
its boxes and landmarks are reproduced). Only that package's weight files are used: importing it
costs two seconds, for parts that are not needed here. Other than there,

- suppression runs for each image on its own, so that what else is in a batch changes nothing;
- all candidates are cut out at once through an integral image, exactly, and the device is waited
  for four times per batch instead of for each candidate;
- candidates that lie wholly outside the image are dropped instead of raising an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline_steps.io.tensors import send
from pipeline_steps.io.weights import require_whole
from pipeline_steps.runtime.errors import StepError

THRESHOLDS = (0.6, 0.7, 0.7)
PYRAMID_FACTOR = 0.709
PROPOSAL_CELL = 12  # pixels
PROPOSAL_STRIDE = 2
REFINE_SIZE = 24
OUTPUT_SIZE = 48
OVERLAP_IN_SCALE = 0.5
OVERLAP = 0.7
CANDIDATES_PER_PASS = 1024


class Stage(nn.Module):
    """A network of MTCNN with facenet-pytorch's weights: a trunk and one layer for each answer.

    Args:
        weights: file in facenet-pytorch's folder of weights.
        trunk: layers in the file's order.
        answers: layers behind them: face or not, shift of the box's sides, landmarks if any.

    Raises:
        StepError: facenet-pytorch, which brings the weights, is not installed.
    """

    def __init__(self, weights: str, trunk: Sequence[nn.Module], *answers: nn.Module) -> None:
        super().__init__()
        self.trunk, self.answers = nn.Sequential(*trunk), nn.ModuleList(answers)
        package = find_spec("facenet_pytorch")
        if package is None or package.origin is None:
            raise StepError(
                "the face detector's weights come with the package facenet-pytorch, which is "
                "missing: install the project's requirements"
            )
        path = Path(package.origin).parent / "data" / weights
        stored = torch.load(path, map_location="cpu", weights_only=True)
        own = list(self.state_dict())  # the same tensors in the same order, by other names
        mend = "Install facenet-pytorch anew"
        require_whole(path, own[len(stored) :], list(stored)[len(own) :], mend=mend)
        self.load_state_dict(dict(zip(own, stored.values(), strict=True)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Answers about x [n, 3, h, w], RGB as of `_normalised`; the last are probabilities."""
        x = self.trunk(x)
        face, *others = (answer(x) for answer in self.answers)
        return [*others, torch.softmax(face, dim=1)]


class _ColumnsFirst(nn.Module):
    """[n, c, h, w] -> [n, w * h * c]: the order in which the original flattened it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


def _layers(inputs: int, outputs: int, kernel: int, pool: int = 0) -> list[nn.Module]:
    pooling = [nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else []
    return [nn.Conv2d(inputs, outputs, kernel), nn.PReLU(outputs), *pooling]


def _proposal() -> Stage:
    """[n, 3, h, w] -> shift [n, 4, rows, columns], probabilities [n, 2, rows, columns]."""
    trunk = [*_layers(3, 10, 3, pool=2), *_layers(10, 16, 3), *_layers(16, 32, 3)]
    return Stage("pnet.pt", trunk, nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1))


def _refine() -> Stage:
    """[n, 3, 24, 24] -> shift [n, 4], probabilities [n, 2]."""
    trunk = [*_layers(3, 28, 3, pool=3), *_layers(28, 48, 3, pool=3), *_layers(48, 64, 2)]
    trunk += [_ColumnsFirst(), nn.Linear(576, 128), nn.PReLU(128)]
    return Stage("rnet.pt", trunk, nn.Linear(128, 2), nn.Linear(128, 4))


def _output() -> Stage:
    """[n, 3, 48, 48] -> shift [n, 4], landmarks [n, 10], probabilities [n, 2]."""
    trunk = [*_layers(3, 32, 3, pool=3), *_layers(32, 64, 3, pool=3), *_layers(64, 64, 3, pool=2)]
    trunk += [*_layers(64, 128, 2), _ColumnsFirst(), nn.Linear(1152, 256), nn.PReLU(256)]
    return Stage("onet.pt", trunk, nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10))


class Cascade(nn.Module):
    """Proposal, refinement and output network with facenet-pytorch's weights, in evaluation mode.

    Args:
        min_face_size: side of the smallest face that is searched for, in pixels.
        thresholds: face probability that a candidate must exceed after each stage.
    """

    def __init__(
        self, min_face_size: int = 20, thresholds: tuple[float, float, float] = THRESHOLDS
    ) -> None:
        super().__init__()
        self.proposal, self.refine, self.output = _proposal(), _refine(), _output()
        self.min_face_size = min_face_size
        self.thresholds = thresholds
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Find all faces.

        Args:
            images: uint8 [n, 3, h, w] RGB, on the networks' device.

        Returns:
            For each image: float32 [m, 5] x1, y1, x2, y2, probability and float32 [m, 5, 2]
            landmarks, in pixels; boxes may reach outside the image.

        Raises:
            ValueError: the images are not uint8 [n, 3, h, w].
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 [n, 3, h, w], got {images.dtype} {images.shape}")
        boxes, owner = self._propose(images)
        area = _integral(images)
        boxes, owner, shift, _ = self._pass(self.refine, 1, REFINE_SIZE, area, boxes, owner)
        kept = _suppress(boxes, owner, OVERLAP)
        boxes, owner = _squares(_regress(boxes[kept], shift[kept])), owner[kept]
        boxes, owner, shift, points = self._pass(self.output, 2, OUTPUT_SIZE, area, boxes, owner)
        landmarks = _landmarks(boxes, points)
        boxes = _regress(boxes, shift)
        found = []
        for index in range(len(images)):
            mine = owner == index
            own_boxes, own_landmarks = boxes[mine].numpy(), landmarks[mine].numpy()
            best = _best_first(own_boxes, OVERLAP, nested=True)
            found.append((own_boxes[best], own_landmarks[best]))
        return found

    def scales(self, height: int, width: int) -> list[float]:
        """Factors of the image pyramid: the smallest face fills one proposal cell in the first."""
        factor = PROPOSAL_CELL / self.min_face_size
        side, factors = min(height, width) * factor, []
        while side >= PROPOSAL_CELL:
            factors.append(factor)
            factor, side = factor * PYRAMID_FACTOR, side * PYRAMID_FACTOR
        return factors

    def _propose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Square candidates [m, 5] on the CPU, and the index [m] of the image each lies in."""
        pixels = images.float()
        height, width = images.shape[2:]
        shifts, faces, corners, levels = [], [], [], []
        for level, scale in enumerate(self.scales(height, width)):
            size = (int(height * scale + 1), int(width * scale + 1))
            shift, face = self.proposal(_normalised(F.interpolate(pixels, size, mode="area")))
            rows, columns = face.shape[2:]
            shifts.append(shift.flatten(2))
            faces.append(face[:, 1].flatten(1))
            corners.append(_cells(rows, columns, scale))
            levels.append(torch.full((rows * columns,), level))
        if not levels:
            return torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
        face = torch.cat(faces, dim=1)
        owner, cell = torch.nonzero(face >= self.thresholds[0], as_tuple=True)
        values = torch.cat([face[owner, cell, None], torch.cat(shifts, dim=2)[owner, :, cell]], 1)
        # From here on the host: a few hundred boxes for each image.
        # One copy for all, exact in double precision.
        table = torch.cat([owner[:, None], cell[:, None], values.double()], dim=1).cpu()
        owner, cell, values = table[:, 0].long(), table[:, 1].long(), table[:, 2:].float()
        boxes = torch.cat([torch.cat(corners)[cell], values], dim=1)
        group = owner * len(levels) + torch.cat(levels)[cell]
        kept = _suppress(boxes, group, OVERLAP_IN_SCALE)
        boxes, owner = boxes[kept], owner[kept]
        kept = _suppress(boxes, owner, OVERLAP)
        boxes, owner = boxes[kept], owner[kept]
        extent = boxes[:, 2:4] - boxes[:, :2]
        moved = boxes[:, :4] + boxes[:, 5:9] * extent.repeat(1, 2)
        return _squares(torch.cat([moved, boxes[:, 4:5]], dim=1)), owner

    def _pass(
        self, network: Stage, stage: int, size: int, area: Tensor, boxes: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Candidates that a stage's network takes for faces, all on the CPU.

        Args:
            network, stage, size: which network; number of its threshold; side of its input.
            area: integral images.
            boxes, owner: candidates [m, >= 4], and the image that each lies in.

        Returns:
            boxes [k, 5] with the new probability; owner [k]; shift [k, 4] of the box's sides in its
            own width and height; landmarks [k, 10] likewise (five x, then five y; no columns where
            the network has none).
        """
        chosen, bounds = _pixel_bounds(boxes, area.shape[1] - 1, area.shape[2] - 1)
        boxes, owner = boxes[chosen], owner[chosen]
        # The networks cannot take an empty batch, but no candidates still have columns.
        tables = [torch.zeros(0, 16 if network is self.output else 6, device=area.device)]
        place, bounds = send(owner, area.device), send(bounds, area.device)
        for start in range(0, len(owner), CANDIDATES_PER_PASS):
            some = slice(start, start + CANDIDATES_PER_PASS)
            crops = _area_crops(area, place[some], bounds[some], size)
            tables.append(torch.cat(network(_normalised(crops)), dim=1))
        table = torch.cat(tables).cpu()
        passed = table[:, -1] > self.thresholds[stage]
        boxes = torch.cat([boxes[:, :4], table[:, -1:]], dim=1)[passed]
        return boxes, owner[passed], table[passed, :4], table[passed, 4:-2]


def _normalised(pixels: Tensor) -> Tensor:
    """Pixel values in [0, 255] as the networks were trained on them."""
    return (pixels - 127.5) * 0.0078125


def _cells(rows: int, columns: int, scale: float) -> Tensor:
    """Corners [rows * columns, 4] of the proposal network's cells in the image's pixels."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corner = torch.stack([x.flatten(), y.flatten()], dim=1).float() * PROPOSAL_STRIDE
    return torch.cat([corner + 1, corner + PROPOSAL_CELL], dim=1).div(scale).floor()


def _squares(boxes: Tensor) -> Tensor:
    """Boxes [m, 5] made square about their centres."""
    extent = boxes[:, 2:4] - boxes[:, :2]
    side = extent.max(dim=1, keepdim=True).values
    corner = boxes[:, :2] + extent * 0.5 - side * 0.5
    return torch.cat([corner, corner + side, boxes[:, 4:]], dim=1)


def _regress(boxes: Tensor, shift: Tensor) -> Tensor:
    """Boxes [m, 5] whose sides are moved by shift [m, 4] times their width and height."""
    extent = boxes[:, 2:4] - boxes[:, :2] + 1
    return torch.cat([boxes[:, :4] + shift * extent.repeat(1, 2), boxes[:, 4:]], dim=1)


def _landmarks(boxes: Tensor, points: Tensor) -> Tensor:
    """Landmarks [m, 5, 2] in pixels from points [m, 10] relative to boxes [m, 5]."""
    extent = boxes[:, 2:4] - boxes[:, :2] + 1
    relative = torch.stack([points[:, :5], points[:, 5:]], dim=2)
    return extent[:, None] * relative + boxes[:, None, :2] - 1


def _suppress(boxes: Tensor, group: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes [m, >= 5] that non-maximum suppression within each group keeps."""
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.long)
    order = torch.argsort(group, stable=True).numpy()
    sizes = torch.unique_consecutive(group[order], return_counts=True)[1].numpy()
    array = boxes.numpy()
    kept = [
        members[_best_first(array[members], overlap, nested=False)]
        for members in np.split(order, np.cumsum(sizes)[:-1])
    ]
    return torch.from_numpy(np.concatenate(kept))


def _best_first(boxes: NDArray[np.float32], overlap: float, *, nested: bool) -> list[int]:
    """Non-maximum suppression.

    Args:
        boxes: [m, >= 5] x1, y1, x2, y2, score.
        overlap: largest overlap with a better box that a box may have.
        nested: measure the intersection against the smaller box, the last pixel counted in; else
            against the union, without it.

    Returns:
        Indices of the boxes that are kept, in falling order of score.
    """
    pixel = 1 if nested else 0
    corner, end = boxes[:, :2], boxes[:, 2:4]
    area = np.prod(end - corner + pixel, axis=1)
    remaining = np.argsort(-boxes[:, 4], kind="stable")
    kept: list[int] = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        kept.append(int(best))
        sides = np.minimum(end[best], end[others]) - np.maximum(corner[best], corner[others])
        shared = np.prod(np.maximum(sides + pixel, 0), axis=1)
        union = area[best] + area[others] - shared
        whole = np.minimum(area[best], area[others]) if nested else union
        remaining = others[shared <= overlap * whole]
    return kept


def _pixel_bounds(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which boxes touch the image [m], and the touching ones' x1, y1, x2, y2 (exclusive) in it."""
    corner = boxes[:, :4].trunc().long()
    first = (corner[:, :2] - 1).clamp(min=0)
    last = torch.minimum(corner[:, 2:], torch.tensor([width, height]))
    inside = (last > first).all(dim=1)
    return inside, torch.cat([first, last], dim=1)[inside]


def _integral(images: Tensor) -> Tensor:
    """Sums [n, h + 1, w + 1, 3] over everything above and left, exact in whole numbers."""
    largest = 255 * images.shape[2] * images.shape[3]
    dtype = torch.int32 if largest < 2**31 else torch.int64
    sums = images.permute(0, 2, 3, 1).cumsum(dim=1, dtype=dtype).cumsum(dim=2, dtype=dtype)
    return F.pad(sums, (0, 0, 1, 0, 1, 0))


def _area_crops(area: Tensor, owner: Tensor, bounds: Tensor, size: int) -> Tensor:
    """Mean colours [m, 3, size, size] of the cells of candidates, as adaptive average pooling.

    Args:
        area: [n, h + 1, w + 1, 3] integral images.
        owner: [m] index of the image of each candidate.
        bounds: [m, 4] x1, y1, x2, y2 in pixels.
    """
    owner = owner[:, None, None]
    step = torch.arange(size, device=area.device)
    length = (bounds[:, 2:] - bounds[:, :2])[:, :, None]
    start = bounds[:, :2, None] + step * length // size
    stop = bounds[:, :2, None] + -(-(step + 1) * length // size)
    left, top, right, bottom = start[:, 0], start[:, 1], stop[:, 0], stop[:, 1]

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return area[owner, y[:, :, None], x[:, None, :]]

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    count = (bottom - top)[:, :, None] * (right - left)[:, None, :]
    return (total / count[..., None]).permute(0, 3, 1, 2)
