"""The index of event keys against a list: appends and forks in any order give back the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from emllm.recall import index as index_module
from emllm.recall.index import EventIndex, Exact, LatePart, joined


def event_keys(num_events: int, seed: int) -> Tensor:
    return torch.randn(2, num_events, 3, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()


class IndexMachine(RuleBasedStateMachine):
    """Several indices, forked from one another, each beside the tensors that it was given."""

    indices = Bundle("indices")

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[EventIndex, list[Tensor]]] = []

    @initialize(target=indices)
    def empty(self):
        self.pairs.append((EventIndex(), []))
        return self.pairs[-1]

    @rule(pair=indices, num_events=st.integers(1, 9), seed=st.integers(0, 9999))
    def append(self, pair, num_events, seed):
        pair[0].append(event_keys(num_events, seed))
        pair[1].append(event_keys(num_events, seed))

    @rule(pair=indices, num_events=st.integers(1, 9), seed=st.integers(0, 9999))
    def adopt(self, pair, num_events, seed):
        keys = event_keys(num_events, seed)
        pair[0].adopt(LatePart(num_events, lambda: Exact().encode(keys)), None)
        pair[1].append(keys)

    @rule(target=indices, pair=indices)
    def fork(self, pair):
        self.pairs.append((pair[0].fork(), list(pair[1])))
        return self.pairs[-1]

    @invariant()
    def each_holds_what_it_was_given(self):
        for index, given in self.pairs:
            assert len(index) == sum(part.shape[1] for part in given)
            assert sum(part.num_events for part in index.parts()) == len(index)
            everything = joined(index.between(0, len(index)))
            if given:
                assert torch.equal(everything.floats(), torch.cat(given, 1))
                tail = joined(index.between(len(index) - 1, len(index)))
                assert torch.equal(tail.floats(), given[-1][:, -1:])
            else:
                assert everything is None


@pytest.fixture
def small_index(monkeypatch):
    """Room for 4 events at first, so that the index grows."""
    monkeypatch.setattr(index_module, "FIRST_EVENTS", 4)
    monkeypatch.setattr(index_module, "LARGEST_COPIED", 16)


@pytest.mark.usefixtures("small_index")
class TestIndex(IndexMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_an_index_grows_geometrically_and_past_a_size_copies_nothing():
    index = EventIndex()
    places: list[int] = []
    for seed in range(40):
        index.append(event_keys(300, seed))
        place = index.parts()[-1].keys.data_ptr()
        if place not in places:
            places.append(place)
    assert len(index) == 12_000
    assert len(places) <= 7  # 300 to 4,096 by copies, then slabs of 4,096, 8,192
    assert [part.num_events for part in index.parts()] == [4096, 4096, 3808]


def test_an_index_of_bytes_is_within_half_a_step_of_the_keys_less_what_they_share():
    keys = event_keys(50, 1).float() + 20
    index = EventIndex("int8")
    index.append(keys[:, :7])
    index.append(keys[:, 7:])
    (part,) = index.parts()
    assert part.keys.dtype == torch.int8
    error = (part.floats() + index.centre[:, None] - keys).abs().amax(dim=(2, 3))
    assert (error <= part.scales * 0.501).all()


def test_encoded_events_taken_out_and_put_in_again_are_the_same_bits():
    index = EventIndex("int8")
    index.append(event_keys(30, 1))
    again = EventIndex("int8")
    again.append_encoded(joined(index.between(0, len(index))), index.centre)
    index.append(event_keys(5, 2))
    again.append(event_keys(5, 2))
    for ours, theirs in zip(again.parts(), index.parts(), strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.scales, theirs.scales)


def test_a_late_part_is_read_once_by_the_first_who_looks_at_it_and_not_for_other_events():
    reads = []

    def read():
        reads.append(len(reads))
        if len(reads) == 1:
            raise OSError("not yet")
        return Exact().encode(event_keys(5, 1))

    index = EventIndex()
    index.adopt(LatePart(5, read), None)
    index.append(event_keys(3, 2))
    fork = index.fork()
    assert len(fork) == 8
    assert torch.equal(joined(index.between(5, 8)).floats(), event_keys(3, 2)) and not reads
    with pytest.raises(OSError, match="not yet"):
        index.parts()
    assert [part.num_events for part in fork.parts()] == [5, 3]
    assert [part.num_events for part in index.parts()] == [5, 3] and len(reads) == 2


def test_what_is_taken_off_all_keys_says_three_bits_of_the_first_event():
    index = EventIndex("int8")
    index.append(event_keys(3, 3))
    steps = index.centre / index.centre.abs().amax(dim=-1, keepdim=True) * 4
    assert (steps == steps.round()).all() and (steps.abs().amax(dim=-1) == 4).all()
