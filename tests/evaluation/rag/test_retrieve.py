"""The best passages within a budget: never more tokens, as full as words allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.evaluation.rag.passages import fixed_passages
from emllm.evaluation.rag.retrieve import joined, ranked, within_budget

TEXT = " ".join(f"w{n:02d}" for n in range(40))
PASSAGES = fixed_passages(TEXT, words=8)


def count_words(text):
    return len(text.split())


def read(*args, **options):
    return joined(within_budget(*args, **options))


@given(scores=st.lists(st.floats(-1, 1), max_size=20))
def test_ranking_is_a_sort_with_the_earlier_first(scores):
    assert ranked(scores) == [i for _, i in sorted((-score, i) for i, score in enumerate(scores))]


@given(
    text=st.text(alphabet="abc \n日", max_size=300),
    words=st.integers(1, 20),
    budget=st.integers(1, 200),
    order=st.sampled_from(["text", "rank"]),
    data=st.data(),
)
def test_the_budget_is_never_exceeded_whatever_counts(text, words, budget, order, data):
    passages = fixed_passages(text, words=words)
    ranking = data.draw(st.permutations(range(len(passages))))
    for count in (len, count_words, lambda piece: (len(piece) + 3) // 4 + piece.count("\n")):
        found = read(passages, ranking, budget_tokens=budget, count_tokens=count, order=order)
        assert count(found) <= budget


@given(budget=st.integers(1, 60), ranking=st.permutations(range(len(PASSAGES))))
def test_the_budget_is_full_where_the_text_is_long_enough(budget, ranking):
    found = read(PASSAGES, ranking, budget_tokens=budget, count_tokens=count_words)
    assert count_words(found) == min(budget, 40)


@given(budget=st.integers(1, 60), ranking=st.permutations(range(len(PASSAGES))))
def test_the_best_passages_are_whole_and_stand_as_asked(budget, ranking):
    whole = [PASSAGES[idx].text.strip() for idx in ranking[: budget // 8]]
    options = {"budget_tokens": budget, "count_tokens": count_words}
    by_rank = read(PASSAGES, ranking, order="rank", **options).split("\n\n")
    in_text = read(PASSAGES, ranking, **options).split("\n\n")
    assert by_rank[: len(whole)] == whole
    assert in_text == sorted(by_rank)


@given(
    text=st.text(alphabet="abc \n日", max_size=300),
    budget=st.integers(1, 60),
    order=st.sampled_from(["text", "rank"]),
    data=st.data(),
)
def test_what_is_read_stands_in_the_text_where_it_says_with_its_rank(text, budget, order, data):
    passages = fixed_passages(text, words=8)
    ranking = data.draw(st.permutations(range(len(passages))))
    found = within_budget(passages, ranking, budget_tokens=budget, count_tokens=count_words, order=order)
    for one in found:
        whole = passages[ranking[one.rank]]
        assert whole.start <= one.passage.start < one.passage.stop <= whole.stop
        assert text[one.passage.start : one.passage.stop] == one.passage.text
    assert sorted(one.rank for one in found) == list(range(len(found)))


def test_everything_fits_in_a_large_budget():
    found = read(PASSAGES, [4, 3, 2, 1, 0], budget_tokens=40, count_tokens=count_words)
    assert found.split() == TEXT.split()


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"passage_order must be one of text, rank, got 'time'"):
        within_budget(PASSAGES, [0], budget_tokens=1, count_tokens=len, order="time")
    with pytest.raises(ConfigError, match=r">= 1 token, got 0"):
        within_budget(PASSAGES, [0], budget_tokens=0, count_tokens=len)
