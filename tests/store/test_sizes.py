"""How many tokens lie where."""

from __future__ import annotations

from emllm.store.sizes import most_raw_tokens


def test_raw_tokens_are_the_views_and_two_chunks() -> None:
    assert most_raw_tokens(local_tokens=512, recall_tokens=512, chunk_tokens=512) == 2048
