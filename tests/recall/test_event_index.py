"""The index of event keys against a list: appends and forks in any order give back the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from emllm.recall import index as index_module
from emllm.recall.index import EventIndex


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

    @rule(target=indices, pair=indices)
    def fork(self, pair):
        self.pairs.append((pair[0].fork(), list(pair[1])))
        return self.pairs[-1]

    @invariant()
    def each_holds_what_it_was_given(self):
        for index, given in self.pairs:
            assert len(index) == sum(part.shape[1] for part in given)
            parts = index.parts()
            if given:
                assert torch.equal(torch.cat(parts, 1), torch.cat(given, 1))
            else:
                assert sum(part.shape[1] for part in parts) == 0


@pytest.fixture(autouse=True)
def small_index(monkeypatch):
    """Room for 4 events at first, so that the index grows."""
    monkeypatch.setattr(index_module, "FIRST_EVENTS", 4)


@pytest.mark.usefixtures("small_index")
class TestIndex(IndexMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_an_index_grows_by_half_so_appending_costs_amortised_constant_time():
    index = EventIndex()
    places = set()
    for seed in range(200):
        index.append(event_keys(1, seed))
        places.add(index.parts()[-1].data_ptr())
    assert len(places) <= 14
