"""Whose photographs are whose, and that a refusal holds whatever the folders look like."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline_steps.identities.candidates import collect
from pipeline_steps.identities.consent import withdrawal
from pipeline_steps.identities.participants import read_participants
from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.settings.photographs import PrepareSettings

NFC, NFD = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))


def collected(tmp_path, paths, table="", withdrawn="", **changes):
    """Identity, or why it is left out, to paths of a source with these files."""
    for path in paths:
        file = tmp_path / "photos" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / "people.csv").write_text(f"participant,consent,absent\n{table}\n", "utf-8")
    if withdrawn:
        (tmp_path / "withdrawn.csv").write_text(f"identity,absent\n{withdrawn}\n", "utf-8")
    settings = PrepareSettings(
        sources=(str(tmp_path / "photos"),),
        gender_table=str(tmp_path / "people.csv"),
        **{"file_pattern": None, **changes},
    )
    people = read_participants(Path(settings.gender_table)) if table else {}
    collection = collect(settings, people)
    found = defaultdict(list)
    for one in collection.candidates:
        path = one.photograph.source.removeprefix("photos/")
        found[one.reason.split(" (")[0] or one.identity].append(path)
    return dict(found)


def test_folders_of_one_name_below_two_people_are_refused_with_both_paths(tmp_path):
    paths = ["anna/2024/a.png", "bob/2024/b.png"]
    with pytest.raises(StepError, match=r"'photos/anna/2024' and 'photos/bob/2024' would become"):
        collected(tmp_path, paths, "anna,false,")
    assert collected(tmp_path, paths, "anna,false,", participant_level=1) == {
        "no consent": ["anna/2024/a.png"],
        "ID_bob": ["bob/2024/b.png"],
    }


def test_a_folder_named_as_a_person_twice_is_one_where_the_level_says_so(tmp_path):
    paths = ["Set1/7/a.png", "Set2/7/b.png", "Set2/8/c.png"]
    with pytest.raises(StepError, match=r"'photos/Set1/7' and 'photos/Set2/7'"):
        collected(tmp_path, paths)
    assert collected(tmp_path, paths, participant_level=2) == {
        "ID_7": paths[:2],
        "ID_8": paths[2:],
    }


@pytest.mark.parametrize("written", ["anna", "ANNA", "ID_Anna", " Anna "])
@pytest.mark.parametrize("table", ["people", "withdrawn"])
@pytest.mark.parametrize("paths", [["Anna/a.png"], ["Anna/2023/a.png", "Anna/2024/a.png"]])
def test_a_refusal_holds_below_every_folder_of_that_name(tmp_path, written, table, paths):
    line = {"people": {"table": f"{written},no,"}, "withdrawn": {"withdrawn": f"{written},"}}
    found = collected(tmp_path, [*paths, "bob/2022/b.png"], **line[table])
    assert found == {"no consent": paths, "ID_2022": ["bob/2022/b.png"]}


@pytest.mark.parametrize(("written", "folder"), [(NFC, NFD), (NFD, NFC), ("ZOË", NFD)])
def test_a_refusal_holds_in_whatever_encoding_of_accents(tmp_path, written, folder):
    found = collected(tmp_path, [f"{folder}/a.png", "bob/b.png"], f"{written},false,")
    assert found == {"no consent": [f"{folder}/a.png"], "ID_bob": ["bob/b.png"]}
    (identity,) = collected(tmp_path, [f"{folder}/a.png"], withdrawn="").keys() - {"ID_bob"}
    found = collected(tmp_path, [f"{folder}/a.png"], withdrawn=f"{identity},")
    assert found["no consent"] == [f"{folder}/a.png"]


@pytest.mark.parametrize(
    ("paths", "table", "message"),
    [
        (["anna/a.png"], "ana,false,", "refuses 'ana', but no folder of the sources is called so"),
        (["subject-2/s1/a.png", "subject-3/s2/b.png"], "2,false,", "'photos/subject-3/s2' and"),
        (["Set2/anna/a.png", "Set2/bob/b.png"], "2,false,", "refuses '2', by which it may mean"),
        (["1/5/a.png", "2/1/b.png"], "1,false,", "'photos/2/1' and 'photos/1/5'"),
        (["anna/a.png", "anna/2024/b.png", "bob/c.png"], "", "'photos/anna' and in"),
        (["anna/a.png", "Anna/b.png"], "anna,false,", "'photos/Anna' and 'photos/anna' would"),
        (["anna/a.png"], "anna,true,\nAnna,false,", "stands there twice"),
    ],
)
def test_whatever_is_ambiguous_about_consent_stops_the_run(tmp_path, paths, table, message):
    with pytest.raises(StepError, match=message) as caught:
        collected(tmp_path, paths, table)
    assert ". " not in str(caught.value).removesuffix(".")


def test_who_need_not_be_there_is_no_error_and_is_still_refused(tmp_path):
    assert collected(tmp_path, ["bob/b.png"], "ana,false,true") == {"ID_bob": ["bob/b.png"]}
    assert collected(tmp_path, ["ana/b.png"], "ana,false,yes")["no consent"] == ["ana/b.png"]


def test_a_set_that_bears_a_participants_number_is_not_that_participant(tmp_path):
    paths = [f"TD_RGB_A_Set2/{n}/a.png" for n in (1, 2, 31)]
    found = collected(tmp_path, paths, withdrawn="ID_2,")
    assert found == {"ID_1": paths[:1], "no consent": paths[1:2], "ID_31": paths[2:]}


def test_results_of_whom_a_folder_above_names_go_too(tmp_path, monkeypatch):
    paths = ["anna/2024/a.png", "bob/2023/b.png"]
    collected(tmp_path, paths, "ANNA,false,")
    for identity in ("ID_2024", "ID_2023"):
        image = tmp_path / f"results/dataset/images/{identity}/a.png"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"x")
    settings = PrepareSettings(
        sources=(str(tmp_path / "photos"),), gender_table=str(tmp_path / "people.csv")
    )
    plan = SimpleNamespace(
        study=SimpleNamespace(prepare=settings), results=str(tmp_path / "results")
    )
    gone = []
    monkeypatch.setattr(withdrawal, "withdraw", lambda _, identity, **about: gone.append(identity))
    assert withdrawal.remove_refused(plan) == gone == ["ID_2024"]


def test_a_link_into_a_refused_folder_is_refused_and_one_out_of_the_source_is_not_read(tmp_path):
    collected(tmp_path, ["anna/a.png", "bob/b.png"])
    (tmp_path / "secret.png").write_bytes(b"x")
    for name, target in {
        "own": "b.png",
        "hers": "../anna/a.png",
        "out": "../../secret.png",
    }.items():
        (tmp_path / f"photos/bob/{name}.png").symlink_to(target)
    found = collected(tmp_path, [], "anna,false,")
    assert found["no consent"] == ["anna/a.png", "bob/hers.png"]
    assert found["ID_bob"] == ["bob/b.png", "bob/out.png", "bob/own.png"]


@pytest.mark.parametrize(
    "header",
    ["participant,consented", "participant,gender,Consent?", "participant,identity,consent"],
)
def test_columns_that_may_be_about_consent_are_not_passed_over(tmp_path, header):
    (tmp_path / "p.csv").write_text(header + "\n" + "f," * header.count(",") + "f\n")
    with pytest.raises(StepError, match="of that name"):
        read_participants(tmp_path / "p.csv")


def test_cells_beyond_the_header_and_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("consent,participant\nfalse,Müller, Anna\n")
    with pytest.raises(StepError, match="line 2 has more cells than the header"):
        read_participants(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("participant,consent,Consent\nanna,false,true\n")
    with pytest.raises(StepError, match="two columns of one name"):
        read_participants(tmp_path / "p.csv")
