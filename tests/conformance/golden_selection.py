"""What the released code takes of ranked events, and its contiguity buffer, by the documented rules.

Only for the tests that compare ours with it: they first assert that these give every recorded choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def nearest_fill(
    events: Iterable[int], sizes: Sequence[int], cap_tokens: int, *, used_tokens: int = 0
) -> tuple[list[int], bool]:
    """The events in order until they reach the cap, and whether they did.

    The last is dropped if leaving it out is at least as near to the cap.
    """
    taken: list[int] = []
    for event in events:
        before, used_tokens = used_tokens, used_tokens + sizes[event]
        if used_tokens < cap_tokens:
            taken.append(event)
            continue
        return (taken if cap_tokens - before <= used_tokens - cap_tokens else [*taken, event]), True
    return taken, False


def next_buffer(
    similar: Sequence[int], buffer: list[int], sizes: Sequence[int], cap_tokens: int
) -> tuple[list[int], str]:
    """The contiguity buffer after a step, and what happened to the one before."""
    near = dict.fromkeys(b for event in similar for b in (event + 1, event - 1) if 0 <= b < len(sizes))
    fresh, is_full = nearest_fill([event for event in near if event not in similar], sizes, cap_tokens)
    fresh.reverse()
    if not fresh:
        return buffer, "stays"
    if not buffer or is_full:
        return fresh, "replaced"
    fresh_tokens = sum(sizes[event] for event in fresh)
    if sum(sizes[event] for event in buffer) + fresh_tokens < cap_tokens:
        return buffer + fresh, "followed"
    older = dict.fromkeys(event for event in reversed(buffer) if event not in similar and event not in fresh)
    kept, _ = nearest_fill(older, sizes, cap_tokens, used_tokens=fresh_tokens)
    return kept[::-1] + fresh, "preceded"
