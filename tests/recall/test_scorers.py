"""Scorers against their formulas written out, and what must not change a score."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emllm.config import SCORERS as SCORER_NAMES
from emllm.recall import scorers
from emllm.recall.compare import rounded
from emllm.recall.exact import event_mass
from emllm.recall.index import EventIndex, IndexPart
from emllm.recall.queries import ASKING_TOKENS, asking_tokens, longest, mean_query
from emllm.recall.scorers import (
    ASKING_VOTES,
    READING_KEYS,
    READING_PARTS,
    READING_VOTES,
    SCORERS,
    attention,
    dot,
    votes,
    votes_in_two_stages,
)


def part(keys: Tensor) -> IndexPart:
    """Event keys ``[K, N, R, D]`` as an index holds them."""
    return IndexPart(keys.transpose(1, 2))


def in_bytes(keys: Tensor) -> IndexPart:
    index = EventIndex("int8")
    index.append(keys)
    (only,) = index.parts()
    return only


#: Those that score event keys; `exact` has a file of tests of its own.
KEYED = [name for name, ranking in SCORERS.items() if ranking.score is not None]

heads = st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)])
counts = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4))


def draw(seed: int, heads_: tuple[int, int], counts_: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Queries ``[H, T, D]`` and event keys ``[K, N, R, D]``."""
    generator = torch.Generator().manual_seed(seed)
    num_queries, num_events, representatives = counts_
    query = torch.randn(heads_[0], num_queries, 8, generator=generator)
    return query, torch.randn(heads_[1], num_events, representatives, 8, generator=generator)


@given(st.integers(0, 999), heads, counts)
def test_dot_is_the_sum_over_heads_of_mean_query_times_mean_key(seed, heads_, counts_):
    query, keys = draw(seed, heads_, counts_)
    groups = heads_[0] // heads_[1]
    ours = dot(query, [part(keys)], 0.3)
    for event in range(counts_[1]):
        expected = 0.0
        for head in range(heads_[0]):
            mean = query[head].double().mean(0)
            expected += float(mean @ keys[head // groups, event].double().mean(0))
        assert math.isclose(float(ours[event]), expected, abs_tol=1e-4)


@given(st.integers(0, 999), heads, counts, st.sampled_from([0.1, 1.0, 5.0]))
def test_votes_are_literal_softmaxes_over_events_by_their_best_key(seed, heads_, counts_, scaling):
    query, keys = draw(seed, heads_, counts_)
    groups = heads_[0] // heads_[1]
    _, num_events, representatives = counts_
    best = torch.zeros(heads_[1], num_events, dtype=torch.float64)
    for head in range(heads_[0]):
        flat = keys[head // groups].reshape(-1, 8).double()
        for token in range(counts_[0]):
            logits = flat @ query[head, token].double() * scaling
            of_event = logits.view(num_events, representatives).amax(1).softmax(0)
            best[head // groups] = torch.maximum(best[head // groups], of_event)
    torch.testing.assert_close(votes(query, [part(keys)], scaling).double(), best.sum(0), atol=1e-5, rtol=0)


@given(st.integers(0, 999), heads, counts, st.sampled_from(KEYED), st.lists(st.integers(0, 12)))
def test_splitting_the_index_in_parts_changes_nothing(seed, heads_, counts_, name, cuts):
    query, keys = draw(seed, heads_, counts_)
    edges = sorted({0, counts_[1], *(cut for cut in cuts if cut < counts_[1])})
    parts = [part(keys[:, start:stop]) for start, stop in itertools.pairwise(edges)]
    score, tokens = SCORERS[name].score, tokens_of(keys, seed)
    torch.testing.assert_close(
        score(query, parts, 0.5, tokens), score(query, [part(keys)], 0.5, tokens), atol=1e-5, rtol=1e-5
    )


@given(st.integers(0, 999), heads, counts, st.sampled_from(KEYED))
def test_reordering_events_reorders_scores(seed, heads_, counts_, name):
    query, keys = draw(seed, heads_, counts_)
    order = torch.randperm(counts_[1], generator=torch.Generator().manual_seed(seed))
    score, tokens = SCORERS[name].score, tokens_of(keys, seed)
    torch.testing.assert_close(
        score(query, [part(keys[:, order])], 0.5, tokens[:, order]),
        score(query, [part(keys)], 0.5, tokens)[order],
        atol=1e-5,
        rtol=1e-5,
    )


@given(st.integers(0, 999), heads, counts, st.sampled_from(KEYED))
def test_order_of_queries_and_of_representatives_does_not_matter(seed, heads_, counts_, name):
    query, keys = draw(seed, heads_, counts_)
    score, tokens = SCORERS[name].score, tokens_of(keys, seed)
    torch.testing.assert_close(
        score(query.flip(1), [part(keys.flip(2))], 0.5, tokens.flip(0)),
        score(query, [part(keys)], 0.5, tokens),
        atol=1e-5,
        rtol=1e-5,
    )


def tokens_of(keys: Tensor, seed: int) -> Tensor:
    """How many tokens the keys ``[K, N, R, D]`` stand for, ``[R, N]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 9, (keys.shape[2], keys.shape[1]), generator=generator).float() + 0.5


@given(st.integers(0, 999), heads, counts, st.sampled_from([0.1, 1.0, 30.0]))
def test_attention_is_a_literal_softmax_over_as_many_tokens_as_keys_stand_for(seed, heads_, counts_, scaling):
    query, keys = draw(seed, heads_, counts_)
    tokens = tokens_of(keys, seed)
    queries = (query * scaling).double().reshape(heads_[1], -1, 8)
    logits = torch.einsum("KQD,KNRD->KQNR", queries, keys.double()) + tokens.T.double().log()
    shares = logits.flatten(2).softmax(-1).unflatten(2, logits.shape[2:]).sum(-1).mean((0, 1))
    ours = attention(query, [part(keys)], scaling, tokens)
    torch.testing.assert_close(ours.double(), shares / tokens.sum(0), atol=1e-5, rtol=0)


@given(st.integers(0, 999), heads, st.integers(1, 300))
def test_the_attention_of_all_events_is_one_in_bytes_and_blocks_too(seed, heads_, num_events):
    query, keys = draw(seed, heads_, (9, num_events, 3))
    tokens = tokens_of(keys, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emllm.recall.compare.CACHED_LOGITS", 1)
        for one in (part(keys), in_bytes(keys)):
            shares = attention(query * 9, [one], 1.0, tokens) * tokens.sum(0)
            assert math.isclose(float(shares.sum()), 1.0, rel_tol=1e-4)


@given(st.integers(0, 999), heads, st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_attention_to_events_of_equal_tokens_is_their_exact_mass(seed, heads_, sizes):
    query, keys = draw(seed, heads_, (4, len(sizes), 1))
    num_tokens = torch.tensor(sizes)
    all_keys = keys[:, :, 0].repeat_interleave(num_tokens, dim=1)
    mass = event_mass(query, lambda start, stop: all_keys[:, start:stop], num_tokens, scaling=0.7)
    ours = attention(query, [part(keys)], 0.7, num_tokens[None].float())
    torch.testing.assert_close(ours * num_tokens, mass.mean((0, 1)), atol=1e-5, rtol=0)


@given(st.integers(0, 999), heads, counts, st.lists(st.integers(0, 12)))
def test_attention_over_bytes_is_the_same_bits_however_the_index_is_cut(seed, heads_, counts_, cuts):
    query, keys = draw(seed, heads_, counts_)
    whole, tokens = in_bytes(keys), tokens_of(keys, seed)
    edges = sorted({0, counts_[1], *(cut for cut in cuts if cut < counts_[1])})
    parts = [whole.events(start, stop) for start, stop in itertools.pairwise(edges)]
    assert torch.equal(attention(query, parts, 0.5, tokens), attention(query, [whole], 0.5, tokens))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("common", [0.0, 3.0, 100.0])
def test_attention_over_bytes_is_close_to_that_over_whole_keys(seed, common):
    query, keys = draw(seed, (6, 2), (3, 400, 4))
    tokens = tokens_of(keys, seed)
    exact = attention(query, [part(keys)], 0.5, tokens)
    ours = attention(query, [in_bytes(keys + common)], 0.5, tokens)
    assert float((ours / exact).log().abs().max()) < 0.1


def test_attention_asks_in_blocks_of_queries_as_at_once(monkeypatch):
    query, keys = draw(3, (4, 2), (12, 50, 4))
    tokens = tokens_of(keys, 3)
    whole = attention(query, [part(keys)], 0.5, tokens)
    monkeypatch.setattr("emllm.recall.scorers.LOGITS_AT_ONCE", 700)
    torch.testing.assert_close(attention(query, [part(keys)], 0.5, tokens), whole, atol=1e-7, rtol=1e-5)


@given(st.integers(ASKING_TOKENS + 1, 600))
def test_a_chunk_asks_for_attention_by_the_means_of_its_parts(num_queries):
    query = torch.arange(num_queries).float().expand(2, -1)[..., None].expand(-1, -1, 3)
    means = SCORERS["attention"].sample(query, is_asking=False)
    assert means.shape == (2, READING_PARTS, 3)
    assert means[0, :, 0].tolist() == sorted(means[0, :, 0].tolist())
    sizes = [len(one) for one in torch.arange(num_queries).tensor_split(READING_PARTS)]
    total = sum(mean * size for mean, size in zip(means[0, :, 0].tolist(), sizes, strict=True))
    assert math.isclose(total, num_queries * (num_queries - 1) / 2, rel_tol=1e-4)
    question = query[:, :ASKING_TOKENS]
    asking = [SCORERS[name].sample(question, is_asking=True) for name in ("attention", "votes")]
    assert torch.equal(*asking)


@given(st.integers(0, 999), heads, counts)
def test_votes_are_unmoved_by_what_all_keys_have_in_common(seed, heads_, counts_):
    """A constant added to all logits of a query cancels in its softmax; the mean query is moved by it."""
    query, keys = draw(seed, heads_, counts_)
    common = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        votes(query, [part(keys + common)], 0.5), votes(query, [part(keys)], 0.5), atol=1e-4, rtol=1e-4
    )


@given(st.integers(0, 999), heads, counts)
def test_votes_lie_between_a_share_and_all_of_the_heads(seed, heads_, counts_):
    query, keys = draw(seed, heads_, counts_)
    score = votes(query * 30, [part(keys * 30)], 1.0)
    assert torch.isfinite(score).all() and (score >= 0).all() and (score <= heads_[1] + 1e-4).all()


@given(st.integers(0, 999), heads, counts)
def test_dot_of_the_sampled_mean_query_is_dot_of_all_queries(seed, heads_, counts_):
    query, keys = draw(seed, heads_, counts_)
    torch.testing.assert_close(dot(mean_query(query), [part(keys)], 1.0), dot(query, [part(keys)], 1.0))


@given(st.integers(1, 2000))
def test_a_chunk_of_text_is_never_taken_for_a_question(chunk_tokens):
    assert asking_tokens(chunk_tokens) < chunk_tokens or chunk_tokens == 1
    assert asking_tokens(chunk_tokens) in (ASKING_TOKENS, chunk_tokens - 1, 1)


@pytest.mark.parametrize(
    "num_queries", [1, ASKING_VOTES, 65, 100, ASKING_TOKENS, ASKING_TOKENS + 1, 512, 777]
)
def test_a_question_votes_with_many_queries_and_a_chunk_with_a_few_evenly_spread_ones(num_queries):
    query = torch.arange(num_queries, dtype=torch.float32)[None, :, None]
    is_asking = num_queries <= ASKING_TOKENS
    chosen = SCORERS["votes"].sample(query, is_asking=is_asking)[0, :, 0].long().tolist()
    num_votes = min(num_queries, ASKING_VOTES) if is_asking else READING_VOTES
    gaps = {b - a for a, b in itertools.pairwise(chosen)} or {0}
    assert len(set(chosen)) == num_votes and chosen[-1] == num_queries - 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", KEYED)
def test_half_precision_ranks_like_float(name):
    query, keys = draw(7, (4, 2), (3, 40, 4))
    tokens = tokens_of(keys, 7)
    ours = SCORERS[name].score(query.bfloat16(), [part(keys.bfloat16())], 0.5, tokens)
    exact = SCORERS[name].score(query, [part(keys)], 0.5, tokens)
    assert ours.dtype == torch.float32
    assert torch.corrcoef(torch.stack([ours, exact]))[0, 1] > 0.99


def test_every_scorer_of_the_settings_exists():
    assert set(SCORER_NAMES) == set(SCORERS)


def test_a_question_is_compared_with_all_keys_and_a_long_chunk_with_the_first_ones():
    whole = part(torch.arange(24.0).view(1, 2, 4, 3))
    (asking,), (reading,) = (
        SCORERS["votes"].parts([whole], is_asking=is_asking) for is_asking in (True, False)
    )
    assert torch.equal(asking.keys, whole.keys)
    assert torch.equal(reading.keys, whole.keys[:, :READING_KEYS])
    assert torch.equal(SCORERS["dot"].parts([whole], is_asking=False)[0].keys, whole.keys)


@given(st.integers(0, 999), heads, st.integers(2, 400), st.sampled_from([0.0, 3.0, 100.0]))
def test_keys_in_bytes_change_no_score_by_more_than_two_roundings_of_a_logit(
    seed, heads_, num_events, common
):
    """A logit is off by half a step of its key and of its query, a share by the factor of two such errors."""
    query, keys = draw(seed, heads_, (3, num_events, 4))
    exact, stored = votes(query, [part(keys)], 0.5), in_bytes(keys + common)
    ours = votes(query, [stored], 0.5)
    asked = (query * 0.5).reshape(len(keys), -1, keys.shape[-1])
    centred = stored.keys * stored.scales[:, None, :, None]
    of_keys = asked.abs().sum(-1).amax(1) * stored.scales.amax(1) / 2
    of_queries = centred.abs().sum(-1).amax((1, 2)) * rounded(asked)[1].amax((1, 2)) / 2
    logit_error = float((of_keys + of_queries).max())
    assert float((ours / exact).log().abs().max()) <= 2 * logit_error + 1e-3


@pytest.mark.parametrize("common", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("seed", range(8))
def test_keys_in_bytes_vote_like_whole_ones_whatever_the_keys_have_in_common(seed, common):
    """Far closer than they must be; one text in some hundreds is off by 3.5 %."""
    query, keys = draw(seed, (6, 2), (3, 400, 4))
    exact = votes(query, [part(keys)], 0.5)
    ours = votes(query, [in_bytes(keys + common)], 0.5)
    assert float((ours - exact).abs().max()) < 0.03 * float(exact.max()) + 0.002


@given(st.integers(0, 999), heads, counts, st.lists(st.integers(0, 12)))
def test_votes_over_bytes_are_the_same_bits_however_the_index_is_cut(seed, heads_, counts_, cuts):
    query, keys = draw(seed, heads_, counts_)
    whole = in_bytes(keys)
    edges = sorted({0, counts_[1], *(cut for cut in cuts if cut < counts_[1])})
    parts = [whole.events(start, stop) for start, stop in itertools.pairwise(edges)]
    assert torch.equal(votes(query, parts, 0.5), votes(query, [whole], 0.5))


def test_a_long_question_over_a_large_index_votes_the_same_in_blocks(monkeypatch):
    query, keys = draw(3, (4, 2), (12, 50, 4))
    whole = votes(query, [part(keys)], 0.5)
    monkeypatch.setattr("emllm.recall.scorers.LOGITS_AT_ONCE", 700)
    # Not to the bit: on some processors a product of fewer queries rounds otherwise.
    torch.testing.assert_close(votes(query, [part(keys)], 0.5), whole, atol=1e-6, rtol=1e-6)


def in_small_stages(query: Tensor, parts: list[IndexPart], *, rest: int = 10) -> Tensor:
    """Two stages from 21 events on: ten are looked at again, and `rest` others stand for the rest."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ONE_STAGE_EVENTS", 20), ("SECOND_EVENTS", 10), ("REST_EVENTS", rest)):
            patch.setattr(scorers, name, value)
        return votes_in_two_stages(query, parts, 0.5)


@given(st.integers(0, 999), heads, st.integers(1, 20), st.integers(1, 30))
def test_few_events_are_ranked_in_one_stage(seed, heads_, num_events, num_queries):
    query, keys = draw(seed, heads_, (num_queries, num_events, 4))
    assert torch.equal(in_small_stages(query, [part(keys)]), votes(query, [part(keys)], 0.5))


@given(st.integers(0, 999), heads, st.integers(21, 60), st.integers(1, 30))
def test_the_second_stage_scores_as_one_stage_does_where_the_whole_rest_stands_for_itself(
    seed, heads_, num_events, num_queries
):
    query, keys = draw(seed, heads_, (num_queries, num_events, 4))
    few = [part(keys).first(scorers.FIRST_KEYS)]
    first = votes(longest(query, scorers.FIRST_VOTES), few, 0.5)
    found = in_small_stages(query, [part(keys)], rest=num_events)
    best = first.topk(10).indices
    whole = votes(query, [part(keys)], 0.5)
    torch.testing.assert_close(found[best], whole[best], atol=1e-5, rtol=1e-4)
    others = torch.ones(num_events, dtype=torch.bool).index_fill(0, best, False)
    assert torch.equal(found[others], first[others])


@given(st.integers(0, 999), heads, st.integers(21, 60), st.lists(st.integers(0, 60)))
def test_two_stages_over_bytes_are_the_same_bits_however_the_index_is_cut(seed, heads_, num_events, cuts):
    query, keys = draw(seed, heads_, (12, num_events, 4))
    whole = in_bytes(keys)
    edges = sorted({0, num_events, *(cut for cut in cuts if cut < num_events)})
    parts = [whole.events(start, stop) for start, stop in itertools.pairwise(edges)]
    assert torch.equal(in_small_stages(query, parts), in_small_stages(query, [whole]))


@pytest.mark.parametrize("is_planted", [True, False])
def test_of_ten_thousand_events_the_one_that_a_query_looks_for_is_the_best(is_planted):
    """One key of event 7,777 is what one of thirty queries looks for; without it another one is the best."""
    query, keys = draw(5, (4, 2), (30, 10_000, 4))
    query[:, 11] *= 3
    if is_planted:
        keys[:, 7_777, 1] = query[[0, 2], 11]
    index = EventIndex("int8")
    index.append(keys)
    scores = votes_in_two_stages(query, index.parts(), 1.0)
    assert (int(scores.argmax()) == 7_777) is is_planted


@given(st.integers(0, 999), heads, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_a_rest_that_stands_for_more_counts_like_so_many_copies_of_it(seed, heads_, num, num_rest, copies):
    query, keys = draw(seed, heads_, (5, num + num_rest, 3))
    scored, sample = part(keys[:, :num]), part(keys[:, num:])
    found = votes(query, [scored], 1.0, rest=scorers.Rest(sample, float(copies)))
    whole = votes(query, [scored, *[sample] * copies], 1.0)
    torch.testing.assert_close(found, whole[:num], atol=1e-5, rtol=1e-4)


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 12))
def test_the_longest_queries_are_those_of_the_largest_mean_norm_in_their_order(seed, num_queries, num):
    query, _ = draw(seed, (4, 2), (num_queries, 1, 1))
    norms = [float(query[:, token].norm(dim=-1).mean()) for token in range(num_queries)]
    expected = sorted(sorted(range(num_queries), key=lambda token: -norms[token])[:num])
    assert torch.equal(longest(query, num), query[:, expected])


def test_a_chunk_that_is_read_is_ranked_in_one_stage_and_a_question_in_two():
    ranking = SCORERS["votes"]
    assert ranking.scorer(is_asking=True) is votes_in_two_stages
    assert ranking.scorer(is_asking=False) is votes
    assert SCORERS["dot"].scorer(is_asking=True) is dot and SCORERS["exact"].scorer(is_asking=True) is None
