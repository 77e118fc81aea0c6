"""A look-alike of the Tufts Face Database as people have it on their disks, with everything wrong
that is to be expected: all of it is reported, and nothing of it stops the rest.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter

import pytest
from PIL import Image

from pipeline_steps import check_dataset, prepare
from pipeline_steps.demo_world.rendering.population import CONSENTED, laboratory_session, person
from pipeline_steps.io.manifests import read_manifest
from pipeline_steps.study.settings.base import Frozen
from pipeline_steps.study.settings.photographs import CheckDatasetSettings, PrepareSettings

PARTICIPANTS = 113
MISSING = (31, 77)
WITHDRAWN = 12
IN_TWO_SETS = 50
WITHOUT_FACES = 60
EMPTY_FOLDER = 61
ENCRYPTED = 62
CONFUSED = 5  # their positions are not in order
IN_ORDER = (1, 2, 3, 4, CONFUSED)  # people with a photograph of each of seven positions
CUT = 113  # the last photograph of the last archive


@pytest.fixture(scope="module")
def poses():
    """Position to a picture of one rendered face, 128 pixels."""
    who = person(0, CONSENTED, 1)
    return {
        position: Image.fromarray(who.photograph(nuisance, 128, 1).image)
        for camera, position, nuisance in laboratory_session(0, 1)
        if camera == 2
    }


def jpeg(picture, note, **options):
    """JPEG bytes that differ by a note behind the image."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue() + str(note).encode()


def members_of(number, poses):
    """Path inside the archive to content, of one ordinary participant."""
    names = {}
    positions = range(1, 8) if number in IN_ORDER else (4,)
    for position in positions:
        shown = (
            {1: 6, 2: 1, 3: 7, 4: 3, 5: 2, 6: 5, 7: 4}[position] if number == CONFUSED else position
        )
        names[f"TD_RGB_A_2_{position}.jpg"] = jpeg(poses[shown], (number, position))
    return names


def irregular(number, poses):
    """What is wrong in single folders: file name to content."""
    face, nothing = poses[4], Image.new("RGB", (128, 128), (90, 120, 150))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    whole = jpeg(face, "whole")
    return {
        6: {"TD_RGB_A_2_4.JPG": jpeg(face, 6)},
        7: {"TD_RGB_A_2_4.jpg": jpeg(face.convert("L"), 7)},
        8: {"TD_RGB_A_2_4.jpg": jpeg(face.convert("CMYK"), 8)},
        9: {"TD_RGB_A_2_4.jpg": jpeg(face.transpose(Image.Transpose.ROTATE_90), 9, exif=exif)},
        10: {"TD_RGB_A_2_4.jpg": jpeg(face, 10), "TD_RGB_A_2_5.jpg": b""},
        11: {"TD_RGB_A_2_4.jpg": jpeg(face, 11), "TD_RGB_A_2_5.jpg": whole[: len(whole) // 2]},
        13: {"TD_RGB_A_9_4.jpg": jpeg(face, 13), "TD_RGB_A_2_12.jpg": jpeg(face, 14)},
        14: {"TD_RGB_A_2_4.jpg": jpeg(face, 15), "IMG_0001.jpg": jpeg(face, 16)},
        WITHOUT_FACES: {"TD_RGB_A_2_4.jpg": jpeg(nothing, 60)},
        EMPTY_FOLDER: {"": b""},
    }.get(number)


def encrypt(path, folder):
    """Set the mark of encryption on the members of a folder, in both places that hold it."""
    content = bytearray(path.read_bytes())
    for signature, flags, name in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        place = content.find(signature)
        while place >= 0:
            if content[place + name :].startswith(folder.encode()):
                content[place + flags] |= 1
            place = content.find(signature, place + 4)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def database(tmp_path_factory, poses):
    """Three archives, the second one as an unpacked folder, the last one half downloaded."""
    root = tmp_path_factory.mktemp("tfd")
    sets = {1: range(1, 31), 2: range(31, 61), 3: range(61, 91), 4: range(91, 114)}
    for archive, numbers in sets.items():
        top = f"TD_RGB_A_Set{archive}"
        files = {}
        for number in numbers:
            if number not in MISSING:
                own = irregular(number, poses) or members_of(number, poses)
                files |= {f"{top}/{number}/{name}": content for name, content in own.items()}
        if archive == 1:
            files |= dict.fromkeys(
                [f"{top}/.DS_Store", f"__MACOSX/{top}/1/._TD_RGB_A_2_4.jpg", f"{top}/2/Thumbs.db"],
                b"x",
            )
            files[f"{top}/stray.jpg"] = jpeg(poses[4], "stray")
            files["../../1/TD_RGB_A_2_4.jpg"] = jpeg(poses[4], "evil")
        if archive == 3:
            files[f"{top}/{IN_TWO_SETS}/TD_RGB_A_2_4.jpg"] = jpeg(poses[4], (IN_TWO_SETS, 4))
            files[f"{top}/{IN_TWO_SETS}/TD_RGB_A_2_3.jpg"] = jpeg(poses[3], (IN_TWO_SETS, 3))
        if archive == 2:
            for name, content in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            continue
        with zipfile.ZipFile(root / f"{top}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
    encrypt(root / "TD_RGB_A_Set3.zip", f"TD_RGB_A_Set3/{ENCRYPTED}/")
    last = root / "TD_RGB_A_Set4.zip"
    content = last.read_bytes()
    start = content.index(f"TD_RGB_A_Set4/{CUT}/".encode())
    last.write_bytes(content[: start + 1000])
    rows = [f"{n},{'FM'[n % 2]},{str(n != WITHDRAWN).lower()}" for n in range(1, PARTICIPANTS)]
    (root / "people.csv").write_text("participant,gender,consent\n" + "\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def prepared(database):
    """Manifest by source, report and identity table."""
    names = ("TD_RGB_A_Set1.zip", "TD_RGB_A_Set2", "TD_RGB_A_Set3.zip", "TD_RGB_A_Set4.zip")
    settings = PrepareSettings(
        sources=tuple(str(database / name) for name in names),
        gender_table=str(database / "people.csv"),
        resolution=64,
        min_face_side=20,
        on_broken_source="salvage",
    )
    out = database / "dataset"
    prepare.run(Frozen("test", "prepare", 0, settings), out=out, device="cpu")
    table = read_manifest(out / "manifest.parquet").set_index("source")
    with (out / "identities.csv").open(newline="") as stream:
        people = {row["identity"]: row for row in csv.DictReader(stream)}
    checked = Frozen("test", "check_dataset", 0, CheckDatasetSettings(on_empty_identity="skip"))
    report = json.loads((out / "report.json").read_text())
    report["findings"] += check_dataset.run(checked, dataset=out)["unexpected"]
    return table, report, people


def test_every_irregularity_is_a_row_and_the_counts_are_right(prepared):
    table, report, _ = prepared
    reasons = Counter(reason.split(" of ")[0] for reason in table[~table["kept"]]["reason"])
    assert reasons == {
        "no consent (prepare.gender_table)": 1,
        "empty file": 1,
        "truncated": 2,  # a photograph, and what the download had begun
        "position excluded (prepare.positions)": 1,  # 12
        "odd name (prepare.file_pattern)": 1,
        "not in a participant's folder (prepare.participant_level)": 1,
        "unsafe path": 1,
        "no face (prepare.detector)": 1,
        "encrypted": 1,
        "duplicate": 1,
    }
    assert {reason: item["count"] for reason, item in report["left_out"].items()} == reasons
    assert report["photographs"] == len(table)
    assert report["kept"] == table["kept"].sum() == len(table) - sum(reasons.values())


def test_everybody_else_is_there(prepared):
    _, report, people = prepared
    gone = {*MISSING, WITHDRAWN, WITHOUT_FACES, EMPTY_FOLDER, ENCRYPTED, CUT}
    assert set(people) == {f"ID_{n}" for n in range(1, PARTICIPANTS + 1) if n not in gone}
    assert report["identities"] == len(people) == 106
    counts = {name: int(row["n_images"]) for name, row in people.items()}
    assert counts == report["images_per_identity"]
    assert counts.pop(f"ID_{IN_TWO_SETS}") == 2
    assert {name for name, count in counts.items() if count == 7} == {f"ID_{n}" for n in IN_ORDER}
    assert Counter(counts.values()) == {7: 5, 1: 100}
    assert people["ID_7"]["gender"] == "M"


def test_the_report_names_what_differs_from_the_database(prepared):
    _, report, _ = prepared
    found = {item["finding"].split(",")[0]: item for item in report["findings"]}
    which = {sentence: item["which"] for sentence, item in found.items()}
    assert which["incomplete source"] == ["TD_RGB_A_Set4.zip"]
    assert "22 of its files are whole" in found["incomplete source"]["finding"]
    assert which["1 people stand in several sources"] == [
        f"ID_{IN_TWO_SETS} (TD_RGB_A_Set2, TD_RGB_A_Set3.zip)"
    ]
    assert which["1 people without consent are left out"] == [f"ID_{WITHDRAWN}"]
    assert which["4 people have no usable photograph"] == [
        f"ID_{n}" for n in (WITHOUT_FACES, EMPTY_FOLDER, ENCRYPTED, CUT)
    ]
    assert which["2 participant numbers are missing"] == [str(n) for n in MISSING]
    assert len(which["106 people have not 21 images"]) == 106
    assert which["1 files name a camera other than 1"] == [
        "TD_RGB_A_Set1.zip/TD_RGB_A_Set1/13/TD_RGB_A_9_4.jpg (9)"
    ]
    assert which["1 files name a position other than 0"] == [
        "TD_RGB_A_Set1.zip/TD_RGB_A_Set1/13/TD_RGB_A_2_12.jpg (12)"
    ]
    (confused,) = [
        names for sentence, names in which.items() if sentence.startswith("estimated yaw")
    ]
    assert [name.split(" ")[0] for name in confused] == [f"ID_{CONFUSED}"]
    assert not [sentence for sentence in which if "are expected" in sentence]  # 106 is in 105..107


def test_system_files_are_counted_and_photographs_without_consent_are_not_read(prepared, database):
    table, report, _ = prepared
    assert [source["system_files"] for source in report["sources"]] == [3, 0, 0, 0]
    row = table[table["identity"] == f"ID_{WITHDRAWN}"].iloc[0]
    assert row["reason"] == "no consent (prepare.gender_table)"
    assert row[["file", "sha256", "box", "probability"]].isna().all()
    images = database / "dataset" / "images"
    assert not (images / f"ID_{WITHDRAWN}").exists()
    assert not (database.parent / "1").exists()  # where the unsafe path leads
    assert len(list(images.rglob("*.png"))) == table["kept"].sum()
