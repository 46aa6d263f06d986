"""Which pages are where in a pool of limited size: ids to slots, least recently used out first.

Only integers, as arrays; a table with a row for every id ever seen answers a lookup at once. This module does
not know what is in a slot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MISSING = -1
_FIRST_IDS = 1024


class Residency:
    """Ids, which are 0 or more without bound, in at most ``capacity`` slots. Not for several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slot_of_id = np.zeros(0, dtype=np.int64)
        self._id_of_slot = np.full(capacity, MISSING, dtype=np.int64)
        # When a slot was last used; those never used or emptied are negative, and the lower goes first.
        self._used = _free(np.arange(capacity), capacity)
        self._clock = 0

    def __len__(self) -> int:
        """Ids that have a slot."""
        return int(np.count_nonzero(self._id_of_slot != MISSING))

    def lookup(self, ids: Ids) -> Ids:
        """The slots of the ids, -1 for those missing. Those found count as used, the last as latest."""
        slots = self._slots(ids)
        self._touch(slots[slots != MISSING])
        return slots

    def admit(self, ids: Ids) -> Ids:
        """Give each of the ids a slot; those that have one keep it.

        Free slots are taken from the lowest up, then those of the least recently used ids that are not among
        these.

        Args:
            ids: distinct, at most ``capacity``.
        """
        assert len(ids) <= self.capacity, f"{len(ids)} ids for {self.capacity} slots"
        slots = self.lookup(ids)
        is_missing = slots == MISSING
        slots[is_missing] = self._vacate(int(np.count_nonzero(is_missing)))
        self._grow(ids)
        self._slot_of_id[ids] = slots
        self._id_of_slot[slots] = ids
        self._touch(slots)
        return slots

    def drop(self, ids: Ids) -> None:
        """Take the slots away from those of the ids that have one."""
        slots = self._slots(ids)
        slots = np.unique(slots[slots != MISSING])
        self._slot_of_id[self._id_of_slot[slots]] = MISSING
        self._id_of_slot[slots] = MISSING
        self._used[slots] = _free(slots, self.capacity)

    def check_integrity(self) -> None:
        """Raise if the two directions disagree; for tests."""
        taken = np.flatnonzero(self._id_of_slot != MISSING)
        assert np.array_equal(self._slot_of_id[self._id_of_slot[taken]], taken)
        assert np.count_nonzero(self._slot_of_id != MISSING) == len(taken) == len(self) <= self.capacity
        free = np.flatnonzero(self._id_of_slot == MISSING)
        assert np.array_equal(self._used[free], _free(free, self.capacity))
        assert (self._used[taken] >= 0).all() and (self._used < self._clock).all()
        assert len(np.unique(self._used)) == self.capacity

    def _slots(self, ids: Ids) -> Ids:
        slots = np.full(len(ids), MISSING, dtype=np.int64)
        is_known = ids < len(self._slot_of_id)
        slots[is_known] = self._slot_of_id[ids[is_known]]
        return slots

    def _touch(self, slots: Ids) -> None:
        self._used[slots] = np.arange(self._clock, self._clock + len(slots))
        self._clock += len(slots)

    def _vacate(self, num: int) -> Ids:
        """Slots for that many new ids, in ascending order; what was in them has none any more."""
        if num == 0:
            return np.zeros(0, dtype=np.int64)
        slots = np.sort(np.argpartition(self._used, num - 1)[:num])
        evicted = self._id_of_slot[slots]
        self._slot_of_id[evicted[evicted != MISSING]] = MISSING
        return slots

    def _grow(self, ids: Ids) -> None:
        needed = int(ids.max(initial=-1)) + 1
        if needed > len(self._slot_of_id):
            larger = np.full(max(_FIRST_IDS, needed * 3 // 2), MISSING, dtype=np.int64)
            larger[: len(self._slot_of_id)] = self._slot_of_id
            self._slot_of_id = larger


def _free(slots: Ids, capacity: int) -> Ids:
    return slots - capacity
