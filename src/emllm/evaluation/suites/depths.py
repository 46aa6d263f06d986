"""Where the evidence of a question stands in its text, in percent: 0 at the beginning, 100 at the end.

A curve by depth needs one place. Evidence at several is no easier to find at their mean or at the first of
them, and such questions are harder than others: they would bend the curve where they are put. So they have
`depths`, for whoever wants them, and no `depth`. This module does not know texts or questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Pieces of evidence that stand within so much of the text, in percent, stand at one place.
ONE_PLACE = 1.0


def placed(depths: Sequence[float]) -> dict[str, Any]:
    """`depth` of evidence at one place, the mean of its pieces; `depths` of several, in their order."""
    found: dict[str, Any] = {"depths": [round(depth, 1) for depth in depths]} if len(depths) > 1 else {}
    if depths and max(depths) - min(depths) <= ONE_PLACE:
        found["depth"] = round(sum(depths) / len(depths), 1)
    return found
