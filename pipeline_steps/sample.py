"""Sample images of each identity of a share, with what the method has trained or without any.

In:  dataset/identities.csv      identities and their genders; with identity guidance, and with a
                                 gate that asks for similarity, dataset/embeddings too;
     <loras>/<identity>/         fine-tuned weights, the study's own or from elsewhere; of a method
                                 with one set of weights for everybody these, in <loras>; none for
                                 a method that trains nothing.
     dataset/images/             photographs, for a method that looks at them.
Out: <out>/<identity>/<index>.png               images, or with store: shards these in
     <out>/<identity>/images.tar, once they are finished;
     <out>/shares/<k>-of-<n>.parquet           a row per sample: prompt, seed, hashes, ...; with a
                                                gate, unusable samples are rows with kept = false
                                                and the reason, and another attempt is made;
     <out>/<identity>/items.json                keys of the finished samples, which are kept.
     Prompts, initial noise and every step's noise are the same for all methods.

Source: Tomasevic et al., "ID-Booth", FG 2025, Section 4 and supplement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline_steps.diffusion.methods import METHODS
from pipeline_steps.identities.dataset import Subject, read_subjects, share_of
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.shards import pack, unpack
from pipeline_steps.runtime.logs import get_logger
from pipeline_steps.runtime.signals import stop_requested
from pipeline_steps.study.command import command, run_main
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.sampling import SampleSettings
from pipeline_steps.study.store import Store
from pipeline_steps.study.versions import made_with, versions_behind

if TYPE_CHECKING:
    from pipeline_steps.diffusion.sampling.gate import Measure
    from pipeline_steps.diffusion.sampling.plan import Row

BATCH_SIZE = {"cpu": 16, "cuda": 24}


def run(
    frozen: Frozen[SampleSettings],
    *,
    dataset: Path,
    out: Path,
    loras: Path | None = None,
    share: int = 0,
    shares: int = 1,
    device: str = "cpu",
    batch_size: int | None = None,
    compile: Literal["auto", "on", "off"] = "auto",
    other_base_model: bool = False,
    measure: Measure | None = None,
) -> list[Row]:
    """Sample a share of the identities and write images and the share's manifest.

    Args:
        frozen: The step's configuration, with the role base_model, and recogniser or quality where
            its gate or its identity guidance asks for them; the variant says base_model, method and
            prompts.
        dataset: Folder of the prepared dataset.
        out: Folder of the variant's images.
        loras: Folder of the weights that the study has trained for the method, if any.
        share: Number of the share, from 0.
        shares: Number of shares.
        device: "cpu" or "cuda".
        batch_size: Images sampled together; changes no image. None: as suits the device.
        compile: Compile the network; auto: on a GPU. Changes no image beyond float error.
        other_base_model: Sample with weights whose record names another base model, too.
        measure: Measures images for the gate; None: the networks of the configuration.

    Returns:
        The manifest's rows.

    Raises:
        StepError: inputs are missing or do not fit each other.
        Interrupted: a signal asked to stop; finished images are kept.
    """
    from pipeline_steps.diffusion.sampling.gate import Gate
    from pipeline_steps.diffusion.sampling.guidance import (
        AWAY,
        leading,
        open_guidance,
        others_of,
    )
    from pipeline_steps.diffusion.sampling.plan import (
        COLUMNS,
        check_base_model,
        hand,
        keys_of,
        plan_images,
        try_again,
    )
    from pipeline_steps.diffusion.sampling.samples import Painter, Samples

    handed = hand(frozen, dataset, loras)
    everybody = read_subjects(dataset)
    subjects = share_of(everybody, share, shares)
    away = others_of(everybody, frozen.seed) if frozen.settings.negative_guidance else None
    rows = plan_images(frozen, subjects, handed)
    if away:
        rows = [row | {AWAY: away[row["identity"]]} for row in rows]
    if loras is not None and METHODS[frozen.variant["method"]].trains:
        base_model = frozen.weights["base_model"]
        check_base_model(loras, subjects, base_model, anyway=other_base_model)
    gate, attempts = None, 1
    if frozen.settings.gate is not None:
        gate = Gate(frozen, dataset, subjects, device, measure)
        attempts = frozen.settings.gate.attempts
    faces, likeness = None, None
    if frozen.settings.identity_guidance is not None:
        faces = leading(frozen, dataset, subjects)
        likeness = partial(open_guidance, frozen, dataset, subjects, device)
    size = batch_size or BATCH_SIZE.get(device, 16)
    painter = Painter(frozen, handed, device, size, compile, likeness)
    keys = partial(keys_of, frozen, faces=faces, handed=handed)
    noted = made_with(frozen)
    stores = {subject.identity: Store(out / subject.identity, noted) for subject in subjects}
    with stop_requested() as stop:
        samples = Samples(out, stores, painter, gate, stop)
        missing = samples.count_missing(rows, keys(rows))
        found = len(rows) - missing
        get_logger("sample").info("%d images wanted, %d of them finished", len(rows), found)
        done = samples.finish(
            rows,
            keys,
            attempts=attempts,
            again=partial(try_again, study_seed=frozen.seed),
        )
    place = {subject.identity: i for i, subject in enumerate(subjects)}
    done.sort(key=lambda row: (place[row["identity"]], row["index"], row["attempt"]))
    _report(frozen, subjects, done)
    _arrange(frozen.settings.store, out, subjects, done)
    folders = [] if loras is None else [loras, *(loras / s.identity for s in subjects)]
    records = [folder / "training.json" for folder in folders]
    behind = versions_behind(*(path for path in records if path.is_file()))
    versions = sorted(samples.versions(done) | {*behind})
    place_of_share = out / "shares" / f"{share}-of-{shares}.parquet"
    columns = (*COLUMNS, *((AWAY,) if away else ()), *handed.columns)
    write_manifest(place_of_share, done, columns, versions=versions)
    return done


def _report(
    frozen: Frozen[SampleSettings], subjects: Sequence[Subject], rows: Sequence[Row]
) -> None:
    """Log what was left out, and who has fewer images than wanted."""
    log, wanted = get_logger("sample"), frozen.settings.images_per_identity
    for reason, count in sorted(Counter(r["reason"] for r in rows if not r["kept"]).items()):
        log.info("left out: %d x %s", count, reason)
    usable = Counter(row["identity"] for row in rows if row["kept"])
    short = [s.identity for s in subjects if usable[s.identity] < wanted]
    if short and frozen.settings.gate is not None:
        named = ", ".join(f"{name} {usable[name]}" for name in short)
        log.warning(
            "fewer than %d usable images after %d attempts: %s",
            wanted,
            frozen.settings.gate.attempts,
            named,
        )


def _arrange(store: str, out: Path, subjects: Sequence[Subject], rows: Sequence[Row]) -> None:
    """Delete images that the share's manifest does not name, and keep the others as is asked."""
    for subject in subjects:
        mine = [row for row in rows if row["kept"] and row["identity"] == subject.identity]
        names = {Path(row["file"]).name for row in mine}
        folder = out / subject.identity
        if store == "shards" and names:
            pack(folder, names)
        else:
            unpack(folder)
        for path in folder.glob("*.png"):
            if path.name not in names:
                path.unlink()


main = command(run, hidden=["measure"])

if __name__ == "__main__":
    raise SystemExit(run_main(main))
