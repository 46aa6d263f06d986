"""Where the released code's recall and attention differ from ours on purpose, one test each, with numbers.

Each test shows the peculiarity on the recorded data and that ours has it not, driven by the very same
queries, keys, values and logits. Those of segmentation are in tests/segmentation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.conformance.golden_mass import accumulated_mass, recorded_events
from tests.conformance.replay import (
    GROUP,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    Replay,
    Run,
    logits_of,
    turn,
    window,
)
from tests.support.driven_memory import Tape, attended, event_spans, memory_layers, read, rotary, staged_plan

from emllm.attention.geometry import LayerGeometry, ModelGeometry
from emllm.attention.layout import paper
from emllm.config import MemoryConfig
from emllm.memory import EpisodicMemory
from emllm.recall.event_keys import make_weighted
from emllm.recall.index import IndexPart
from emllm.recall.queries import mean_query
from emllm.recall.scorers import dot
from emllm.segmentation.threshold import boundary_flags


def tape_of(run: Run, again: Replay) -> Tape:
    return Tape(run.token_ids[: len(again.logits)], again.queries, again.keys, again.values, again.logits)


def our_memory(run: Run, *, variant: str = "S", **settings: object) -> EpisodicMemory:
    """A memory with the recorded run's settings; recall anew for every token, as recorded."""
    config = run.config
    layer = LayerGeometry(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM, rotary(HEAD_DIM))
    shape = ModelGeometry((layer,) * LAYERS, 32768, 512, torch.float32)
    same = {
        "sink_tokens": config.n_init,
        "local_tokens": config.n_local,
        "recall_tokens": config.n_mem,
        "chunk_tokens": config.exc_block_size,
        "min_event_tokens": config.min_block_size,
        "max_event_tokens": config.max_block_size,
        "gamma": config.surprisal_threshold_gamma,
        "surprise_window_tokens": config.n_local - config.exc_block_size,
        "representatives": config.repr_topk,
    }
    return EpisodicMemory(shape, MemoryConfig.preset("em-llm", variant=variant, **(same | settings)))


def read_as_recorded(
    run: Run, memory: EpisodicMemory, tape: Tape, look: Callable | None = None, *, stop: int | None = None
) -> None:
    """The recorded steps as chunks, up to the token `stop`."""
    lengths = run["step_len"].tolist()
    if stop is not None:
        lengths = [n for n, start in zip(lengths, run["step_start"].tolist(), strict=True) if start < stop]
    read(memory, tape, lengths, look=look)


@pytest.fixture(scope="module")
def masses_per_kv_head(replayed):
    """Layer 0's attention mass in the recorded run, one row per KV head."""
    return accumulated_mass(*replayed("S"), 0, per_query_head=False)


def test_far_tokens_stand_at_the_length_of_the_local_window_not_one_nearer(replayed):
    """Recorded: the query that looks at far tokens is turned as at n_local - 1, a distance that the last
    local token has too. Ours: n_local, the first distance that no local token has (InfLLM, section 3.2).
    """
    run, again = replayed("S")
    num_local = run.config.n_local
    assert paper(8, 96, 128, num_local).far_distance == num_local
    step = 88
    row = run["query_mean_steps"].tolist().index(step)
    start, stop = run.span(step)
    query, recorded = again.queries[0][:, start:stop], run["query_mean"][row, 0].view(HEADS, HEAD_DIM)
    at_nearer, at_ours = (turn(query, d, alike=True).mean(1) for d in (num_local - 1, num_local))
    assert (at_nearer - recorded).abs().max() < 3e-4
    assert (at_ours - recorded).abs().max() > 0.1


def test_a_query_sees_each_token_once_where_the_released_code_counts_leaving_tokens_twice(replayed):
    """Recorded: query i of a chunk of n sees the n - 1 - i newest tokens of the remainder twice, once in
    its local window and once as far tokens, because the mask that should hide them is true everywhere. That
    is 496 extra counts a chunk of 32 (31 + 30 + ... + 0). Ours: the views are disjoint.
    """
    run, again = replayed("S")
    step = 47
    start, stop = run.span(step)
    twice = [
        len(set(run.far_tokens(step, 0)) & set(range(query - run.config.n_local + 1, query + 1)))
        for query in range(start, stop)
    ]
    assert twice == list(range(31, -1, -1))
    # It is what was computed: without the second count the output is another one.
    first, sees = window(start, stop, run.config.n_local)
    far = torch.tensor(run.far_tokens(step, 0))
    near = logits_of(
        turn(again.queries[0][:, start:stop], start - first), turn(again.keys[0][:, first:stop], 0)
    )
    away = logits_of(
        turn(again.queries[0][:, start:stop], run.config.n_local - 1, alike=True), again.keys[0][:, far]
    )
    is_local = far[None] > torch.arange(start, stop)[:, None] - run.config.n_local
    once = torch.cat([near.masked_fill(~sees, -torch.inf), away.masked_fill(is_local, -torch.inf)], -1)
    lost = again.normalisers[0][:, start:stop] - once.logsumexp(-1)
    assert lost.max() > 0.1 and (lost[:, -1].abs() < 1e-4).all()

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        for layer in memory_layers(memory):
            seen = attended(layer, start)
            assert len(np.unique(seen)) == len(seen) and (seen < start).all()

    read_as_recorded(run, our_memory(run), tape_of(run, again), look)


def test_sinks_are_attended_from_the_first_chunk_on(replayed):
    """Recorded: no initial tokens are attended as such until more than n_local tokens were processed, and in
    the step that first exceeds n_local they are part of the remainder. Ours: they are a view of every chunk.
    """
    run, again = replayed("S")
    exceeds = int((run["step_start"] + run["step_len"] > run.config.n_local).int().argmax())
    assert run["init_len"][: exceeds + 1].tolist() == [0] * 5
    assert int(run["rem_len"][exceeds]) == 32 and int(run["init_len"][exceeds + 1]) == 8

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        for layer in memory_layers(memory):
            assert staged_plan(layer).token_idx[:8].tolist() == list(range(min(8, start)))

    read_as_recorded(run, our_memory(run), tape_of(run, again), look, stop=512)


def test_the_last_prompt_token_and_generated_tokens_have_surprise_and_boundaries(replayed):
    """Recorded: neither the last prompt token nor any generated token gets surprise or a flag (0 is stored,
    which also enters later statistics), so what was generated is only cut at max_block_size. Ours: a token's
    surprise is known whoever chose it.
    """
    run, again = replayed("S_decode192")
    first = run.meta["n_prompt"] - 1
    assert len(run["surprisal"]) == first and int(run["boundary_final"][first:].sum()) == 0
    assert (run["block_end"] - run["block_start"])[run["block_start"] >= first].tolist() == [16] * 3
    memory = our_memory(run)
    read_as_recorded(run, memory, tape_of(run, again))
    surprise = memory.surprise()
    assert np.isnan(surprise[0]) and np.isfinite(surprise[1:]).all() and (surprise[first:] > 0).all()
    sizes = {stop - start for start, stop in event_spans(memory)[:-1] if start > first}
    assert len(sizes) > 3


def test_the_recall_budget_is_the_same_while_decoding(replayed):
    """Recorded: the budget is n_init + chunk + n_mem - remainder - initial, made for a whole chunk, so one
    token at a time recalls up to n_mem + chunk - 1 tokens: 127 here where reading has 96. Ours: recall_tokens
    less the overhang of the local view, always.
    """
    run, again = replayed("S")
    reading, decoding = run["cap_total"][8:94], run["cap_total"][96:]
    assert int(reading.max()) == 96 and int(decoding.max()) == 127
    memory = our_memory(run)

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        for layer in memory_layers(memory):
            plan = staged_plan(layer)
            old = plan.token_idx[: len(plan.token_idx) - plan.num_local]
            overhang = plan.num_local - min(start, run.config.n_local)
            assert len(old) - min(8, start) + max(overhang, 0) <= run.config.n_mem

    read_as_recorded(run, memory, tape_of(run, again), look)


def test_a_kv_head_has_one_set_of_representatives_not_one_per_query_head(replayed):
    """Recorded: each query head chooses its own representative tokens, so the index is as wide as all query
    heads. Ours: one choice per KV head by the group's summed weight, an index half as wide here (a quarter
    or an eighth with common models). The choices of a group's heads do differ, so this is a real deviation.
    """
    run, again = replayed("S")
    chosen = run["repr_idx"].long().sort(-1).values.unflatten(2, (KV_HEADS, GROUP))
    differ = (chosen[:, :, :, 0] != chosen[:, :, :, 1]).any(-1).float().mean()
    assert 0.5 < differ < 1.0
    memory = our_memory(run)
    read_as_recorded(run, memory, tape_of(run, again), stop=512)
    for layer in memory_layers(memory):
        (part,) = layer.ranking.index.parts()
        assert part.keys.shape == (KV_HEADS, 1, len(layer.ranking.index), HEAD_DIM)
    assert run["repr_key"].shape[2] == GROUP * KV_HEADS


def test_one_choice_per_kv_head_ranks_nearly_as_one_per_query_head(replayed, masses_per_kv_head):
    """How much the narrower index changes on random weights: rank correlation 0.9 with the recorded order."""
    run, again = replayed("S")
    span, events = recorded_events(run)
    ours = make_weighted(again.keys[0][:, span], events, masses_per_kv_head[:, span], run.config.repr_topk)
    correlations = []
    for step in (40, 60, 80, 94):
        start, stop = run.span(step)
        query = mean_query(turn(again.queries[0][:, start:stop], run.config.n_local - 1, alike=True))
        theirs = torch.tensor(run.row("sim", step, 0))
        scores = dot(query, [IndexPart(ours[:, : len(theirs)].transpose(1, 2))], 1.0)
        ranks = torch.stack([x.argsort().argsort().float() for x in (scores, theirs)])
        correlations.append(float(torch.corrcoef(ranks)[0, 1]))
    assert min(correlations) > 0.8, correlations


def test_the_grid_of_fixed_events_goes_on_from_chunk_to_chunk(replayed):
    """Recorded (F): flags at multiples of max_block_size from the start of each chunk; the initial tokens
    are cut off, so the first event has 8 tokens, and a chunk length that is no multiple restarts the grid.
    Ours: one grid from the first token after the sinks, whatever the chunks.
    """
    run, again = replayed("F")
    sizes = (run["block_end"] - run["block_start"]).tolist()
    assert sizes[0] == 8 and set(sizes[1:]) == {16}
    flagged = torch.nonzero(run["boundary_raw"])[:, 0]
    starts = run["step_start"][run["step_len"] > 1]
    assert set((starts[:8]).tolist()) <= set(flagged.tolist())
    tape = tape_of(run, again)
    for chunks in ([32] * 10, [24] * 13 + [8], [7] * 45 + [5]):
        memory = our_memory(run, variant="F")
        read(memory, tape, chunks)
        assert [stop - start for start, stop in event_spans(memory)[:-1]] == [16] * 19


def test_every_token_has_its_own_threshold_not_every_chunk(replayed):
    """Recorded: one threshold for all tokens of a chunk, from the values before it, so where a text is
    cut decides about boundaries. Ours: the window before each token; same length, other flags.
    """
    run, _ = replayed("S", 1)
    values = run["surprisal"].numpy()
    ours, thresholds = boundary_flags(values, gamma=1.0, window_tokens=96)
    thr = np.repeat(run["thr"].numpy(), run["step_len"].numpy()[: len(run["thr"])])
    assert np.array_equal(values[32:] > thr[32:], run["boundary_raw"][32 : len(values)].bool().numpy())
    differ = ours[128:] != (values[128:] > thr[128:])
    assert 0.01 < differ.mean() < 0.1
    chunk = thresholds[1024:1056]
    assert len(np.unique(chunk)) == 32 and len(np.unique(thr[1024:1056])) == 1


def test_all_queries_of_a_chunk_see_the_whole_local_view(replayed):
    """Recorded: the local window slides with each query of a chunk, so a query sees n_local near tokens, and
    what the chunk pushes out becomes far for the later ones: the remainder of a chunk of 32 has 32 tokens and
    what waits besides. Ours: the local view is frozen for a chunk, at least local_tokens before its first
    query and back to the last recallable event; no token turns far in the middle of a chunk.
    """
    run, again = replayed("S")
    assert int(run["rem_len"][8:94].min()) == 32 < int(run["rem_len"][8:94].max()) <= 32 + 16 + 4
    overhangs: list[int] = []

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        plan, num_local = staged_plan(memory_layers(memory)[0]), run.config.n_local
        start -= plan.num_chunk  # of a chunk that goes on, the views were laid out at its beginning
        stops = [stop for _, stop in event_spans(memory)[:-1] if stop <= start - num_local]
        local = plan.token_idx[len(plan.token_idx) - plan.num_local :]
        assert local.tolist() == list(range(min(max([8, *stops]), start), start))
        overhangs.append(plan.num_local - num_local)

    read_as_recorded(run, our_memory(run), tape_of(run, again), look)
    assert max(overhangs) < run.config.max_block_size
