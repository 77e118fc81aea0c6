"""What goes with a person whom no manifest counts: whatever says that they have a part in it."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import save_file

from pipeline_steps.identities.consent.removal import plan_removal
from pipeline_steps.identities.consent.search import inventory
from pipeline_steps.io.manifests import write_manifest


def going(results: Path, identity: str) -> set[str]:
    removals, _ = plan_removal(results, inventory(results), identity, set())
    return {Path(removal.path).relative_to(results).as_posix() for removal in removals}


def test_joint_images_packed_exports_and_recognisers_go_though_no_manifest_names_them(
    tmp_path: Path,
) -> None:
    kept = {"identity": "ID_1", "file": "images/ID_1/0.png", "kept": True}
    write_manifest(tmp_path / "dataset/manifest.parquet", [kept])
    together = tmp_path / "together/demo/facefusion"
    for group in ("pair", "other"):
        (together / group).mkdir(parents=True)
        (together / group / "0.png").write_bytes(b"an image")
    people = {"pair/0.png": ["ID_1", "ID_7"], "other/0.png": ["ID_1", "ID_2"]}
    rows = [{"file": file, "people": names} for file, names in people.items()]
    write_manifest(together / "manifest.parquet", rows)
    for prompts, labels in (("base", "ID_1\nID_7\n"), ("complex", "ID_1\n")):
        export = tmp_path / f"export/demo/idbooth/{prompts}"
        export.mkdir(parents=True)
        (export / "labels.txt").write_text(labels)
        (export / "train.rec").write_bytes(b"many images")
    models = tmp_path / "recognition"
    for name, trained_on in (("real", '["ID_1"]'), ("demo-idbooth-base", '["ID_1", "ID_7"]')):
        (models / name / "seed0").mkdir(parents=True)
        place = models / name / "seed0/model.safetensors"
        save_file({}, place, {"identities": trained_on})
    assert going(tmp_path, "ID_7") == {
        *("together/demo/facefusion/manifest.parquet", "together/demo/facefusion/pair/0.png"),
        "together/demo/facefusion/other/0.png",
        *("export/demo/idbooth/base/labels.txt", "export/demo/idbooth/base/train.rec"),
        "recognition/demo-idbooth-base/seed0/model.safetensors",
    }
    assert going(tmp_path, "ID_9") == set()
