"""Rows have one budget, and say what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.config import SCORERS, VARIANTS, MemoryConfig
from emllm.errors import ConfigError
from emllm.evaluation.rows import (
    DEFAULT_ROWS,
    KINDS,
    ROWS,
    Row,
    attended_tokens,
    budgets_of,
    parse_row,
    rows_of,
)

MEMORY_ROWS = [row for row in ROWS.values() if row.kind == "memory" and row.name != "exact"]
MODEL = {"trained_tokens": 8192, "num_layers": 4}
BUDGETS = st.fixed_dictionaries(
    {},
    optional={
        "sink_tokens": st.integers(0, 100),
        "local_tokens": st.integers(192, 1024),
        "recall_tokens": st.integers(128, 1024),
    },
)


def attended(config: MemoryConfig) -> int:
    return config.sink_tokens + config.local_tokens + config.recall_tokens


@given(shared=BUDGETS)
def test_every_memory_attends_to_as_many_tokens_as_every_other(shared):
    widths = {row.name: attended(row.resolved(shared, **MODEL)) for row in MEMORY_ROWS}
    assert set(widths.values()) == {attended_tokens(shared)}


@given(shared=BUDGETS)
def test_all_rows_that_recall_have_the_same_three_budgets(shared):
    for row in MEMORY_ROWS:
        config = row.resolved(shared, **MODEL)
        if row.name != "streaming-llm":
            assert {name: getattr(config, name) for name in budgets_of(shared)} == budgets_of(shared)
        else:
            assert config.recall_tokens == 0


def test_the_budget_is_64_sink_512_local_and_512_recalled_tokens_unless_given():
    assert budgets_of({}) == {"sink_tokens": 64, "local_tokens": 512, "recall_tokens": 512}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_row_of_a_variant_is_the_papers_method_with_it(variant):
    config = ROWS[f"em-llm:{variant}"].config({})
    paper = MemoryConfig.preset("em-llm", variant=variant)
    for name in ("segmenter", "refine", "contiguity", "scorer", "event_key", "positions"):
        assert getattr(config, name) == getattr(paper, name)


def test_the_papers_row_is_its_variant_with_modularity_and_contiguity():
    assert ROWS["em-llm"].config({}) == ROWS["em-llm:SM+C"].config({})


def test_the_exact_row_is_refused_by_its_scorer_where_there_is_no_such_scorer():
    if "exact" in SCORERS:
        assert ROWS["exact"].config({}).scorer == "exact"
    else:
        with pytest.raises(ConfigError, match=r"row exact: scorer must be one of .* got 'exact'"):
            ROWS["exact"].config({})


def test_settings_of_all_rows_reach_all_memories_and_contradict_none():
    assert all(row.config({"gamma": 2.0}).gamma == 2.0 for row in MEMORY_ROWS)
    with pytest.raises(ConfigError, match="segmenter='fixed' for all rows contradicts row em-llm, which has"):
        ROWS["em-llm"].config({"segmenter": "fixed"})
    with pytest.raises(ConfigError, match="max_event_tokens=64 for all rows contradicts row inf-llm"):
        ROWS["inf-llm"].config({"max_event_tokens": 64})


def test_a_budget_without_a_number_is_refused():
    with pytest.raises(ConfigError, match=r"recall_tokens must be an integer >= 0 .* got 'all'"):
        ROWS["default"].config({"recall_tokens": "all"})


def test_a_budget_larger_than_the_model_names_the_row():
    with pytest.raises(ConfigError, match=r"row default: .* must be <= 600"):
        ROWS["default"].resolved({}, trained_tokens=600, num_layers=4)


def test_full_attention_says_its_window_and_takes_no_budget():
    described = ROWS["full"].described({"local_tokens": 99}, **MODEL)
    assert described["kind"] == "full" and described["settings"]["window_tokens"] == 8192
    assert ROWS["full"].resolved({"local_tokens": 99}, **MODEL).recall_tokens > 1 << 60


def test_passages_may_fill_the_width_of_a_memory():
    settings = ROWS["rag-events"].described({"gamma": 2.0}, **MODEL)["settings"]
    assert settings["passage_tokens"] == 64 + 512 + 512
    assert settings["passages"] == "events" and settings["gamma"] == 2.0


def test_a_memory_row_writes_down_every_setting_but_where_it_lies():
    settings = ROWS["default"].described({}, **MODEL)["settings"]
    assert settings["recall_tokens"] == 512 and "host_budget" not in settings


def test_rows_keep_the_order_of_their_names_and_free_ones_come_last():
    rows = rows_of(["em-llm", "full"], ["mine=default,gamma=2.5"])
    assert [row.name for row in rows] == ["em-llm", "full", "mine"]
    assert [row.name for row in rows_of(["mine", "full"], ["mine=default"])] == ["mine", "full"]
    assert [row.name for row in rows_of(None)] == list(DEFAULT_ROWS)


def test_a_free_row_has_its_preset_variant_and_toml_values():
    row = parse_row('wide = em-llm:SM, gamma=2.5, scorer=votes, event_key="mean", recall_tokens=1024')
    assert (row.preset, row.variant, row.kind) == ("em-llm", "SM", "memory")
    assert row.settings == {"gamma": 2.5, "scorer": "votes", "event_key": "mean", "recall_tokens": 1024}
    assert row.config({}).recall_tokens == 1024 and row.config({}).local_tokens == 512


def test_a_free_row_may_be_a_search():
    row = parse_row("short=rag,passage_words=100")
    assert row.kind == "passages" and row.search_settings({})["passage_words"] == 100
    with pytest.raises(ConfigError, match="row odd: unknown setting 'passage_wrods'"):
        parse_row("odd=rag,passage_wrods=100").search_settings({})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "must be name=preset"),
        ("=default", "must be name=preset"),
        ("a b=default", "must be name=preset"),
        ("mine=", "must be name=preset"),
        ("full=default", "row full exists already"),
        ("mine=defualt", "preset must be one of"),
        ("mine=em-llm:XX", "variant must be one of"),
        ("mine=em-llm:SM,refine=none", "contradicts variant SM"),
        ("mine=default,gama=1", "unknown setting 'gama'"),
        ("mine=default,gamma", "setting=value"),
        ("mine=default,gamma=1,gamma=2", "gamma is set twice"),
        ("mine=full,gamma=1", "full attention has no variants or settings, got gamma"),
        ("mine=full:SM", "full attention has no variants or settings, got SM"),
    ],
)
def test_a_wrong_free_row_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_row(text).config({})


@pytest.mark.parametrize(
    ("names", "free", "said"),
    [
        (["fulll"], [], "rows must be among full, .* got 'fulll'"),
        (["full", "full"], [], "named twice"),
        ([], [], "at least one row"),
        (None, ["a=default", "a=em-llm"], "the same name"),
    ],
)
def test_wrong_names_of_rows_are_refused(names, free, said):
    with pytest.raises(ConfigError, match=said):
        rows_of(names, free)


def test_every_row_is_of_a_known_kind_and_says_what_it_is():
    assert all(row.kind in KINDS and row.said for row in ROWS.values())
    assert Row("x") == Row("x", "memory", "default", None, {}, "")
