"""Units of the log that are raw, and their passage into encoded pages.

This module does not know why a unit may be sealed, nor which tokens a layer still asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

from emllm.store.log import Log, Unit


def raw_units(log: Log, before: int) -> list[tuple[int, Unit]]:
    """Closed units after the last sealed one that stop at or before a token, each with its index."""
    units = log.units
    first = next((i for i in range(len(units) - 1, -1, -1) if units[i].sealed is not None), -1) + 1
    return [(i, units[i]) for i in range(first, len(units)) if units[i].stop <= before]


def seal(log: Log, units: Sequence[tuple[int, Unit]]) -> None:
    """Encode units of a log that has tiers."""
    tiers = log.tiers
    assert tiers is not None
    for unit_idx, unit in units:
        pages = tiers.pack(*log.raw(unit.start, unit.stop))
        log.settle(unit_idx, tiers.add(pages, unit.stop - unit.start))
