from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_steps.runtime.errors import StepError
from pipeline_steps.study.sources import Source, audited, identities_of, source_of, trained_on


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("results/s/features/real/arcface.safetensors", "features", Source("real")),
        ("features/wild/x.safetensors", "features", Source("wild")),
        (
            "features/odd/features/sd21/idbooth/base/x",
            "features",
            Source("sd21", "idbooth", "base"),
        ),
        (
            "r/aligned/demo/untuned/complex/manifest.parquet",
            "aligned",
            Source("demo", "untuned", "complex"),
        ),
    ],
)
def test_source_is_read_off_the_folders(path: str, root: str, expected: Source) -> None:
    assert source_of(Path(path), root) == expected


@pytest.mark.parametrize("path", ["x.safetensors", "features/fake/x", "features/a/b/x", "a/b/c/x"])
def test_other_folders_are_refused(path: str) -> None:
    with pytest.raises(StepError, match="cannot tell what"):
        source_of(Path(path), "features")


def test_names_of_sources() -> None:
    assert Source("real").name == "real"
    assert Source("real").is_reference
    assert Source("sd21", "idbooth", "base").name == "sd21/idbooth/base"
    assert not Source("sd21", "idbooth", "base").is_reference


def test_training_set_and_seed_are_read_off_the_folders() -> None:
    assert trained_on(Path("recognition/real/seed2/verification.csv")) == (
        "real",
        Source("real"),
        2,
    )
    name, source, seed = trained_on(Path("recognition/sd-2-idbooth-base/seed0/verification.csv"))
    assert (name, source, seed) == ("sd-2-idbooth-base", Source("sd-2", "idbooth", "base"), 0)
    with pytest.raises(StepError, match="trained on"):
        trained_on(Path("recognition/real/verification.csv"))


def test_identity_is_the_first_folder_or_the_image_itself() -> None:
    assert identities_of(["ID_1/0.png", "ID_1/1.png", "00007.png"]) == ["ID_1", "ID_1", "00007.png"]


def test_audited_variants_are_read_off_the_path() -> None:
    path = Path("results/s/audit/sd21/idbooth/base.pairs.csv")
    assert audited(path) == Source("sd21", "idbooth", "base")
    with pytest.raises(StepError, match="cannot tell what"):
        audited(Path("results/s/tables/sd21/idbooth/base.pairs.csv"))
