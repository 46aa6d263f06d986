"""The searches of a recorded refinement, by the rules that the golden data's README documents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """A boundary whose splits ``[first, event)`` were measured in the window ``[low, high)``.

    The best one that keeps the least size after `first` was taken. Indices are those of the similarity
    matrix: what is before the chunk, then the chunk. `half` is how far the window would reach to both
    sides if the matrix had no ends.
    """

    previous: int
    event: int
    first: int
    low: int
    high: int

    @property
    def half(self) -> int:
        return (self.event - self.previous) // 2


def searches_of(entry: dict, *, num_tokens: int, min_tokens: int) -> list[Search]:
    """Of one refinement: as recorded, which is asserted.

    Raw boundaries nearer than the least size to the previous *raw* one are dropped first. Of a search the
    record holds the first split, the event and the size of the window, relative to the window.
    """
    offset, found = entry["offset"], []
    raw = [event + offset for event in entry["events_in"]]
    kept = [b for a, b in itertools.pairwise([None, *raw]) if _is_kept(a, b, offset, min_tokens)]
    refined = [event + offset for event in entry["events_out"]]
    for previous, event in zip([0, *refined], kept, strict=False):
        if event - previous > min_tokens and event - offset > min_tokens:
            half, first = (event - previous) // 2, max(previous, offset)
            found.append(
                Search(previous, event, first, max(0, previous - half), min(num_tokens, event + half))
            )
    relative = [[search.first - search.low, search.event - search.low] for search in found]
    assert [recorded[:2] for recorded in entry["searches"]] == relative
    assert [recorded[2] for recorded in entry["searches"]] == [search.high - search.low for search in found]
    return found


def _is_kept(before: int | None, event: int, offset: int, min_tokens: int) -> bool:
    return event - before >= min_tokens if before is not None else not (offset and event < min_tokens)
