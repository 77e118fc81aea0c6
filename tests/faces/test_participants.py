"""From participants to identities, and their genders."""

from __future__ import annotations

import pytest

from pipeline_steps.faces.participants import identities_of_folders, identity_name, read_genders
from pipeline_steps.files.errors import StepError


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
    ],
)
def test_folders_name_identities(folder, identity):
    assert identity_name(folder) == identity


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
    assert read_genders(write(tmp_path, text)) == {"ID_1": "M", "ID_2": "F", "ID_3": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,gender\n1,M\n", "expected participant or identity"),
        ("participant,gender\n", "expected participant or identity"),
        ("participant,gender\n1,X\n", "line 2"),
        ("participant,gender\n1,M\n01,F\n", "line 3: ID_1 has two genders"),
    ],
)
def test_unfit_gender_tables_are_refused(tmp_path, text, message):
    with pytest.raises(StepError, match=message):
        read_genders(write(tmp_path, text))


def test_missing_gender_table_is_named(tmp_path):
    with pytest.raises(StepError, match=r"none\.csv does not exist"):
        read_genders(tmp_path / "none.csv")
