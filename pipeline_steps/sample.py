"""Sample images of each identity of a cohort, with its fine-tuned weights or without any.

In:  dataset/identities.csv      identities and their genders;
     <loras>/<identity>/         fine-tuned weights; none for the untuned base model.
Out: <out>/<identity>/<index>.png               images;
     <out>/cohorts/<k>-of-<n>.parquet           a row per image: prompt, negative prompt, seed, ...;
     <out>/<identity>/samples.json              keys of the finished images, which are kept.
     Prompts, initial noise and every step's noise are the same for all methods.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4 and supplement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_steps.diffusion.objectives import METHODS, UNTUNED
from pipeline_steps.files.atomic import write_bytes, write_json
from pipeline_steps.files.dataset import cohort_of, read_subjects
from pipeline_steps.files.errors import StepError, run_main
from pipeline_steps.files.hashes import sha256_bytes, sha256_file
from pipeline_steps.files.images import encode_png
from pipeline_steps.files.lease import gpu_lease
from pipeline_steps.files.logs import get_logger, progress
from pipeline_steps.files.manifests import write_manifest
from pipeline_steps.settings.base import Frozen, load_frozen
from pipeline_steps.settings.sample import SampleSettings

if TYPE_CHECKING:
    from pipeline_steps.diffusion.sample_plan import Row
    from pipeline_steps.diffusion.sampler import ImageRequest

RECORD = "samples.json"
BATCH_SIZE = {"cpu": 16, "cuda": 24}
AT_ONCE = 16  # adapters on the network together


def run(
    frozen: Frozen[SampleSettings],
    *,
    dataset: Path,
    out: Path,
    loras: Path | None = None,
    cohort: int = 0,
    cohorts: int = 1,
    device: str = "cpu",
    batch_size: int | None = None,
) -> list[Row]:
    """Sample a cohort and write images and the cohort's manifest.

    Args:
        frozen: The step's configuration, with the role base_model; the variant says base_model,
            method and prompts.
        dataset: Folder of the prepared dataset.
        out: Folder of the variant's images.
        loras: Folder of the method's weights; None for the untuned base model.
        cohort: Number of the cohort, from 0.
        cohorts: Number of cohorts.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image. None: as suits the device.

    Returns:
        The manifest's rows.

    Raises:
        StepError: inputs are missing or do not fit each other.
    """
    from pipeline_steps.diffusion.content_key import weights_hash
    from pipeline_steps.diffusion.sample_plan import (
        COLUMNS,
        adapter_hash,
        image_keys,
        plan_images,
    )

    method = frozen.variant.get("method", "")
    if method != UNTUNED and method not in METHODS:
        raise StepError(f"variant.method is {method!r}; {UNTUNED} or {', '.join(METHODS)} expected")
    if (loras is None) != (method == UNTUNED):
        raise StepError(
            f"method {method!r}: pass --loras for fine-tuned methods, and only for them"
        )
    base_sha256 = weights_hash(frozen.weights["base_model"])
    subjects = cohort_of(read_subjects(dataset), cohort, cohorts)
    rows: list[Row] = []
    for subject in subjects:
        weights_sha256 = base_sha256
        if loras is not None:
            weights_sha256 = adapter_hash(loras / subject.identity, frozen.settings.token)
        rows += plan_images(frozen, method, subject, weights_sha256)
    keys = image_keys(frozen, rows, base_sha256)
    finished = _finished(out, [subject.identity for subject in subjects])
    for row, key in zip(rows, keys, strict=True):
        row["sha256"] = finished.get((row["identity"], row["index"], key))
    pending = [i for i, row in enumerate(rows) if row["sha256"] is None]
    log = get_logger("sample")
    log.info("%d images wanted, %d of them finished", len(rows), len(rows) - len(pending))
    if pending:
        _sample(
            frozen,
            rows,
            keys,
            pending,
            out=out,
            loras=loras,
            device=device,
            batch_size=batch_size or BATCH_SIZE.get(device, 16),
        )
    write_manifest(out / "cohorts" / f"{cohort}-of-{cohorts}.parquet", rows, COLUMNS)
    return rows


def _finished(out: Path, identities: Sequence[str]) -> dict[tuple[str, int, str], str]:
    """(identity, index, key) of the images that are there and whole, to their hash."""
    finished = {}
    for identity in identities:
        for index, (key, digest) in _read_record(out / identity).items():
            image = out / identity / f"{index}.png"
            if image.is_file() and sha256_file(image) == digest:
                finished[identity, int(index), key] = digest
    return finished


def _read_record(folder: Path) -> dict[str, list[str]]:
    try:
        record: dict[str, list[str]] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record
    except (OSError, ValueError):
        return {}


def _sample(
    frozen: Frozen[SampleSettings],
    rows: list[Row],
    keys: Sequence[str],
    pending: Sequence[int],
    *,
    out: Path,
    loras: Path | None,
    device: str,
    batch_size: int,
) -> None:
    """Sample the pending rows, write the images, and fill in the rows' hashes."""
    from pipeline_steps.diffusion.base_models import load_base_model
    from pipeline_steps.diffusion.face_region import to_arrays
    from pipeline_steps.diffusion.lora_files import load_bank
    from pipeline_steps.diffusion.sampler import sample

    settings = frozen.settings
    base = load_base_model(frozen.weights["base_model"], device, settings.precision)
    by_place = {(rows[i]["identity"], rows[i]["index"]): i for i in pending}
    identities = list(dict.fromkeys(rows[i]["identity"] for i in pending))
    label = "/".join(frozen.variant.get(name, "") for name in ("base_model", "method", "prompts"))
    bar = progress(range(0), description=label, total=len(pending), unit="image")
    for start in range(0, len(identities), AT_ONCE):
        part = identities[start : start + AT_ONCE]
        bank = None if loras is None else load_bank(base.unet, [loras / name for name in part])
        batches = sample(
            base,
            [
                _request(rows[i], None if bank is None else part.index(rows[i]["identity"]))
                for i in pending
                if rows[i]["identity"] in part
            ],
            steps=settings.steps,
            guidance=settings.guidance,
            scheduler=settings.scheduler,
            batch_size=batch_size,
            bank=bank,
        )
        for requests, images in batches:
            fresh: dict[str, dict[str, list[str]]] = {}
            for request, image in zip(requests, to_arrays(images), strict=True):
                i = by_place[request.identity, request.index]
                content = encode_png(image)
                write_bytes(out / rows[i]["file"], content)
                rows[i]["sha256"] = sha256_bytes(content)
                entry = [keys[i], rows[i]["sha256"]]
                fresh.setdefault(request.identity, {})[str(request.index)] = entry
            for identity, entries in fresh.items():
                write_json(out / identity / RECORD, _read_record(out / identity) | entries)
            bar.update(len(requests))
        if bank is not None:
            bank.remove()
    bar.close()


def _request(row: Row, adapter: int | None) -> ImageRequest:
    from pipeline_steps.diffusion.sampler import ImageRequest

    return ImageRequest(
        identity=row["identity"],
        index=row["index"],
        prompt=row["prompt"],
        negative_prompt=row["negative_prompt"],
        seed=row["seed"],
        adapter=adapter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_steps.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="frozen configuration (JSON)")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--loras", type=Path, help="folder of the method's weights")
    parser.add_argument("--cohort", type=int, default=0, help="number of the cohort, from 0")
    parser.add_argument("--cohorts", type=int, default=1, help="number of cohorts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the variant's images")
    parser.add_argument(
        "--batch-size", type=int, help="images sampled together; changes speed and memory only"
    )
    arguments = parser.parse_args(argv)
    frozen = load_frozen(arguments.config, SampleSettings)
    with gpu_lease() as device:
        run(
            frozen,
            dataset=arguments.dataset,
            out=arguments.out,
            loras=arguments.loras,
            cohort=arguments.cohort,
            cohorts=arguments.cohorts,
            device=device,
            batch_size=arguments.batch_size,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
