"""Laws of the online segmenter: a function of the text alone, events that partition it, sizes kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emllm.config import OBJECTIVES, MemoryConfig
from emllm.errors import InputError
from emllm.segmentation.key_graph import KeyGraph, key_graph
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.refine import refine_boundary
from emllm.segmentation.segmenter import EventSegmenter, segment, spans
from emllm.segmentation.threshold import boundary_flags

TOKENS = 160


class Text:
    """A text's surprise and keys; hands out key graphs, and checks that each is entitled and granted once."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.surprise = random.gamma(1.0, 2.0, TOKENS)
        self.surprise[0] = np.nan
        themes = np.cumsum(random.random(TOKENS + 50) < 0.1)
        rows = random.standard_normal((themes.max() + 1, 2, 4))[themes]
        rows = rows + 0.5 * random.standard_normal(rows.shape) + 1.0
        self.keys = torch.from_numpy(rows.astype(np.float32)).permute(1, 0, 2)
        self.calls: list[tuple[int, int]] = []

    def graph(self, start: int, stop: int) -> KeyGraph:
        self.calls.append((start, stop))
        return key_graph([self.keys[:, start:stop]], start=start)


CONFIGS = st.builds(
    MemoryConfig,
    refine=st.sampled_from(OBJECTIVES),
    gamma=st.sampled_from([-0.5, 0.5, 1.0, 3.0, 99.0]),
    surprise_window_tokens=st.integers(2, 40),
    min_event_tokens=st.integers(1, 6),
    max_event_tokens=st.integers(12, 30),
)
SEEDS = st.integers(0, 2**31)
STARTS = st.integers(0, 20)
CUTS = st.lists(st.integers(0, TOKENS), max_size=12)


def read(text: Text, config: MemoryConfig, start: int, cuts: list[int], *, finish: bool = True) -> list[int]:
    segmenter = EventSegmenter(config, start=start)
    boundaries = []
    for chunk in np.split(text.surprise, sorted(cuts)):
        text.calls.clear()
        pending_start = segmenter.pending_start
        new = segmenter.extend(chunk, text.graph)
        assert len(text.calls) <= 1
        assert all(low >= pending_start and high <= segmenter.num_tokens for low, high in text.calls)
        boundaries += new
    return boundaries + (segmenter.finish(text.graph) if finish else [])


@given(SEEDS, CONFIGS, STARTS, CUTS)
def test_any_chunking_gives_the_same_events(seed: int, config, start: int, cuts: list[int]) -> None:
    text = Text(seed)
    assert read(text, config, start, cuts) == segment(text.surprise, text.graph, config=config, start=start)


@given(SEEDS, CONFIGS, STARTS)
def test_token_by_token_gives_the_same_events(seed: int, config, start: int) -> None:
    text = Text(seed)
    alone = read(text, config, start, list(range(TOKENS)), finish=False)
    assert alone == read(text, config, start, [], finish=False)


@given(SEEDS, CONFIGS, STARTS)
def test_events_are_those_of_one_pass_over_the_candidates_of_the_whole_text(seed, config, start: int) -> None:
    """A second implementation that sees everything at once, and uses each candidate once."""
    text = Text(seed)
    flags, _ = boundary_flags(text.surprise, gamma=config.gamma, window_tokens=config.surprise_window_tokens)
    graph = text.graph(0, TOKENS)
    expected, last = [], start
    for beta in [*np.flatnonzero(flags).tolist(), TOKENS - 1 + config.max_event_tokens]:
        while beta > last + config.max_event_tokens:
            last += config.max_event_tokens
            expected.append(last)
        if last + config.min_event_tokens <= beta < TOKENS:
            if config.refine != "none":
                last = refine_boundary(
                    graph,
                    alpha=last,
                    beta=beta,
                    low=start,
                    high=TOKENS,
                    min_event_tokens=config.min_event_tokens,
                    objective=REGISTRY[config.refine],
                )
            else:
                last = beta
            expected.append(last)
    expected = [boundary for boundary in expected if boundary < TOKENS]
    assert segment(text.surprise, text.graph, config=config, start=start) == expected


@given(SEEDS, CONFIGS, STARTS, CUTS)
def test_events_partition_the_span_and_keep_their_sizes_but_for_the_last(seed, config, start, cuts) -> None:
    boundaries = read(Text(seed), config, start, cuts)
    events = spans(boundaries, start=start, stop=TOKENS)
    assert [token for event in events for token in range(*event)] == list(range(start, TOKENS))
    sizes = [stop - first for first, stop in events]
    assert all(config.min_event_tokens <= size for size in sizes[:-1])
    assert all(size <= config.max_event_tokens for size in sizes)


@given(SEEDS, CONFIGS, STARTS, st.integers(1, TOKENS))
def test_what_is_final_is_not_changed_by_what_follows(seed: int, config, start: int, stop: int) -> None:
    text = Text(seed)
    segmenter = EventSegmenter(config, start=start)
    early = segmenter.extend(text.surprise[:stop], text.graph)
    changed = np.concatenate([text.surprise[:stop], text.surprise[stop:][::-1] + 5.0])
    text.keys[:, stop:] = -text.keys[:, stop:].flip(1)
    late = EventSegmenter(config, start=start).extend(changed, text.graph)
    assert late[: len(early)] == early


@given(SEEDS, CONFIGS, STARTS, st.integers(0, TOKENS))
def test_a_copy_and_a_stored_state_go_on_like_the_original(seed: int, config, start: int, stop: int) -> None:
    text = Text(seed)
    segmenter = EventSegmenter(config, start=start)
    segmenter.extend(text.surprise[:stop], text.graph)
    fork = segmenter.copy()
    fork.extend(np.full(50, 9.0), text.graph if config.refine == "none" else Text(seed + 1).graph)
    stored = json.loads(json.dumps(segmenter.state(), allow_nan=False))
    restored = EventSegmenter.from_state(stored, config=config)
    rest = text.surprise[stop:]
    assert restored.extend(rest, text.graph) == segmenter.extend(rest, text.graph)
    assert restored.state() == segmenter.state()


@given(SEEDS, CONFIGS)
def test_without_candidates_events_are_as_long_as_allowed(seed: int, config) -> None:
    flags = np.zeros(TOKENS, dtype=np.bool_)
    boundaries = segment(flags, Text(seed).graph, config=config, start=5)
    every = config.max_event_tokens
    assert boundaries == list(range(5 + every, TOKENS, every))


@given(st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS).map(np.array), CONFIGS, STARTS)
def test_unrefined_boundaries_are_candidates_or_forced_cuts(flags, config, start: int) -> None:
    config = MemoryConfig(
        refine="none", min_event_tokens=config.min_event_tokens, max_event_tokens=config.max_event_tokens
    )
    last = start
    for boundary in segment(flags, config=config, start=start):
        earlier = flags[last + config.min_event_tokens : boundary]
        assert not earlier.any()
        assert flags[boundary] or boundary == last + config.max_event_tokens
        last = boundary
    assert not flags[last + config.min_event_tokens :].any() and last + config.max_event_tokens >= TOKENS


def test_a_candidate_waits_until_its_window_has_been_read_and_no_longer() -> None:
    text = Text(0)
    config = MemoryConfig(refine="modularity", min_event_tokens=4, max_event_tokens=40)
    flags = np.zeros(TOKENS, dtype=np.bool_)
    flags[20] = True
    segmenter = EventSegmenter(config, start=0)
    assert segmenter.extend(flags[:29], text.graph) == []
    assert len(segmenter.copy().finish(text.graph)) == 1
    assert len(segmenter.extend(flags[29:30], text.graph)) == 1
    assert segmenter.last_boundary <= 20


def test_a_candidate_at_the_greatest_length_is_refined_and_a_forced_cut_is_not() -> None:
    rows = torch.eye(2)[(torch.arange(80) >= 25).long()][None]
    config = MemoryConfig(refine="modularity", min_event_tokens=4, max_event_tokens=40)
    flags = np.zeros(60, dtype=np.bool_)

    def graph(start: int, stop: int) -> KeyGraph:
        return key_graph([rows[:, start:stop]], start=start)

    assert segment(flags, graph, config=config) == [40]
    flags[40] = True
    assert segment(flags, graph, config=config) == [25]


def test_a_window_never_reaches_back_into_the_sinks() -> None:
    """Sinks of another theme would draw the first boundary to the first place that it may take."""
    rows = torch.eye(3)[torch.bucketize(torch.arange(80), torch.tensor([10, 25]), right=True)][None]
    config = MemoryConfig(refine="modularity", min_event_tokens=2, max_event_tokens=40)
    flags = np.zeros(60, dtype=np.bool_)
    flags[30] = True
    asked: list[int] = []

    def graph(start: int, stop: int) -> KeyGraph:
        asked.append(start)
        return key_graph([rows[:, start:stop]], start=start)

    assert segment(flags, graph, config=config, start=10)[0] == 25
    assert min(asked) == 10


def test_planted_themes_are_the_events_and_are_not_when_tokens_are_scrambled() -> None:
    random = np.random.default_rng(5)
    planted = list(range(20, TOKENS, 20))
    themes = np.eye(len(planted) + 1)
    rows = themes[np.arange(TOKENS) // 20] + 0.05 * random.standard_normal((TOKENS, len(themes)))
    flags = np.zeros(TOKENS, dtype=np.bool_)
    flags[np.array(planted) + 3] = True
    config = MemoryConfig(refine="modularity", min_event_tokens=4, max_event_tokens=40)

    def events_of(rows: np.ndarray) -> list[int]:
        keys = torch.from_numpy(rows)[None]
        return segment(flags, lambda low, high: key_graph([keys[:, low:high]], start=low), config=config)

    assert events_of(rows) == planted
    assert len(set(events_of(random.permutation(rows))) & set(planted)) <= 3


def test_a_refinement_without_keys_is_refused() -> None:
    config = MemoryConfig(refine="modularity")
    flags = np.zeros(60, dtype=np.bool_)
    flags[20] = True
    with pytest.raises(InputError, match="refine=modularity needs the keys' graph"):
        EventSegmenter(config, start=0).extend(flags)


def test_a_finished_segmenter_refuses_to_read_on() -> None:
    segmenter = EventSegmenter(MemoryConfig(refine="none"), start=0)
    segmenter.extend(np.ones(10))
    segmenter.finish()
    with pytest.raises(InputError, match="finished"):
        segmenter.extend(np.ones(10))


def test_the_state_stays_bounded() -> None:
    config = MemoryConfig(refine="none", surprise_window_tokens=64)
    segmenter = EventSegmenter(config, start=0)
    random = np.random.default_rng(0)
    for _ in range(50):
        segmenter.extend(random.gamma(1.0, 2.0, 512))
    state = segmenter.state()
    assert len(state["candidates"]) <= 2 * config.max_event_tokens
    assert len(state["threshold"]["tail"]) == 64


@pytest.mark.parametrize("stop", [0, 3, 4, 5])
def test_a_text_that_ends_within_the_sinks_has_no_events(stop: int) -> None:
    boundaries = segment(np.ones(stop), config=MemoryConfig(refine="none"), start=4)
    assert boundaries == []
    assert spans(boundaries, start=4, stop=stop) == ([(4, 5)] if stop == 5 else [])
