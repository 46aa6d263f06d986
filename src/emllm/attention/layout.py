"""Where the tokens of the attended context stand: the position policies.

A context is ``[sinks | episodes | local]``, followed by the chunk. A policy says which positions the
keys get and from which position the queries look; only differences matter to a rotary model.

- `ordered`: all tokens stand side by side in the order of the log, so that order inside an event and
  between events survives, and nothing lies further away than the context is long.
- `paper`: sinks and episodes are not rotated and are seen from one constant distance, the length of
  the local window (EM-LLM, appendix A; InfLLM, section 3.2). **Deviation**: the released code
  uses one position less.

This module does not know what the tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Positions for one context.

    Attributes:
        num_far: leading tokens of the context that are not rotated and seen from `far_distance`.
        far_distance: position of every query as seen by the far tokens.
        num_near: remaining tokens of the context, at positions ``0, 1, ...``; the chunk follows on.
    """

    num_far: int
    far_distance: int
    num_near: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the context, without the chunk."""
        return self.num_far + self.num_near


PositionPolicy = Callable[[int, int, int, int], Layout]


def ordered(num_sinks: int, num_recalled: int, num_local: int, local_tokens: int) -> Layout:
    """Sinks, episodes and local context side by side."""
    return Layout(num_far=0, far_distance=local_tokens, num_near=num_sinks + num_recalled + num_local)


def paper(num_sinks: int, num_recalled: int, num_local: int, local_tokens: int) -> Layout:
    """Sinks and episodes at one constant distance; local context at its true distances."""
    return Layout(num_far=num_sinks + num_recalled, far_distance=local_tokens, num_near=num_local)


POSITION_POLICIES: Mapping[str, PositionPolicy] = {"ordered": ordered, "paper": paper}
