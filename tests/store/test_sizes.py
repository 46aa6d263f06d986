"""Sizes of pages and segments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.store.sizes import (
    LEAST_SEGMENT_PAGES,
    MOST_SEGMENT_TOKENS,
    PAGE_TOKENS,
    SEGMENT_BYTES,
    most_raw_tokens,
    segment_tokens,
)


@given(st.integers(1, 1 << 24), st.sampled_from([1, 16, 64, 128, 1024]))
def test_a_segment_is_the_power_of_two_of_pages_nearest_below_its_size(
    kv_bytes_per_token: int, page_tokens: int
) -> None:
    tokens = segment_tokens(kv_bytes_per_token, page_tokens=page_tokens)
    pages, rest = divmod(tokens, page_tokens)
    assert rest == 0 and pages & (pages - 1) == 0
    assert LEAST_SEGMENT_PAGES * page_tokens <= tokens <= MOST_SEGMENT_TOKENS
    if pages > LEAST_SEGMENT_PAGES:
        assert tokens * kv_bytes_per_token <= SEGMENT_BYTES
    if tokens < MOST_SEGMENT_TOKENS:
        assert 2 * tokens * kv_bytes_per_token > SEGMENT_BYTES


@pytest.mark.parametrize(
    ("kv_bytes", "expected"), [(23_040, 2048), (131_072, 512), (1, 16_384), (1 << 24, 256)]
)
def test_segments_of_known_models(kv_bytes: int, expected: int) -> None:
    assert segment_tokens(kv_bytes, page_tokens=PAGE_TOKENS) == expected


def test_raw_tokens_are_a_segment_the_views_and_a_chunk() -> None:
    assert most_raw_tokens(segment_tokens=2048, local_tokens=512, recall_tokens=512, chunk_tokens=512) == 3584
