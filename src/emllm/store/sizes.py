"""How tokens are laid out in pages and segments: the sizes that the store, the pools and plans share.

A page is consecutive tokens of one layer, a segment consecutive tokens of all layers. This module does not
know what a page is encoded with, nor where it lies.
"""

from __future__ import annotations

#: Tokens of a page, the unit that is fetched, decoded and kept in a tier.
PAGE_TOKENS = 64

#: A segment has at least so many pages and at most so many tokens, and is about this large before encoding.
LEAST_SEGMENT_PAGES = 4
MOST_SEGMENT_TOKENS = 16_384
SEGMENT_BYTES = 64 << 20


def segment_tokens(kv_bytes_per_token: int, *, page_tokens: int = PAGE_TOKENS) -> int:
    """Tokens of a segment: as many as fit in 64 MiB, a power of two of pages, within the limits.

    Large enough that a memory of millions of tokens has few files, small enough that sealing one, and
    losing the unsealed tokens' pages to a crash, costs little.

    Args:
        kv_bytes_per_token: keys and values of one token in the model's dtype, over all layers.
        page_tokens: the result is a multiple of it.
    """
    least = LEAST_SEGMENT_PAGES * page_tokens
    tokens = least
    while 2 * tokens <= MOST_SEGMENT_TOKENS and 2 * tokens * kv_bytes_per_token <= SEGMENT_BYTES:
        tokens *= 2
    return tokens


def most_raw_tokens(*, segment_tokens: int, local_tokens: int, recall_tokens: int, chunk_tokens: int) -> int:
    """Most tokens that are not sealed at any time, kept raw.

    A segment is sealed when all of it has left the local view, which reaches back to the last recallable
    event, by as much as the recall budget; then comes the chunk that is being read.
    """
    return segment_tokens + local_tokens + recall_tokens + chunk_tokens
