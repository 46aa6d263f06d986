"""How many tokens lie where: the sizes that the store, the pools and plans share.

A page is consecutive tokens of one layer, a unit consecutive tokens of all layers: a chunk, in one
file. This module does not know what a page is encoded with, nor where it lies.
"""

from __future__ import annotations

#: Tokens of a page, the unit that is fetched, decoded and kept in a tier.
PAGE_TOKENS = 64


def most_raw_tokens(*, local_tokens: int, recall_tokens: int, chunk_tokens: int) -> int:
    """Most tokens that are raw in RAM at any time.

    A unit leaves when all of it has left the local view, which reaches back to the last recallable event, by
    as much as the recall budget; then come the chunk that is being written and the one that is being read.
    """
    return local_tokens + recall_tokens + 2 * chunk_tokens
