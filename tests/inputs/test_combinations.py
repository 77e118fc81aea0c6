"""What people really put into it: containers x names x contents, from photographs to aligned faces.

Every combination is read upright in its right colours, or is a row with its reason; nobody is
merged, nobody is lost, and nobody without consent is read.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline_steps.identities import containers
from pipeline_steps.identities.containers import LARGEST_MEMBER, contents_of
from pipeline_steps.identities.participants import fold
from pipeline_steps.identities.photographs import list_photographs
from pipeline_steps.io.images import BadImage, read_image
from pipeline_steps.runtime.errors import StepError
from tests.inputs.conftest import Picture, Prepared, encoded, prepared

NAMES = (
    "anna b",
    'o\'neil "x"',
    "a;b && c",
    "-rf",
    unicodedata.normalize("NFC", "Zoë"),
    unicodedata.normalize("NFD", "Chloé"),
    "Ünïcode 😀",
    "x" * 200,
    "CON",
    "иван",
    "李雷",
    "007",
    "{person}$(id)%s",
    "Müller",
    "Muller",
)
REFUSED, WRITTEN = unicodedata.normalize("NFD", "Rëfusée"), unicodedata.normalize("NFC", "RËFUSÉE")
TOLERANCE = 11.5  # mean difference of prepared images, of 255

Content = tuple[str, bytes, str]  # ending, bytes, and what is expected: "same", "gray" or a reason


def turned(picture: Picture, orientation: int) -> bytes:
    """A JPEG that is upright when its EXIF orientation is applied."""
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](picture)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(stored), "JPEG", quality=95, exif=exif)


def swapped_profile() -> bytes:
    """An ICC profile by which red is blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "RGBs".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"XXXX").replace(b"bXYZ", b"rXYZ").replace(b"XXXX", b"bXYZ")


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 900 million pixels."""
    parts = [(b"IHDR", struct.pack(">2I5B", 30000, 30000, 8, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(content))
        + tag
        + content
        + struct.pack(">I", zlib.crc32(tag + content))
        for tag, content in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def contents(picture: Picture, stranger: Picture) -> dict[str, Content]:
    """Every kind of file, of one picture."""
    image = Image.fromarray(picture)
    gray = np.asarray(image.convert("L"))
    deep = gray.astype(np.uint16)
    blue = np.ascontiguousarray(picture[:, :, ::-1]).astype(np.uint16)
    two = np.concatenate([picture, np.asarray(Image.fromarray(stranger).resize((96, 128)))], axis=1)
    frames = [Image.fromarray(stranger)]
    nan = np.where(gray > 100, np.nan, gray).astype(np.float32)
    jpeg = encoded(image, "JPEG", quality=95)

    def few(values: np.ndarray) -> np.ndarray:
        return (values.astype(np.uint32) * 4095 // 255).astype(np.uint16)

    def png(values: Picture) -> bytes:
        return cv2.imencode(".png", values)[1].tobytes()

    found: dict[str, Content] = {
        "png": ("png", encoded(image), "same"),
        "progressive jpeg": ("JPG", encoded(image, "JPEG", quality=92, progressive=True), "same"),
        "webp": ("webp", encoded(image, "WEBP", quality=95), "same"),
        "animated webp": (
            "webp",
            encoded(image, "WEBP", quality=95, save_all=True, append_images=frames),
            "same",
        ),
        "bmp": ("bmp", encoded(image, "BMP"), "same"),
        "tiff": ("tif", encoded(image, "TIFF", compression="tiff_lzw"), "same"),
        "gif": ("gif", encoded(image, "GIF"), "same"),
        "animated gif": ("gif", encoded(image, "GIF", save_all=True, append_images=frames), "same"),
        "jpeg 2000": ("jp2", encoded(image, "JPEG2000"), "same"),
        "avif": ("avif", encoded(image, "AVIF", quality=90), "same"),
        "ppm": ("ppm", encoded(image, "PPM"), "same"),
        "tga": ("tga", encoded(image, "TGA"), "same"),
        "pcx": ("pcx", encoded(image, "PCX"), "same"),
        "sgi": ("sgi", encoded(image, "SGI"), "same"),
        "dds": ("dds", encoded(image, "DDS"), "same"),
        "1 bit": ("png", encoded(image.convert("1")), "any"),
        "palette": ("png", encoded(image.quantize(256)), "same"),
        "gray": ("pgm", encoded(image.convert("L"), "PPM"), "gray"),
        "16 bits": ("png", png(deep * 257), "gray"),
        "12 of 16 bits": ("png", png(few(deep)), "gray"),
        "16 bits in colour": ("png", png(blue * 257), "same"),
        "12 of 16 bits in colour": ("png", png(few(blue)), "same"),
        "32 bits": (
            "tif",
            encoded(Image.fromarray(gray.astype(np.int32) << 20), "TIFF"),
            "unsupported mode",
        ),
        "not a number": ("tif", encoded(Image.fromarray(nan), "TIFF"), "unsupported mode"),
        "alpha": ("png", encoded(image.convert("RGBA")), "same"),
        "gray and alpha": ("png", encoded(image.convert("LA")), "gray"),
        "cmyk": ("jpg", encoded(image.convert("CMYK"), "JPEG", quality=95), "same"),
        "profile": (
            "png",
            encoded(picture[:, :, ::-1].copy(), icc_profile=swapped_profile()),
            "same",
        ),
        "truncated": ("jpg", jpeg[: len(jpeg) // 2], "truncated"),
        "empty": ("jpg", b"", "empty file"),
        "huge": ("png", bomb(), "too large"),
        "tiny": ("png", encoded(picture[:8, :8].copy()), "too small"),
        "two faces": ("png", encoded(two), "2 faces"),
        "no face": ("png", encoded(np.full_like(picture, 120)), "no face"),
        "text": ("jpg", b"no photograph", "not an image"),
        "heic": ("HEIC", b"\0\0\0\x18ftypheic" + bytes(64), "HEIC (install pillow-heif)"),
        "other ending": ("dat", jpeg + b"dat", "same"),
        "no ending": ("", jpeg + b"no", "same"),
        "wrong ending": ("png", jpeg + b"png", "same"),
    }
    found |= {f"exif {n}": ("jpg", turned(picture, n), "same") for n in range(1, 9)}
    return found


KINDS = tuple(contents(np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128, 3), np.uint8)))
CONTAINERS = ("folder", "nested", "zip", "tar", "webdataset")


def owner_of(kind: str, container: str) -> str:
    """Whose photograph a kind of content is; another person in each container."""
    return NAMES[(KINDS.index(kind) + 4 * CONTAINERS.index(container)) % len(NAMES)]


def file_of(kind: str, ending: str) -> str:
    return f"-{kind}; 'ü'\U0001f600{'.' if ending else ''}{ending}"


def stored(root: Path, container: str, files: dict[str, bytes]) -> Path:
    """Files by their paths in a container."""
    if container in ("folder", "nested"):
        for name, content in files.items():
            path = root / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root / "photos"
    if container == "zip":
        with zipfile.ZipFile(root / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return root / "photos.zip"
    shards = ["photos.tar"] if container == "tar" else ["photos/0.tar", "photos/1.tar"]
    for number, shard in enumerate(shards):
        (root / shard).parent.mkdir(exist_ok=True)
        with tarfile.open(root / shard, "w") as archive:
            for name in [*files][number :: len(shards)]:
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                archive.addfile(member, io.BytesIO(files[name]))
    return root / ("photos.tar" if container == "tar" else "photos")


@dataclass(frozen=True)
class World:
    """A prepared container: rows by identity's folder and file name, and what was read."""

    found: Prepared
    places: dict[str, str]
    read: list[str]
    expected: dict[str, Content]
    people: dict[str, str]


@pytest.fixture(scope="session")
def world(tmp_path_factory, faces, recogniser) -> Callable[[str], World]:
    """The world of a container, made once."""
    made: dict[str, World] = {}

    def make(container: str) -> World:
        root = tmp_path_factory.mktemp(container)
        expected = contents(faces["anna"][0], faces["bob"][0])
        files: dict[str, bytes] = {}
        places: dict[str, str] = {}
        between = ("Set1/", "/2024") if container == "nested" else ("", "")
        for number, name in enumerate((*NAMES, REFUSED)):
            plain = encoded(faces["anna"][0]) + f"{number}".encode()  # other bytes, one picture
            files[f"{between[0]}{name}{between[1]}/plain.png"] = plain
        for kind, (ending, content, _) in expected.items():
            folder = f"{between[0]}{owner_of(kind, container)}{between[1]}"
            places[kind] = f"{folder}/{file_of(kind, ending)}"
            files[places[kind]] = content
        files[f"{between[0]}{REFUSED}{between[1]}/unnamed"] = encoded(faces["eve"][0])
        source = stored(root, container, files)
        table = root / "people.csv"
        table.write_text(f"participant,consent\n{WRITTEN},false\n", "utf-8")
        read: list[str] = []
        original = containers._reader

        def watched(name, fetch, **options):
            reader = original(name, fetch, **options)

            def noted(most=None):
                read.append(name)
                return reader(most)

            return noted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(containers, "_reader", watched)
            found = prepared(
                root / "out",
                [source],
                recogniser,
                gender_table=str(table),
                participant_level=2 if container == "nested" else None,
            )
        with (found.out / "identities.csv").open(newline="", encoding="utf-8") as stream:
            people = {row["folder"]: row["identity"] for row in csv.DictReader(stream)}
        return World(found, places, read, expected, people)

    def get(container: str) -> World:
        if container not in made:
            made[container] = make(container)
        return made[container]

    return get


def row_at(world: World, place: str):
    (row,) = [row for source, row in world.found.rows.iterrows() if source.endswith(f"/{place}")]
    return row


def image_at(world: World, row) -> np.ndarray:
    return read_image(world.found.out / row["file"]).astype(int)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_upright_in_its_colours_or_a_row_says_why_not(world, container, kind):
    here = world(container)
    row = row_at(here, here.places[kind])
    owner = owner_of(kind, container)
    assert row["identity"] == here.people[owner]
    expected = here.expected[kind][2]
    if expected == "any":
        assert row["kept"] or row["reason"]
    elif expected not in ("same", "gray", "2 faces"):
        assert (row["kept"], row["reason"].startswith(expected)) == (False, True), row["reason"]
    else:
        assert row["kept"], row["reason"]
        assert ("12 of 16 bits used" in row["reason"]) == kind.startswith("12")
        assert row["reason"].startswith("2 faces") == (kind == "two faces")
        image, plain = image_at(here, row), image_at(here, plain_row(here, owner))
        if expected == "gray":
            plain = np.repeat(plain @ [0.299, 0.587, 0.114], 3).reshape(plain.shape)
        assert np.abs(image - plain).mean() < TOLERANCE
        assert row["file"] in embedded(here)
        assert any(one["kept"] and one["source_file"] == row["file"] for one in here.found.aligned)


def plain_row(here: World, name: str):
    rows = here.found.rows
    own = rows[rows["identity"] == here.people[name]]
    (row,) = [row for source, row in own.iterrows() if source.endswith("/plain.png")]
    return row


def embedded(here: World) -> set[str]:
    entry = here.found.index["identities"]
    kept = here.found.rows[here.found.rows["kept"]]
    without = {file for one in entry.values() for file in one["without_face"]}
    return {*kept["file"]} - without


def test_the_comparison_tells_what_is_turned_or_in_other_colours(world):
    here = world("folder")
    plain = image_at(here, plain_row(here, NAMES[0]))
    wrong = plain[::-1], plain[:, ::-1], plain[:, :, ::-1], plain // 2
    assert min(np.abs(other - plain).mean() for other in wrong) > TOLERANCE


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_lost_or_merged(world, container, name):
    here = world(container)
    identity = here.people[name]
    assert [*here.people.values()].count(identity) == 1
    assert identity.isascii() and len(identity) < 100
    assert here.found.index["identities"][identity]["n"] > 0
    rows = here.found.rows[here.found.rows["identity"] == identity]
    mine = [kind for kind in KINDS if owner_of(kind, container) == name]
    assert len(rows) == 1 + len(mine)
    assert all(name in source.split("/") for source in rows.index)


@pytest.mark.parametrize("container", CONTAINERS)
def test_nobody_without_consent_is_read(world, container):
    here = world(container)
    theirs = [source for source in here.found.rows.index if REFUSED in source.split("/")]
    rows = here.found.rows.loc[theirs]
    assert len(rows) == 1  # what is unnamed is not even opened to see what it is
    assert set(rows["reason"]) == {"no consent (prepare.gender_table)"}
    assert rows[["file", "sha256", "box"]].isna().all(axis=None)
    assert here.read
    assert not [name for name in here.read if REFUSED in name.split("/")]
    assert fold(REFUSED) not in map(fold, here.people)
    assert len(here.found.rows) == len(KINDS) + len(NAMES) + 1


@pytest.mark.parametrize("container", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    "twins",
    [("anna", "Anna"), ("Zoe\u0308", "Zo\u00eb"), ("7", "007"), ("Straße", "STRASSE")],
)
def test_twins_are_refused_with_both_paths(tmp_path, container, twins, recogniser):
    source = stored(tmp_path, container, {f"{name}/a.png": b"x" for name in twins})
    with pytest.raises(StepError, match=r"would (both )?become") as caught:
        prepared(tmp_path / "out", [source], recogniser)
    assert all(f"{source.name}/{name}'" in str(caught.value) for name in twins)


def test_an_archive_of_very_many_entries_is_listed_once(tmp_path, monkeypatch):
    """No member is paid for with the whole table."""
    path, count, opened = tmp_path / "many.zip", 2_000, []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number % 50}/李{'九' * (number % 3)}{number}.png", b"x")
    tables = zipfile.ZipFile._RealGetContents
    monkeypatch.setattr(
        zipfile.ZipFile, "_RealGetContents", lambda self: (opened.append(1), tables(self))[1]
    )
    listing = list_photographs(path)
    assert sum(len(one.read()) for one in listing.photographs) == count
    assert 1 <= len(opened) <= 2


def zip_of_many(path: Path, count: int) -> None:
    """A zip archive of so many members, all of one content (APPNOTE 6.3.10, 4.3.7 to 4.3.16)."""
    first = struct.pack("<4s5H3I2H", b"PK\3\4", 20, *[0] * 4, zlib.crc32(b"x"), 1, 1, 1, 0) + b"ax"
    fields = (b"PK\1\2", 20, 20, *[0] * 4, zlib.crc32(b"x"), 1, 1, 11, *[0] * 6)
    record = np.frombuffer(struct.pack("<4s6H3I5H2I", *fields) + b"0000000.png", np.uint8)
    table = np.tile(record, (count, 1))
    digits = np.arange(count)[:, None] // 10 ** np.arange(6, -1, -1) % 10
    table[:, 46:53] = digits + ord("0")
    start, size = len(first), table.nbytes
    long = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    pointer = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(first + table.tobytes() + long + pointer + end)


def test_a_zip_of_a_million_entries_is_refused_in_little_memory(tmp_path):
    zip_of_many(tmp_path / "few.zip", 1_000)
    assert len(contents_of(tmp_path / "few.zip").entries) == 1_000
    zip_of_many(tmp_path / "many.zip", 1_000_000)
    tracemalloc.start()
    with pytest.raises(StepError, match=r"many\.zip has more than about 500000 files"):
        list_photographs(tmp_path / "many.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_tar_of_very_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_MEMBERS", 100)
    source = stored(tmp_path, "tar", {f"a/{number}.png": b"" for number in range(101)})
    with pytest.raises(StepError, match=r"photos\.tar has more than about 100 files"):
        list_photographs(source)


def test_decompression_bombs_are_rows_that_take_no_memory(tmp_path):
    """One that says how large it is, and one that says it is small."""
    path = tmp_path / "bombs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("anna/large.png", "w") as stream:
            for _ in range(LARGEST_MEMBER // 2**24 + 1):
                stream.write(bytes(2**24))
        archive.writestr("anna/lying.png", bytes(2**24))
    content = bytearray(path.read_bytes())
    table = content.rfind(b"PK\1\2")
    content[table + 24 : table + 28] = struct.pack("<I", 10)  # its size, by the table of contents
    path.write_bytes(content)
    tracemalloc.start()
    reasons = []
    for photograph in list_photographs(path).photographs:
        with pytest.raises(BadImage) as caught:
            photograph.read()
        reasons.append(caught.value.reason)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons == ["too large", "unreadable"]
    assert peak < 2**22


def test_links_loops_and_pipes_are_rows_and_never_followed(tmp_path, faces, recogniser):
    own = tmp_path / "photos" / "anna"
    own.mkdir(parents=True)
    (own / "a.png").write_bytes(encoded(faces["anna"][0]))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").write_bytes(encoded(faces["bob"][0]))
    (own / "out.png").symlink_to(tmp_path / "elsewhere/b.png")
    (own / "loop.png").symlink_to("loop.png")
    os.mkfifo(own / "pipe.png")
    (tmp_path / "photos/bob").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = prepared(tmp_path / "out", [tmp_path / "photos"], recogniser)
    assert found.rows["reason"].to_dict() == {
        "photos/anna/a.png": "",
        "photos/anna/loop.png": "no regular file",
        "photos/anna/out.png": "link out of the source",
        "photos/anna/pipe.png": "no regular file",
    }
    assert '"ID_bob"' in (found.out / "report.json").read_text()  # named as without photographs
