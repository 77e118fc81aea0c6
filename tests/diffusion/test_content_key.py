"""Keys follow what the code does, not how it is written."""

from __future__ import annotations

from pipeline_steps.diffusion.content_key import code_hash, content_key, source_hash

SOURCE = '''
def double(x):
    """Twice x."""
    return 2 * x
'''


def test_comments_docstrings_and_layout_do_not_count() -> None:
    same = "def double(x):\n    # other words\n    return (2 *\n        x)\n"
    assert source_hash(same) == source_hash(SOURCE)
    assert source_hash(SOURCE.replace("2 *", "3 *")) != source_hash(SOURCE)


def test_keys_name_their_parts() -> None:
    assert content_key(rank=8, alpha=16) != content_key(rank=16, alpha=8)
    assert content_key(rank=8, alpha=16) == content_key(alpha=16, rank=8)


def test_a_steps_code_is_the_same_twice_and_differs_between_steps() -> None:
    assert code_hash("sample") == code_hash("sample")
    assert code_hash("sample") != code_hash("finetune")
