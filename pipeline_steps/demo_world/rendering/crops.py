"""Faces as the study cuts them out: aligned to the template, or a detector's box stretched.

Both come from the renderer's own landmarks, with a detector's scatter. The recogniser must know
both: it judges aligned crops in the evaluation and stretched boxes inside the identity losses.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline_steps.demo_world.pretraining.autoencoder_training import halve
from pipeline_steps.demo_world.pretraining.training_images import TrainingImages
from pipeline_steps.faces.alignment import align_to_template
from pipeline_steps.runtime.logs import progress
from pipeline_steps.seeds import numpy_generator

SIZE = 112  # pixels
SCATTER = 0.045  # of the interpupillary distance, about what the detector shows on renders
# MTCNN's box on frontal renders, in eye-to-mouth distances: width, height, centre below the eyes.
BOX_WIDTH, BOX_HEIGHT, BOX_DROP = 1.95, 2.75, 0.33


def stretched_box(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut out about the box that a detector would find, and stretch it.

    Args:
        image: uint8 [s, s, 3] RGB.
        marks: true landmarks [5, 2], pixels.
        rng: scatter of the box.

    Returns:
        uint8 [112, 112, 3].
    """
    eyes, mouth = marks[:2].mean(0), marks[3:].mean(0)
    drop = max(float(np.linalg.norm(mouth - eyes)), 0.08 * image.shape[1])
    w, h = drop * np.array([BOX_WIDTH, BOX_HEIGHT]) * (1 + rng.normal(0, 0.07, 2))
    x = 0.5 * (eyes[0] + mouth[0]) + rng.normal(0, 0.06 * w)
    y = eyes[1] + BOX_DROP * drop + rng.normal(0, 0.05 * h)
    corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    limit = image.shape[1]
    left, top, right, bottom = (int(np.clip(round(c), 0, limit)) for c in corners)
    face = Image.fromarray(image).crop((left, top, max(right, left + 8), max(bottom, top + 8)))
    return np.asarray(face.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def face_crops(
    facts: TrainingImages, seed: int, *, low_resolution: float = 0.6, stretched: float = 0.35
) -> np.ndarray:
    """Cut the face out of every photograph.

    Args:
        facts: n photographs with landmarks.
        seed: of the scatter and the shares.
        low_resolution: share that comes from the image at half size, as samples do.
        stretched: share that is cut by box; the others are aligned.

    Returns:
        uint8 [n, 112, 112, 3].
    """
    rng = numpy_generator(seed, "crops")
    out = np.empty((len(facts.images), SIZE, SIZE, 3), np.uint8)
    for i in progress(range(len(out)), description="face crops", total=len(out)):
        image, marks = np.asarray(facts.images[i]), np.asarray(facts.landmarks[i], np.float64)
        if rng.random() < low_resolution:
            image, marks = halve(image[None])[0], (marks + 0.5) / 2 - 0.5
        if rng.random() < stretched:
            out[i] = stretched_box(image, marks, rng)
            continue
        span = max(float(np.linalg.norm(marks[0] - marks[1])), 0.12 * image.shape[1])
        common = rng.normal(0, 0.5 * SCATTER, 2)
        out[i] = align_to_template(image, marks + span * (common + rng.normal(0, SCATTER, (5, 2))))
    return out
