from __future__ import annotations

from pipeline_steps.naming import identities_of, natural_key


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["ID_10", "ID_2", "a", "2", "ID_1", "ID_a", "10"]
    assert sorted(names, key=natural_key) == ["2", "10", "ID_1", "ID_2", "ID_10", "ID_a", "a"]


def test_names_that_differ_in_zeros_only_keep_one_order() -> None:
    assert sorted(["ID_2", "ID_02"], key=natural_key) == sorted(["ID_02", "ID_2"], key=natural_key)


def test_digits_that_are_no_decimal_numbers_are_letters() -> None:
    assert sorted(["x²", "x1"], key=natural_key) == ["x1", "x²"]


def test_identity_is_the_first_folder_or_the_image_itself() -> None:
    assert identities_of(["ID_1/0.png", "ID_1/1.png", "00007.png"]) == ["ID_1", "ID_1", "00007.png"]
