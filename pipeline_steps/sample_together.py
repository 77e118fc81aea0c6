"""Sample images of several people together, by a method that looks at photographs.

In:  dataset/manifest.parquet, dataset/images/  photographs; the method's weights as in sample.
Out: <out>/<group>/<index>.png   images;
     <out>/manifest.parquet      a row each: the people from left to right as they are named, their
                                 masks, and the label: together, where each has a mask, or morph,
                                 a face that is nobody's, where they have none.
     Nothing goes on from here: these images are aligned, scored, trained on and exported as nobody.

Source: Face Fusion, Eq. 6 and 7.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline_steps.io.atomic import write_bytes
from pipeline_steps.io.hashes import sha256_bytes, sha256_json
from pipeline_steps.io.images import encode_png
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.seeds import seed_for
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import TogetherSettings

MORPH, TOGETHER = "morph", "together"  # labels


def run(
    frozen: Frozen[TogetherSettings],
    *,
    dataset: Path,
    out: Path,
    loras: Path | None = None,
    device: str = "cpu",
) -> list[dict[str, object]]:
    """Sample all groups and write the images with their manifest.

    Args:
        frozen: The step's configuration, with the role base_model; the variant says base_model and
            method.
        dataset: Folder of the prepared dataset.
        out: Folder of the images; what lies there and isn't made now goes.
        loras: Folder of the weights that the study has trained for the method, if any.
        device: "cpu" or "cuda".

    Returns:
        The manifest's rows.

    Raises:
        StepError: a person has no photograph, a mask is of another size, or a size doesn't suit
            the base model.
    """
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.base_models.base import to_arrays
    from pipeline_steps.diffusion.sampling.references import References, Together, masks_of
    from pipeline_steps.diffusion.sampling.sampler import ImageRequest, Sampling, sample

    how, weights = frozen.settings.sample, frozen.weights["base_model"]
    own = Frozen(frozen.study, "sample", frozen.seed, how, frozen.weights, frozen.variant)
    handed = References(own, dataset, loras)
    base = load_base_model(weights, device, how.precision)
    rows: list[dict[str, object]] = []
    for name, group in frozen.settings.groups.items():
        height, width = group.size or (base.resolution, base.resolution)
        masks = None if group.masks is None else masks_of(group.masks, height, width)
        requests = [
            ImageRequest(
                *(name, index, group.prompt, "", seed_for(frozen.seed, "together", name, index)), 0
            )
            for index in range(group.images)
        ]
        sampling = Sampling(how.steps, how.guidance, how.scheduler, min(group.images, 16))
        sized = replace(base, size=(height, width))
        with handed.on(base, group.people) as each:
            try:
                made = list(sample(sized, requests, sampling, bank=Together(each, masks)))
            except (RuntimeError, ValueError) as error:
                raise StepError(
                    f"sample_together.groups.{name}: images of {width}x{height} pixels do not suit "
                    f"{weights.name!r} ({error}): take multiples of {base.resolution // 2}"
                ) from error
        pairs = [pair for batch, i in made for pair in zip(batch, to_arrays(i), strict=True)]
        for request, image in pairs:
            content, file = encode_png(image), f"{name}/{request.index}.png"
            write_bytes(out / file, content)
            rows.append(
                {
                    "group": name,
                    "index": request.index,
                    "file": file,
                    "sha256": sha256_bytes(content),
                    "people": list(group.people),
                    "masks": list(group.masks or ()),
                    "label": TOGETHER if group.masks or len(group.people) == 1 else MORPH,
                    "prompt": group.prompt,
                    "seed": request.seed,
                    "steps": how.steps,
                    "guidance": how.guidance,
                    "scheduler": how.scheduler,
                    "base_model": weights.name,
                    "method": frozen.variant["method"],
                    "weights_sha256": sha256_json([handed.origin(p, "")[0] for p in group.people]),
                }
            )
    for path in set(out.rglob("*.png")) - {out / str(row["file"]) for row in rows}:
        path.unlink()
    write_manifest(out / "manifest.parquet", rows, tuple(rows[0]))
    get_logger("sample_together").info("%d images written to %s", len(rows), out)
    return rows


main = command(run)

if __name__ == "__main__":
    raise SystemExit(run_main(main))
