"""From participants to identities, their genders and their consent."""

from __future__ import annotations

import pytest

from pipeline_steps.identities.participants import (
    Participant,
    identities_of_folders,
    identity_name,
    read_participants,
)
from pipeline_steps.runtime.errors import StepError


@pytest.mark.parametrize(
    ("folder", "identity"),
    [
        ("7", "ID_7"),
        ("007", "ID_7"),
        ("ID_12", "ID_12"),
        ("subject-3", "ID_3"),
        ("anna", "ID_anna"),
        ("ID_anna", "ID_anna"),
        ("set1_person2", "ID_set1_person2"),
        ("../x y", "ID_x_y"),
        ("", None),
        ("..", None),
        ("Anna Müller", "ID_Anna_Muller_ahklemcj"),
        ("ANNA MU\u0308LLER", "ID_ANNA_MULLER_ahklemcj"),
        ("id_Zoe", "ID_Zoe"),
    ],
)
def test_folders_name_identities(folder, identity):
    assert identity_name(folder) == identity


HARD = ("李雷", "иван", "😀", "Ünïcode 😀", "!!!", "x" * 200, "1李2", "x²", "٧a٧", "9" * 70, "-rf")


def test_every_name_gives_a_name_of_its_own_that_gives_itself():
    named = {name: identity_name(name) for name in HARD}
    assert len({*named.values()}) == len(HARD)
    for identity in named.values():
        assert identity.isascii() and len(identity) < 80
        assert identity_name(identity) == identity


def test_two_folders_of_one_identity_are_refused():
    assert identities_of_folders(["1", "2", "1", ""]) == {"1": "ID_1", "2": "ID_2"}
    with pytest.raises(StepError, match=r"'7' and '07' would both become ID_7"):
        identities_of_folders(["7", "07"])
    with pytest.raises(StepError, match="ID_Anna"):
        identities_of_folders(["anna", "Anna"])


def write(tmp_path, text):
    path = tmp_path / "gender.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "participant,gender\n1,M\n2,F\n3,\n",
        "\ufeffIdentity,Gender\nID_1,male\nID_2,Female\nID_3,\n",
        "age,gender,participant\n30,m,1\n31,f,2\n20,,3\n",
    ],
)
def test_gender_tables(tmp_path, text):
    found = read_participants(write(tmp_path, text))
    assert {name: entry.gender for name, entry in found.items()} == {
        "ID_1": "M",
        "ID_2": "F",
        "ID_3": "",
    }
    assert {entry.consent for entry in found.values()} == {None}


def test_consent_stands_beside_the_gender_or_alone(tmp_path):
    text = "participant,gender,consent\n1,F,true\n2,M,No\n3,,\n"
    assert read_participants(write(tmp_path, text)) == {
        "ID_1": Participant("F", True),
        "ID_2": Participant("M", False),
        "ID_3": Participant("", None),
    }
    alone = read_participants(write(tmp_path, "identity,consent\nID_4,false\n"))
    assert alone == {"ID_4": Participant("", False)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,gender\n1,M\n", "expected participant or identity"),
        ("participant,gender\n", "expected participant or identity"),
        ("participant,gender\n1,X\n", "line 2: gender is 'X', expected one of m, male, f, female"),
        ("participant,consent\n1,maybe\n", "line 2: consent is 'maybe', expected one of true, yes"),
        ("participant,gender\n,M\n", "line 2: '' names nobody"),
        ("participant,gender\n1,M\n01,F\n", "line 3: ID_1 stands there twice, with different"),
        ("participant,consent\n1,true\n1,false\n", "line 3: ID_1 stands there twice"),
    ],
)
def test_unfit_gender_tables_are_refused(tmp_path, text, message):
    with pytest.raises(StepError, match=message):
        read_participants(write(tmp_path, text))


def test_missing_gender_table_is_named(tmp_path):
    with pytest.raises(StepError, match=r"none\.csv does not exist"):
        read_participants(tmp_path / "none.csv")


def test_a_folder_and_another_encoding_are_one_sentence_each(tmp_path):
    with pytest.raises(StepError, match="is a folder: name the CSV file in it"):
        read_participants(tmp_path)
    (tmp_path / "p.csv").write_bytes("participant,gender\n1,F\n".encode("utf-16"))
    with pytest.raises(StepError, match=r"p\.csv is no UTF-8 CSV file: save it"):
        read_participants(tmp_path / "p.csv")
