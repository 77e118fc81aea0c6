"""Data that a study takes in: what is not there, and what is not what the study takes it for.

They are looked into as far as a second allows: kind, headers, the first image, numbers. Photographs
of the sources are listed as preparation lists them, so that nobody's are opened who has refused.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.plan import Plan, is_rendered

# What is known of the data by file name: source, size, licence.
PHOTOGRAPHS, TABLE = "photographs", "table of participants"
WILD, EXTERNAL = "in-the-wild reference images", "external set"
TEMPLATES, BIN = "set of templates", "verification benchmark"
LEARNT, MASK = "images that a generator is trained on", "mask of a person's place"
FILES = (TABLE, BIN, MASK)  # all else may be a folder
KNOWN = {
    PHOTOGRAPHS: (
        "the Tufts Face Database's own download page (tdface.ece.tufts.edu)",
        "a few GB (estimate)",
        "non-commercial research, no redistribution",
    ),
    WILD: (
        "NVIDIA's FFHQ page (github.com/NVlabs/ffhq-dataset)",
        "89 GB",
        "CC BY-NC-SA 4.0",
    ),
    BIN: (
        "InsightFace's dataset zoo (github.com/deepinsight/insightface)",
        "50 to 200 MB (estimate)",
        "non-commercial research",
    ),
}
LOOKED_AT = 8  # images, of which one has to be readable
FIRST_LINES = 1000  # of tables of templates
Look = Callable[[Plan, Path, Path], None]  # of a path that lies below the root


@dataclass(frozen=True)
class Missing:
    """Something that has to be got before the study can run.

    Attributes:
        what: what it is, and what for.
        where: path where it is looked for, or what it concerns.
        source, size, licence: where it comes from; empty where that does not apply.
        how: what to do, in one line.
    """

    what: str
    where: str
    source: str = ""
    size: str = ""
    licence: str = ""
    how: str = ""


def missing_data(plan: Plan, root: Path = Path()) -> list[Missing]:
    """Photographs, tables and benchmarks that are not there, but for rendered ones."""
    found = []
    for path, what in kinds_of_data(plan).items():
        if not _is_there(what, root / path):
            source, size, licence = KNOWN.get(what, ("", "", ""))
            address = plan.study.fetch_dataset.archives.get(path, "")
            how = _advice(path, what, address, root)
            found.append(Missing(what, path, address or source, size, licence, how))
    return found


def unfit_data(plan: Plan, root: Path = Path(), read: Iterable[str] | None = None) -> list[Missing]:
    """Data that are there and unfit; of those that are read, by their paths, None: of all."""
    kinds = {
        path: what for path, what in kinds_of_data(plan).items() if _is_there(what, root / path)
    }
    wanted = kinds.keys() & (kinds if read is None else set(read))
    found = {
        path: Missing(what, path, how=why)
        for path, what in kinds.items()
        if path in wanted and what in LOOKS and (why := _refusal(LOOKS[what], plan, root, path))
    }
    sources = plan.study.prepare.sources
    whole = all(path in kinds and path not in found for path in plan.photographs)
    if whole and wanted & {*sources} and (why := _refusal(_look_at_photographs, plan, root, "")):
        found[sources[0]] = Missing(PHOTOGRAPHS, ", ".join(sources), how=why)
    return list(found.values())


def kinds_of_data(plan: Plan) -> dict[str, str]:
    """What each path that a study takes in is to hold; rendered ones left aside."""
    study = plan.study
    kinds = dict.fromkeys(plan.verified, BIN) | dict.fromkeys(study.template_sets, TEMPLATES)
    kinds |= dict.fromkeys(study.external_sets.values(), EXTERNAL) | {study.in_the_wild: WILD}
    kinds |= dict.fromkeys(plan.generator_images, LEARNT)
    kinds |= dict.fromkeys(study.sample_together.mask_files, MASK)
    kinds |= dict.fromkeys(plan.photographs, TABLE)
    kinds |= dict.fromkeys(study.prepare.sources, PHOTOGRAPHS)
    return {path: kinds[path] for path in plan.put_in if not is_rendered(path)}


def _is_there(what: str, place: Path) -> bool:
    return place.is_file() if what in FILES else place.exists()


def _advice(path: str, what: str, address: str, root: Path) -> str:
    if what in FILES and (root / path).is_dir():
        return "this is a folder: name a file in it"
    unpacked = path.removesuffix(".zip")
    if unpacked != path and (root / unpacked).is_dir():
        return f"name the folder {unpacked}, which is there, instead of the archive"
    if what == TABLE:
        return "write it (docs/real-data.md), or remove prepare.gender_table from the study"
    if address:
        return "python -m pipeline_steps.fetch_dataset --study <configuration>, or put it there"
    return "put it there, or write its path into the study"


def _refusal(look: Look, plan: Plan, root: Path, path: str) -> str:
    try:
        look(plan, root, root / path)
    except (StepError, OSError) as error:
        return str(error)
    return ""


def _look_at_photographs(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.identities.candidates import collect
    from pipeline_steps.identities.participants import read_participants

    prepare = plan.study.prepare
    placed = prepare.model_copy(
        update={
            "sources": tuple(str(root / source) for source in prepare.sources),
            "withdrawn": str(root / prepare.withdrawn_table),
        }
    )
    table = prepare.gender_table
    collection = collect(placed, read_participants(root / table) if table else {})
    left = [one.reason for one in collection.candidates]
    if all(left):
        reasons = ", ".join(sorted(set(left))[:3]) or "there are none"
        raise StepError(f"no photograph can be used: {reasons}")


def _look_at_table(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.identities.participants import read_participants

    read_participants(place)


def _look_at_wild(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.identities.photographs import list_photographs

    lazily = place.is_dir() or place.suffix.lower() == ".tar"
    listed = () if lazily else list_photographs(place).photographs
    readers = _first_files(place) if lazily else (one.read for one in listed)
    _require_an_image(readers, f"{place} holds no image: name a folder, a .zip or a .tar of images")


def _first_files(place: Path) -> Iterator[Callable[[], bytes]]:
    """Images of a folder or a tar archive as they come, by their names; nothing is listed whole."""
    from pipeline_steps.identities.photographs import IMAGE_SUFFIXES, is_junk

    def is_image(name: str) -> bool:
        path = PurePosixPath(name)
        return path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path)

    if place.is_dir():
        for folder, _, names in os.walk(place):
            files = (Path(folder, name) for name in sorted(names))
            for file in files:
                if file.suffix.lower() == ".tar":
                    yield from _first_files(file)
                elif is_image(str(file.relative_to(place))):
                    yield file.read_bytes
        return
    try:
        with tarfile.open(place, "r:") as archive:
            for member in archive:
                if member.isfile() and is_image(member.name):
                    content = archive.extractfile(member)
                    yield content.read if content else bytes
    except tarfile.TarError as error:
        raise StepError(f"{place} is no whole, uncompressed tar archive ({error})") from error


def _look_at_external(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.identities.labelled_sets import identity_of_label, parts_of
    from pipeline_steps.identities.participants import read_withdrawn

    refused = read_withdrawn(root / plan.study.prepare.withdrawn_table)
    records = chain.from_iterable(part() for part in parts_of(place))
    readers = (one.read for one in records if identity_of_label(one.label) not in refused)
    _require_an_image(readers, f"no image of the external set {place} can be read")


def _require_an_image(readers: Iterable[Callable[[], bytes]], otherwise: str) -> None:
    """Read the first images until one can be.

    Raises:
        StepError: none of them can.
    """
    from pipeline_steps.io.images import BadImage, read_image

    reasons: list[str] = []
    for read in islice(readers, LOOKED_AT):
        try:
            read_image(read())
            return
        except BadImage as error:
            reasons.append(error.reason)
    raise StepError(otherwise + (f" (the first ones: {', '.join(reasons)})" if reasons else ""))


def _look_at_templates(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.recognition.protocol import read_template_set

    files = [place / "images" / name for name in read_template_set(place, FIRST_LINES).files]
    readers = (file.read_bytes for file in files if file.is_file())
    _require_an_image(readers, f"{place}/images has none of the images that templates names")


def _look_at_benchmark(plan: Plan, root: Path, place: Path) -> None:
    from pipeline_steps.recognition.benchmarks import count_pairs

    pairs, folds = count_pairs(place), plan.study.verify.folds
    if pairs < folds:
        raise StepError(f"{place} has {pairs} pairs, fewer than verify.folds, which is {folds}")


LOOKS: dict[str, Look] = {
    TABLE: _look_at_table,
    WILD: _look_at_wild,
    EXTERNAL: _look_at_external,
    TEMPLATES: _look_at_templates,
    BIN: _look_at_benchmark,
}
