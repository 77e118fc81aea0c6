from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline_steps.seeds import numpy_generator, seed_for, torch_generator


def test_seeds_are_the_published_numbers() -> None:
    # Written down once; a release that changes them changes every study.
    assert seed_for(0) == 6_197_007_067_532_723_406
    assert seed_for(0, "sample", "ID_3", 7) == 6_844_915_780_033_012_493


def test_seed_is_63_bits_of_blake2b_over_canonical_json() -> None:
    digest = hashlib.blake2b(b'[5,"finetune","ID_1"]', digest_size=8).hexdigest()
    assert seed_for(5, "finetune", "ID_1") == int(digest, 16) // 2
    assert all(0 <= seed_for(0, k) < 2**63 for k in range(200))


def test_order_type_and_grouping_of_keys_matter() -> None:
    seeds = {
        seed_for(0, "a", "b"),
        seed_for(0, "b", "a"),
        seed_for(0, "ab"),
        seed_for(0, "a,b"),
        seed_for(0, "a", 1),
        seed_for(0, "a", "1"),
        seed_for(1, "a", "b"),
    }
    assert len(seeds) == 7


@pytest.mark.parametrize("key", [1.5, None, True, ("a",)])
def test_other_keys_are_refused(key: object) -> None:
    with pytest.raises(TypeError, match="strings or integers"):
        seed_for(0, key)  # type: ignore[arg-type]


def test_generators_repeat_and_differ_between_purposes() -> None:
    assert np.array_equal(
        numpy_generator(3, "x").normal(size=8), numpy_generator(3, "x").normal(size=8)
    )
    assert not np.array_equal(
        numpy_generator(3, "x").normal(size=8), numpy_generator(3, "y").normal(size=8)
    )
    assert torch_generator(3, "x").initial_seed() == seed_for(3, "x")
    assert torch_generator(3, "x").device.type == "cpu"
