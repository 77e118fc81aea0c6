"""Titles of the report's tables, and its figures with their captions."""

from __future__ import annotations

# Kind of table -> its title, in the page's order.
TITLES = {
    "quality": "Quality, fidelity, diversity",
    "identity": "Identity",
    "recognition": "Recognition",
    "pose": "Head pose",
    "audit": "Identity audit",
}
# (file, caption, text in place of the image); {by} names the recogniser that judged.
PICTURES = (
    (
        "overview.png",
        "Photographs (framed) and generated images of the same people. Under each image: mean "
        "cosine similarity to the person’s photographs{by}.",
        "Grid: per row one person’s photograph, then generated images of that person",
    ),
    (
        "samples.png",
        "The same prompts, seeds and noise for every method. Under each image: mean cosine "
        "similarity to the person’s photographs{by}.",
        "Grid: photographs of one person, then a row of generated images per method",
    ),
    (
        "distributions.svg",
        "Similarity of genuine (filled) and impostor pairs (dashed), to the photographs and among "
        "the generated images{by}.",
        "Density curves of genuine and impostor similarity per method",
    ),
    (
        "pose.svg",
        "Head pose of every generated image (coloured) over that of the photographs (grey); σ is "
        "the standard deviation of yaw × pitch.",
        "Scatter of yaw and pitch per method",
    ),
    (
        "attributes.svg",
        "What the prompts asked for, and how well the images then show the person: mean similarity "
        "to the person’s photographs{by}, with its 95 % interval by images, and the share of "
        "images in which a face was found.",
        "Dots per expression and place: similarity and share of images with a face per method",
    ),
)
