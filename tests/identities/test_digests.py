from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from pipeline_steps.identities.consent.search import all_hashes, fingerprint, hex_strings

FACE = b"\x89PNG a face"
DIGEST = hashlib.sha256(FACE).hexdigest()


def as_text(path: Path) -> None:
    path.write_text(f'{{"sha256": "{DIGEST.upper()}"}}')


def as_table(path: Path) -> None:
    pd.DataFrame({"sha256": [DIGEST] * 50}).to_parquet(path, compression="zstd")


def as_header(path: Path) -> None:
    save_file({"features": np.zeros((1, 1), np.float32)}, path, {"images": f'["{DIGEST}"]'})


def as_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("ID_7/0.png")
        member.size = len(FACE)
        archive.addfile(member, io.BytesIO(FACE))


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sums.txt", DIGEST)


def as_page(path: Path) -> None:
    path.write_text(f'<img src="data:image/png;base64,{base64.b64encode(FACE).decode()}">')


def as_itself(path: Path) -> None:
    path.write_bytes(FACE)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", as_text),
        ("a.parquet", as_table),
        ("a.safetensors", as_header),
        ("a.tar", as_tar),
        ("a.zip", as_zip),
        ("a.html", as_page),
        ("a.png", as_itself),
    ],
)
def test_a_hash_is_found_wherever_it_is(tmp_path: Path, name: str, write: object) -> None:
    assert callable(write)
    write(tmp_path / name)
    assert DIGEST in all_hashes(tmp_path / name)


def test_longer_runs_of_digits_are_no_hash() -> None:
    assert hex_strings((DIGEST + "0").encode()) == set()
    assert hex_strings(f"x {DIGEST},".encode()) == {DIGEST}


def test_a_fingerprint_does_not_give_the_hash_away() -> None:
    assert fingerprint(DIGEST) == hashlib.sha256(DIGEST.encode()).hexdigest()
    assert fingerprint(DIGEST) != DIGEST
