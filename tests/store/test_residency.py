"""Residency against an ordered dict: the same ids stay, whatever is looked up, admitted and dropped."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emllm.store.residency import Residency

ids = st.integers(0, 30) | st.sampled_from([1023, 1024, 5000])
id_lists = st.lists(ids, unique=True, max_size=8)


def array(numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


class ResidencyMachine(RuleBasedStateMachine):
    """The oracle is a dict of ids to slots, the least recently used first."""

    @initialize(capacity=st.integers(0, 9))
    def empty(self, capacity):
        self.capacity = capacity
        self.residency = Residency(capacity)
        self.slots: OrderedDict[int, int] = OrderedDict()

    @rule(asked=st.lists(ids, max_size=12))
    def lookup(self, asked):
        found = self.residency.lookup(array(asked)).tolist()
        assert found == [self.slots.get(i, -1) for i in asked]
        self.use(asked)

    @rule(wanted=id_lists)
    def admit(self, wanted):
        wanted = wanted[: self.capacity]
        self.use(wanted)
        before = dict(self.slots)
        missing = [i for i in wanted if i not in self.slots]
        while len(self.slots) + len(missing) > self.capacity:
            self.slots.popitem(last=False)
        given_slots = self.residency.admit(array(wanted)).tolist()
        self.slots.update(zip(wanted, given_slots, strict=True))
        self.use(wanted)
        assert all(self.slots[i] == before[i] for i in wanted if i in before)
        assert len(set(self.slots.values())) == len(self.slots)
        assert all(0 <= slot < self.capacity for slot in self.slots.values())

    @rule(gone=st.lists(ids, max_size=6))
    def drop(self, gone):
        self.residency.drop(array(gone))
        for i in gone:
            self.slots.pop(i, None)

    def use(self, used):
        for i in used:
            if i in self.slots:
                self.slots.move_to_end(i)

    @invariant()
    def the_same_ids_are_resident(self):
        if hasattr(self, "residency"):
            self.residency.check_integrity()
            assert len(self.residency) == len(self.slots)


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(id_lists, max_size=5))
def test_free_slots_are_taken_from_the_lowest_up(batches):
    residency, taken = Residency(100), set()
    for batch in batches:
        taken |= set(residency.admit(array(batch)).tolist())
        assert taken == set(range(len(taken)))


@given(st.permutations(range(6)), st.integers(0, 6))
def test_new_ids_get_ascending_slots(used, num_new):
    """Whichever ids have to leave for them."""
    residency = Residency(6)
    residency.admit(np.arange(6))
    residency.lookup(array(used))
    slots = residency.admit(np.arange(100, 100 + num_new)).tolist()
    assert slots == sorted(used[:num_new])


def test_more_ids_than_slots_are_refused():
    with pytest.raises(AssertionError, match="3 ids for 2 slots"):
        Residency(2).admit(array([1, 2, 3]))
