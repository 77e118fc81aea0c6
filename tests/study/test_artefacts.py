"""The ledger: one table from which paths, owners and code follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.artefacts import (
    ARTEFACTS,
    at,
    code_of,
    entry_of,
    fields_of,
    sets_of,
    source_of,
    training_set_of,
)
from pipeline_steps.study.code import code_hash
from pipeline_steps.study.source import Source

VALUES = {
    "source": "sd21/idbooth/base",
    "variant": "sd21/idbooth/base",
    "repetition": "0",
    "method": "idbooth",
    "without_people": "prior/sd21.log",
    "ending": "csv",
}
FURTHER = [name for name in ARTEFACTS if name.endswith(("_further", "_half_written"))]


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_path_leads_back_to_its_artefact_and_fields(name: str) -> None:
    fields = {field: VALUES.get(field, "x") for field in ARTEFACTS[name].pattern.groupindex}
    entry = entry_of(at("results/s", name, **fields).removeprefix("results/s/"))
    assert entry is not None
    if name not in FURTHER:  # what they catch is what no other artefact is
        assert (entry.name, entry.fields) == (name, fields)


def test_fields_that_are_not_given_stay_as_wildcards() -> None:
    path = at("results/s", "features", source="real")
    assert path == "results/s/features/real/{extractor}.safetensors"
    with pytest.raises(KeyError, match="no field"):
        at("results/s", "features", variant="real")


def test_artefacts_are_made_from_artefacts() -> None:
    for artefact in ARTEFACTS.values():
        assert set(artefact.made_from) <= set(ARTEFACTS)


def test_the_code_of_every_step_is_there() -> None:
    for step in {artefact.step for artefact in ARTEFACTS.values()} - {"", "freeze"}:
        for method in ("dreambooth", "idbooth"):
            assert code_hash(*code_of(step, method=method, architecture="stable_diffusion"))
            if step == "finetune":
                roots, _ = code_of(step, method=method, architecture="stable_diffusion")
                assert f"diffusion.methods.{method}:METHOD" in roots


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("results/s/features/real/arcface.safetensors", "features", Source("real")),
        ("features/wild/x.safetensors", "features", Source("wild")),
        (
            "features/odd/features/sd21/idbooth/base/x.safetensors",
            "features",
            Source("sd21", "idbooth", "base"),
        ),
        (
            "r/aligned/demo/untuned/complex/manifest.parquet",
            "aligned",
            Source("demo", "untuned", "complex"),
        ),
        (
            "results/s/audit/sd21/idbooth/base.pairs.csv",
            "audit_pairs",
            Source("sd21", "idbooth", "base"),
        ),
    ],
)
def test_a_set_of_images_is_read_off_the_path(path: str, name: str, expected: Source) -> None:
    assert source_of(Path(path), name) == expected


@pytest.mark.parametrize("path", ["x.safetensors", "features/fake/x.safetensors", "a/b/c/x"])
def test_other_places_are_refused(path: str) -> None:
    with pytest.raises(StepError, match="cannot tell what"):
        source_of(Path(path), "features")


def test_names_of_sets_lead_back_to_them() -> None:
    assert Source("real").is_reference and Source("real").name == "real"
    source = Source("sd21", "idbooth", "base")
    assert Source.named(source.name) == source and not source.is_reference
    others = Source("external", "vface")
    assert others.name == "external/vface" and Source.named(others.name) == others
    assert others.is_external and not others.is_reference
    place = Path("results/s/aligned/external/vface/ID_1/0.png")
    assert source_of(place, "aligned_image") == others
    assert source_of(Path("results/s/audit/external/vface.csv"), "audit") == others


def test_training_set_and_repetition_are_read_off_the_path() -> None:
    place = Path("recognition/real/seed2/verification.csv")
    assert training_set_of(place) == ("real", Source("real"), 2)
    place = Path("recognition/sd-2-idbooth-base/seed0/verification.csv")
    expected = ("sd-2-idbooth-base", Source("sd-2", "idbooth", "base"), 0)
    assert training_set_of(place) == expected
    with pytest.raises(StepError, match="cannot tell what"):
        training_set_of(Path("recognition/real/verification.csv"))
    assert sets_of("real+sd-2-idbooth-base") == ["real", "sd-2/idbooth/base"]
    joined = Path("recognition/real+a-idbooth-base+external-vface/seed0/model.safetensors")
    assert training_set_of(joined)[1] == Source("real+a+external", "idbooth+vface", "base")
    assert training_set_of(Path("recognition/external-vface/seed0/verification.csv"))[1] == Source(
        "external", "vface"
    )


def test_one_of_several_artefacts_may_be_meant() -> None:
    path = Path("results/s/scores/pose/reference.csv")
    assert fields_of(path, "scores", "reference_scores") == {"kind": "pose"}
