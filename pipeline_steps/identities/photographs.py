"""Photographs of a source: which files are images, and in whose folder they lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline_steps.identities.containers import ARCHIVE_SUFFIXES, Entry, contents_of, is_unsafe
from pipeline_steps.io.images import BadImage, looks_like_an_image
from pipeline_steps.naming import natural_key
from pipeline_steps.runtime.errors import StepError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".gif", ".jp2", ".avif", ".heic", ".heif", ".jxl", ".tga", ".pcx", ".dds", ".sgi", ".psd"}
    | {".ico", ".icns", ".qoi", ".mpo"}
)
LONGEST_STEM = 120  # characters; file systems allow 255 bytes for a name with all its endings
_JUNK_NAMES = frozenset({"thumbs.db", "desktop.ini"})
Place = tuple[str, ...]


@dataclass(frozen=True)
class Where:
    """Where photographs lie.

    Attributes:
        place: names of the folders that they lie in, inside the source or its shard.
        depth: how many of these lead to the folder that says whose they are; 0: nobody's, as at the
            top of the source, for unsafe paths, and in folders of folders with photographs.
        beside: further names that they could be somebody's by: the source's, with and without its
            ending.
        linked: names of the folders that a link leads to.
    """

    place: Place
    depth: int
    beside: Place
    linked: Place = ()

    @property
    def folder(self) -> str:
        """Name of the folder that says whose they are; empty for nobody."""
        return self.place[self.depth - 1] if self.depth else ""

    @property
    def owner(self) -> str:
        """Path of that folder, from the source's name."""
        return "/".join((self.beside[0], *self.place[: self.depth]))

    @property
    def path(self) -> str:
        """Path of the folder that they lie in, from the source's name."""
        return "/".join((self.beside[0], *self.place))


@dataclass(frozen=True)
class Photograph:
    """One image file of a source.

    Attributes:
        source: name of the archive or folder, and the path inside it.
        name: file name.
        read: see `Entry`.
        where: whose it is by its folders.
        unsafe: whether its path leaves the source.
    """

    source: str
    name: str
    read: Callable[..., bytes] = field(compare=False, repr=False)
    where: Where
    unsafe: bool = False


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        source: name of the archive or folder.
        photographs: in natural order of their paths.
        bare: people's folders without any photograph, and what is in them instead.
        others: files that are no images by their name, leaving out system files.
        nobody: folders that are no person's, and why.
        junk: number of files that operating systems leave behind (.DS_Store, Thumbs.db, ...).
        broken: what is wrong with the source as a whole; empty for a whole one.
    """

    source: str
    photographs: tuple[Photograph, ...]
    bare: dict[Where, str]
    others: tuple[str, ...]
    nobody: dict[str, str]
    junk: int = 0
    broken: str = ""


def list_photographs(
    source: Path,
    *,
    salvage: bool = False,
    level: int | None = None,
    may_open: Callable[[Photograph], bool] = lambda _: False,
) -> Listing:
    """List the image files of a folder, a zip or a tar archive, subfolders included.

    Args:
        source: see `contents_of`.
        salvage: list also an archive that ends too early, as far as its files are whole.
        level: how deep people's folders lie, 1 for those at the top; None: the innermost ones.
        may_open: whether a file whose name says nothing may be opened, to see if it is an image.

    Raises:
        StepError: there is no such source, or it is broken and is not to be salvaged.
    """
    if not source.exists():
        raise StepError(f"source {source} does not exist: correct the path, or fetch the data")
    if not source.is_dir() and source.suffix.lower() not in ARCHIVE_SUFFIXES:
        raise StepError(f"source {source} is neither a folder nor a .zip or .tar archive")
    contents = contents_of(source)
    if contents.broken and not salvage:
        raise StepError(
            f"source {source} is incomplete: {contents.broken}. Download it again, or let "
            "preparation use the whole files with prepare.on_broken_source: salvage"
        )
    files: list[tuple[PurePosixPath, Entry]] = []
    folders: dict[PurePosixPath, str] = {}  # to the shard it is in
    junk = 0
    for entry in sorted(contents.entries, key=lambda entry: natural_key(entry.path)):
        path = PurePosixPath(entry.path.replace("\\", "/"))
        if not entry.is_folder:
            junk += is_junk(path)
            files += [] if is_junk(path) else [(path, entry)]
        holders = [*path.parents[:-1], *([path] if entry.is_folder else [])]
        folders |= dict.fromkeys(holders, entry.shard)
    named = [path for path, _ in files if path.suffix.lower() in IMAGE_SUFFIXES]
    # A folder of folders, such as TD_RGB_A_Set1, is nobody's; its name must not become a person.
    shelves = {grand for path in named for grand in path.parent.parents}
    photographs, others = [], []
    for path, entry in files:
        place = _inside(path.parent, entry.shard)
        depth = 0 if path.parent in shelves else len(place)
        if level is not None:
            depth = level if len(place) >= level else 0
        unsafe = is_unsafe(entry.path)
        linked = PurePosixPath(entry.target).parts[:-1]
        where = Where(place, 0 if unsafe else depth, (source.name, source.stem), linked)
        photograph = Photograph(f"{source.name}/{entry.path}", path.name, entry.read, where, unsafe)
        if path.suffix.lower() in IMAGE_SUFFIXES or (may_open(photograph) and _is_image(entry)):
            photographs.append((path, photograph))
        else:
            others.append(path)
    people = {_above(path.parent, one) for path, one in photographs if one.where.depth}
    full = {holder for path, _ in photographs for holder in path.parents}
    above = {grand for path in folders for grand in path.parents}
    count = Counter(path.parent for path in others)
    bare: dict[Where, str] = {}
    nobody: dict[str, str] = {}
    for path, shard in folders.items():
        place = _inside(path, shard)
        meant = path not in above if level is None else len(place) == level
        if path in people or not people.isdisjoint(path.parents) or not place:
            continue
        if is_junk(path):
            nobody[str(path)] = "of the operating system"
        elif meant and path not in full and not is_unsafe(str(path)):
            where = Where(place, len(place), (source.name, source.stem))
            bare[where] = f"no image among {count[path]} files" if count[path] else ""
        else:
            nobody[str(path)] = "holds other folders, or photographs outside of any person's folder"
    return Listing(
        source.name,
        tuple(photograph for _, photograph in photographs),
        bare,
        tuple(f"{source.name}/{path}" for path in others),
        nobody,
        junk,
        contents.broken,
    )


def _inside(folder: PurePosixPath, shard: str) -> Place:
    """Names of folders, from the source or the shard inwards."""
    return folder.parts[len(PurePosixPath(shard).parts) :]


def _above(folder: PurePosixPath, photograph: Photograph) -> PurePosixPath:
    """The folder, at or above that of a photograph, which says whose it is."""
    return [folder, *folder.parents][len(photograph.where.place) - photograph.where.depth]


def _is_image(entry: Entry) -> bool:
    try:
        return looks_like_an_image(entry.read(32))
    except BadImage:
        return False


def is_junk(path: PurePosixPath) -> bool:
    """Whether an operating system left it behind: .DS_Store, __MACOSX, ._name, Thumbs.db."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return hidden or "__MACOSX" in path.parts or path.name.lower() in _JUNK_NAMES


def file_stem(name: str) -> str:
    """A file name's stem in characters that are safe everywhere."""
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(name).stem, flags=re.ASCII).lstrip(".")
    return stem[:LONGEST_STEM] or "_"


def unique_stems(names: Sequence[tuple[str, str]]) -> list[str]:
    """Safe stems for (folder, file name) pairs, numbered where a folder has the same one twice.

    File systems that do not tell upper from lower case are counted with.
    """
    taken: dict[tuple[str, str], str] = {}
    last: dict[tuple[str, str], int] = {}
    for folder, name in names:
        stem = candidate = file_stem(name)
        number = last.get((folder, stem), 1)
        while (folder, candidate.casefold()) in taken:
            number += 1
            candidate = f"{stem}_{number}"
        last[folder, stem] = number
        taken[folder, candidate.casefold()] = candidate
    return list(taken.values())
