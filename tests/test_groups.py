"""The step that compares groups of people, from features to its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from pipeline_steps.evidence.names import WORST_TO_BEST
from pipeline_steps.evidence.scores.groups import GROUP_COLUMNS
from pipeline_steps.groups import main
from pipeline_steps.io.manifests import write_manifest
from pipeline_steps.io.tensors import save_features
from pipeline_steps.runtime.errors import StepError

PEOPLE = [f"ID_{number}" for number in range(1, 9)]
TONE = {name: 60.0 if number < 4 else -40.0 for number, name in enumerate(PEOPLE)}
VARIANT = "demo/idbooth/base"


class Study:
    """Photographs and samples of eight people; the table of participants knows six ages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        centres = {name: rng.normal(size=8) for name in PEOPLE}
        for source in ("real", VARIANT):
            files = [f"{name}/{index}.png" for name in PEOPLE for index in range(4)]
            owners = [file.partition("/")[0] for file in files]
            kept = [source == "real" or not file.endswith("0.png") for file in files]
            rows = zip(owners, files, kept, strict=True)
            manifest = [{"identity": one, "file": file, "kept": face} for one, file, face in rows]
            write_manifest(root / "aligned" / source / "manifest.parquet", manifest)
            seen = [file for file, face in zip(files, kept, strict=True) if face]
            own = [file.partition("/")[0] for file in seen]
            features = {
                "judge": ("recogniser", [centres[name] + 0.5 * rng.normal(size=8) for name in own]),
                "crfiqa": ("quality", rng.normal(2.0, 0.1, (len(seen), 1))),
                "ita": ("skin_tone", [[TONE[name] + rng.normal()] for name in own]),
            }
            for name, (task, values) in features.items():
                path = root / "features" / source / f"{name}.safetensors"
                save_features(path, np.asarray(values, np.float32), seen, task=task)
        genders = ["F", "M"] * 3 + ["F", ""]
        table = pd.DataFrame({"identity": PEOPLE, "gender": genders, "n_images": 4})
        table.to_csv(root / "identities.csv", index=False)
        (root / "people.csv").write_text(
            "Participant,gender,Age band\n" + "".join(f"{n},F,{20 + n % 2}s\n" for n in range(1, 7))
        )

    def run(self, source: str = VARIANT, *extra: str, by: tuple[str, ...] = ()) -> pd.DataFrame:
        config = {"study": "s", "step": "groups", "seed": 0, "weights": {}, "variant": {}}
        settings = {"min_people": 3, "fmr": 0.01} | ({"by": by} if by else {})
        (self.root / "groups.json").write_text(json.dumps(config | {"settings": settings}))
        features = self.root / "features"
        argv = ["--config", self.root / "groups.json", "--identities", self.root / "identities.csv"]
        argv += ["--real", *sorted((features / "real").glob("*.safetensors"))]
        argv += ["--aligned", self.root / "aligned" / source / "manifest.parquet"]
        if source != "real":
            argv += ["--variant-features", *sorted((features / source).glob("*.safetensors"))]
        out = self.root / "groups" / source / "groups.csv"
        assert main([*map(str, argv), *extra, "--out", str(out)]) == 0
        return pd.read_csv(out, keep_default_na=False, na_values=[""])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_groups_are_of_gender_and_of_the_photographs_skin_tone(study: Study) -> None:
    frame = study.run()
    assert tuple(frame.columns) == GROUP_COLUMNS
    assert frame["by"].tolist() == ["gender"] * 3 + ["skin_tone"] * 3
    assert frame["group"].tolist() == ["F", "M", WORST_TO_BEST, "very light", "dark", WORST_TO_BEST]
    assert frame["n_people"].tolist()[:2] == [4, 3]  # of one nothing is said
    assert frame["faces"].tolist()[:2] == [0.75, 0.75]
    assert frame["n_images"].tolist()[:2] == [16, 12]
    assert frame["ita_mean"].tolist()[3:5] == pytest.approx([60.0, -40.0], abs=1.0)
    photographs = study.run("real")
    assert photographs["base_model"].eq("real").all()
    assert photographs["faces"].tolist()[:2] == [1.0, 1.0]


def test_further_columns_are_read_from_the_participants_table(study: Study) -> None:
    people = ("--participants", str(study.root / "people.csv"))
    frame = study.run(VARIANT, *people, by=("age band",))
    assert frame["group"].tolist() == ["20s", "21s", WORST_TO_BEST]
    assert frame["n_people"].tolist()[:2] == [3, 3]
    with pytest.raises(StepError, match=r"lacks the column height, it has \['age band'"):
        study.run(VARIANT, *people, by=("height",))
    with pytest.raises(StepError, match=r"groups\.by names height.*prepare\.gender_table"):
        study.run(by=("height",))


def test_a_person_of_whom_two_things_are_said_is_named(study: Study) -> None:
    with (study.root / "people.csv").open("a") as table:
        table.write("ID_1,F,40s\n")
    with pytest.raises(StepError, match=r"line 8: ID_1 stands there twice.*age band"):
        study.run(VARIANT, "--participants", str(study.root / "people.csv"), by=("age band",))


def test_features_without_a_judge_are_refused(study: Study) -> None:
    for source in ("real", VARIANT):
        (study.root / "features" / source / "judge.safetensors").unlink()
    with pytest.raises(StepError, match="no features of the task recogniser"):
        study.run()


def test_an_external_set_has_rows_where_it_shows_the_studys_people(study: Study) -> None:
    for part in ("aligned", "features"):
        (study.root / part / "external").mkdir()
        (study.root / part / VARIANT).rename(study.root / part / "external/others")
    frame = study.run("external/others")
    assert frame["n_people"].tolist()[:2] == [4, 3] and set(frame["method"]) == {"others"}
    table = study.root / "identities.csv"
    table.write_text(table.read_text().replace("ID_", "other_"))
    for file in (study.root / "features/real").iterdir():
        with safe_open(file, "np") as stored:
            files = json.loads(stored.metadata()["files"])
            task, rows = stored.metadata()["task"], stored.get_tensor("features")
        save_features(file, rows, [name.replace("ID_", "other_") for name in files], task=task)
    assert study.run("external/others").empty
