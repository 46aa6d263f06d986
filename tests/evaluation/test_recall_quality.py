"""How much of exact attention rankings recall: bounds, planted events, and that looking changes nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import geometry, memory_layers, random_tape, read
from tests.support.memory_cases import SMALL, assert_same_bits, configs, index_of, log_of
from tiny_suite import SMALL as TINY
from tiny_suite import story, tiny_lm

from emllm.config import MemoryConfig
from emllm.documents.document import Document
from emllm.errors import ConfigError, InputError
from emllm.evaluation.recall_needles import NEAR_TOP, best_rank, with_needles
from emllm.evaluation.recall_quality import METHODS, RecallQuality, mean_mass, most_mass
from emllm.evaluation.recall_report import render_markdown, render_svg, write
from emllm.evaluation.recall_study import RecallStudy
from emllm.memory import EpisodicMemory
from emllm.memory.staging import RecallMoment
from emllm.recall.budget import select_events
from emllm.recall.index import EventIndex
from emllm.recall.trace import RecallTrace

KINDS = ("full", "window", "full")
NUM_TOKENS = 240
CHUNKS = [16] * 15
BUDGETS = (8, 16, 24, 48, 96, NUM_TOKENS)


def observed(config: MemoryConfig, *, budgets=BUDGETS, every=1, seed=0) -> RecallQuality:
    """What is found while a tape of random queries and keys is read."""
    shape = geometry(KINDS)
    memory = EpisodicMemory(shape, config)
    quality = RecallQuality(memory.config, budgets, every=every, seed=seed)
    memory.observe_recall(quality)
    read(memory, random_tape(shape, NUM_TOKENS, seed=seed), CHUNKS)
    return quality


class TestShares:
    @settings(max_examples=15)
    @given(configs(), st.integers(0, 5))
    def test_no_ranking_holds_more_than_the_best_there_is(self, config, seed):
        layers = observed(config, seed=seed).layers()
        assert set(layers) == {0, 2}
        for layer in layers.values():
            best = np.array(layer.share["best"])
            for method in METHODS:
                share, of_best = np.array(layer.share[method]), np.array(layer.of_best[method])
                assert (share >= 0).all() and (share <= best + 1e-9).all() and (best <= 1 + 1e-9).all()
                assert (of_best >= 0).all() and (of_best <= 1 + 1e-9).all()
            assert 0 < layer.recalled_share <= 1 + 1e-9 and layer.recalled_of_best <= 1 + 1e-9
            assert 0 < layer.recalled_tokens <= config.recall_tokens

    @settings(max_examples=15)
    @given(configs(), st.integers(0, 5))
    def test_a_budget_that_covers_all_events_holds_everything(self, config, seed):
        for layer in observed(config, seed=seed).layers().values():
            for method in METHODS:
                assert layer.share[method][-1] == pytest.approx(1)
                assert layer.of_best[method][-1] == pytest.approx(1)

    def test_shares_grow_with_the_budget_where_events_are_of_one_size(self):
        config = MemoryConfig(**{**SMALL, "max_event_tokens": 8, "segmenter": "fixed", "refine": "none"})
        for layer in observed(config, budgets=(8, 16, 24, 40, 80, 160)).layers().values():
            for method in METHODS:
                assert (np.diff(layer.share[method]) > 0).all()

    @given(
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=12),
        st.lists(st.integers(1, 60), min_size=2, max_size=2),
        st.randoms(use_true_random=False),
    )
    def test_the_bound_grows_and_no_choice_of_events_passes_it(self, events, budgets, random):
        mass, sizes = (np.array(column) for column in zip(*events, strict=True))
        low, high = sorted(budgets)
        assert most_mass(mass, sizes, budget_tokens=low) <= most_mass(mass, sizes, budget_tokens=high) + 1e-9
        order = np.array(random.sample(range(len(events)), len(events)), dtype=np.float32)
        chosen, _ = select_events(order, sizes, budget_tokens=low, contiguity=0.0, min_event_tokens=1)
        assert mass[chosen].sum() <= most_mass(mass, sizes, budget_tokens=low) + 1e-9

    def test_the_bound_is_the_best_choice_where_events_are_of_one_size(self):
        mass, sizes = np.array([0.1, 0.4, 0.2, 0.3]), np.array([4, 4, 4, 4])
        assert most_mass(mass, sizes, budget_tokens=8) == pytest.approx(0.7)
        assert most_mass(mass, sizes, budget_tokens=10) == pytest.approx(0.8)

    def test_exact_votes_hold_more_than_events_by_chance(self):
        config = MemoryConfig(**SMALL)
        shares = [observed(config, seed=seed).layers()[layer].share for seed in range(3) for layer in (0, 2)]
        for budget_idx in range(4):
            exact, chance = (
                np.mean([share[method][budget_idx] for share in shares]) for method in ("exact", "random")
            )
            assert exact > chance

    def test_the_memorys_ranking_is_its_scorer_where_there_is_no_contiguity(self):
        for scorer in ("votes", "dot", "exact"):
            config = MemoryConfig(**SMALL, scorer=scorer, contiguity=0.0)
            for layer in observed(config).layers().values():
                assert layer.share["configured"] == layer.share[scorer]

    def test_contiguity_is_of_the_memorys_ranking_alone(self):
        """The tape gives both memories the same queries and keys, whatever they recall."""
        one, other = (
            observed(MemoryConfig(**SMALL, contiguity=share, shortlist_events=0)).layers()
            for share in (0.0, 0.7)
        )
        for layer_idx in one:
            assert one[layer_idx].share["configured"] != other[layer_idx].share["configured"]
            for method in METHODS[1:]:
                assert one[layer_idx].share[method] == other[layer_idx].share[method]

    def test_what_was_really_recalled_is_the_ranking_at_the_memorys_own_budget(self):
        """With no local window before the first event the whole budget is for events."""
        config = MemoryConfig(**{**SMALL, "segmenter": "fixed", "refine": "none"}, contiguity=0.0)
        shape = geometry(KINDS)
        memory = EpisodicMemory(shape, config)
        moments: list[RecallMoment] = []
        memory.observe_recall(moments.append)
        read(memory, random_tape(shape, NUM_TOKENS), CHUNKS)
        for moment in moments:
            used = int(moment.sizes[moment.recalled].sum())
            quality = RecallQuality(memory.config, (used,))
            quality(moment)
            (layer,) = quality.layers().values()
            assert layer.recalled_tokens == used
            assert layer.share["configured"][0] == pytest.approx(layer.recalled_share)

    def test_every_third_recall_is_looked_at_from_the_first_on(self):
        counts = [
            layer.num_recalls
            for every in (1, 3)
            for layer in observed(MemoryConfig(**SMALL), every=every).layers().values()
        ]
        whole, third = counts[0], counts[-1]
        assert whole > 3 and counts == [whole, whole, third, third] and third == -(-whole // 3)

    def test_the_same_seed_gives_the_same_numbers(self):
        one, other = (observed(MemoryConfig(**SMALL), seed=2).layers() for _ in range(2))
        assert one == other


class TestMass:
    @given(st.integers(0, 1000), st.integers(1, 40), st.lists(st.integers(1, 6), min_size=1, max_size=8))
    def test_mass_is_the_mean_of_softmax_attention_over_queries_and_heads(self, seed, num_queries, sizes):
        generator = torch.Generator().manual_seed(seed)
        keys = torch.randn(2, sum(sizes), 4, generator=generator)
        query = torch.randn(6, num_queries, 4, generator=generator)
        found = mean_mass(query, lambda a, b: keys[:, a:b], np.array(sizes), scaling=0.5)
        logits = 0.5 * query.double() @ keys.double().repeat_interleave(3, dim=0).transpose(1, 2)
        attention = logits.softmax(-1).mean(dim=(0, 1))
        expected = [float(part.sum()) for part in attention.split(sizes)]
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_mass_does_not_depend_on_how_many_queries_are_taken_at_a_time(self, monkeypatch):
        keys = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1))
        query = torch.randn(4, 9, 4, generator=torch.Generator().manual_seed(2))
        sizes = np.array([10, 5, 15])
        whole = mean_mass(query, lambda a, b: keys[:, a:b], sizes, scaling=1.0)
        monkeypatch.setattr("emllm.evaluation.recall_quality.LOGITS_AT_ONCE", 300)
        np.testing.assert_allclose(mean_mass(query, lambda a, b: keys[:, a:b], sizes, scaling=1.0), whole)

    def test_an_event_that_draws_all_attention_is_found_by_all_who_look(self):
        """One event's keys point where every query looks; the others point away."""
        num_events, size, planted = 20, 4, 7
        direction = torch.nn.functional.normalize(torch.ones(4), dim=0)
        keys = -direction.repeat(2, num_events * size, 1)
        keys[:, planted * size : (planted + 1) * size] *= -1
        index = EventIndex()
        index.append(keys.reshape(2, num_events, size, 4))
        scores = np.arange(num_events, dtype=np.float32)
        moment = RecallMoment(
            layer_idx=3,
            query=20 * direction.repeat(4, 6, 1),
            turned=lambda query: query,
            keys_of=lambda start, stop: keys[:, start:stop],
            parts=index.parts(),
            sizes=np.full(num_events, size),
            scaling=1.0,
            is_asking=True,
            scores=scores,
            candidates=None,
            recalled=[19],
        )
        config = MemoryConfig(min_event_tokens=4, max_event_tokens=8, contiguity=0.0)
        quality = RecallQuality(config.resolve(trained_tokens=8192, num_layers=4), (size, 2 * size))
        quality(moment)
        layer = quality.layers()[3]
        for method in ("best", "votes", "dot", "exact"):
            assert layer.share[method] == pytest.approx([1.0, 1.0], abs=1e-6)
        for method in ("configured", "recent"):  # its scores prefer the latest
            assert layer.share[method] == pytest.approx([0.0, 0.0], abs=1e-6)
        assert layer.recalled_share == pytest.approx(0, abs=1e-6)


class TestLooking:
    @settings(max_examples=10)
    @given(configs(), st.integers(0, 5))
    def test_it_changes_nothing_in_the_memory_nor_in_what_comes_out_of_it(self, config, seed):
        shape = geometry(KINDS)
        tape = random_tape(shape, NUM_TOKENS, seed=seed)
        chunks = [*CHUNKS[:-1], *[1] * 16]
        plain, watched = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
        watched.observe_recall(RecallQuality(watched.config, BUDGETS))
        assert_same_bits(read(plain, tape, chunks), read(watched, tape, chunks))
        assert_same_bits(log_of(plain, shape), log_of(watched, shape))
        assert_same_bits(index_of(plain), index_of(watched))
        for one, other in zip(memory_layers(plain), memory_layers(watched), strict=True):
            assert one.state().queue == other.state().queue
            assert one.state().num_recalls == other.state().num_recalls
            assert one._habit.mean(99).tobytes() == other._habit.mean(99).tobytes()

    def test_it_changes_no_logits_of_a_model(self):
        config = MemoryConfig(**TINY)
        with tiny_lm() as lm:
            logits = []
            for is_watched in (False, True):
                memory = lm.memory(config=config)
                if is_watched:
                    memory.observe_recall(RecallQuality(memory.config, BUDGETS))
                ids = torch.tensor([lm.chat_format.encode(story(1, 120))])
                with torch.no_grad():
                    cache = lm.cache(memory)
                    logits.append(
                        [lm.model(chunk, past_key_values=cache).logits for chunk in ids.split(32, 1)]
                    )
        assert_same_bits(*logits)

    def test_forks_are_not_looked_at_nor_is_a_memory_that_was_let_go(self):
        shape = geometry(KINDS)
        tape = random_tape(shape, NUM_TOKENS)
        memory = EpisodicMemory(shape, MemoryConfig(**SMALL))
        moments: list[RecallMoment] = []
        memory.observe_recall(moments.append)
        read(memory, tape, CHUNKS[:10])
        num_before = len(moments)
        read(memory.fork(), tape, CHUNKS[10:])
        assert num_before and len(moments) == num_before
        memory.observe_recall(None)
        read(memory, tape, CHUNKS[10:])
        assert len(moments) == num_before


class TestNeedles:
    @given(st.integers(0, 6), st.integers(0, 99), st.integers(0, 40))
    def test_the_text_is_there_still_and_each_answer_stands_where_it_is_said_to(self, num, seed, num_words):
        text = story(seed, num_words) + " Mr. Smith left.\n\nNothing  more."
        longer, needles = with_needles(text, num, seed=str(seed))
        assert len(needles) == num
        for needle in needles:
            assert longer[needle.start : needle.stop] == needle.fact.answers[0]
            assert longer.count(needle.fact.sentence) == 1
        for needle in needles:
            place = longer.index(needle.fact.sentence)
            before, after = longer[:place], longer[place + len(needle.fact.sentence) :]
            assert not before.endswith("Mr. ")
            longer = before + after[1:] if after.startswith(" ") else before[:-1] + after
        assert longer == text

    def test_facts_depend_on_the_seed_alone_and_differ(self):
        text = story(1, 200)
        one, other = (with_needles(text, 4, seed="a") for _ in range(2))
        assert one == other and one != with_needles(text, 4, seed="b")
        assert len({needle.fact.answers for needle in one[1]}) == 4

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.data())
    def test_a_rank_counts_the_events_before_the_best_of_these(self, scores, data):
        events = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
        order = sorted(range(len(scores)), key=lambda event: (-scores[event], event))
        found = best_rank(np.array(scores, dtype=np.float32), sorted(events))
        assert found == min(order.index(event) for event in events)

    def test_totals_order_events_as_the_strongest_are_ordered(self):
        trace = RecallTrace()
        for layer_idx, scores in enumerate(([1, 5, 0, 2], [0, 4, 3, 1])):
            trace.add(layer_idx, np.array(scores, dtype=np.float32), range(4))
        order = [one.event for one in trace.strongest(4)]
        assert order == np.argsort(-trace.totals, kind="stable")[: len(order)].tolist()
        trace.totals[:] = 0
        assert trace.totals.any()


def study(*, text: str | None = None, config: MemoryConfig | None = None, **wishes) -> RecallStudy:
    """A study of one text with a tiny model."""
    with tiny_lm() as lm:
        found = RecallStudy(
            lm, config or MemoryConfig(**TINY), **{"budgets": (32, 64, 128), "every": 1, **wishes}
        )
        found.read(Document("story.txt", story(1, 150) if text is None else text))
    return found


class TestStudy:
    def test_needles_have_a_rank_in_every_layer_and_in_all_together(self):
        result = study(num_needles=3).result()
        assert len(result.needles) == 3
        ranked = [needle for needle in result.needles if needle.layers]
        assert ranked
        for needle in ranked:
            assert set(needle.layers) == set(result.layers)
            assert all(0 <= rank < needle.num_events for rank in needle.layers.values())
            assert 0 <= needle.consensus < needle.num_events
            assert needle.best == min(needle.layers.values()) <= needle.median
            assert needle.num_near_top == sum(rank < NEAR_TOP for rank in needle.layers.values())

    def test_a_needle_that_is_still_in_the_local_window_has_no_rank(self):
        text = story(1, 150)
        late = study(text=text, num_needles=40).result().needles[-1]
        assert late.layers == {} and late.consensus is None and late.best is None and late.median is None

    def test_the_events_of_a_needle_hold_its_answer(self, monkeypatch):
        asked_for: list[list[int]] = []

        def noted(scores, events):
            asked_for.append(events)
            return best_rank(scores, events)

        monkeypatch.setattr("emllm.evaluation.recall_needles.best_rank", noted)
        with tiny_lm() as lm:
            RecallStudy(lm, MemoryConfig(**TINY), num_needles=2).read(Document("story.txt", story(1, 240)))
            memory = lm.memory(config=MemoryConfig(**TINY))
            text, needles = with_needles(story(1, 240), 2, seed="0/story.txt")
            memory.read(text, name="story.txt")
            said = [lm.chat_format.decode(memory.token_ids(e.start, e.stop)) for e in memory.events()]
        for needle in needles:
            answer = needle.fact.answers[0]
            assert any(answer in "".join(said[event] for event in events) for events in asked_for)
            assert all(len(events) <= 4 for events in asked_for)

    def test_only_the_first_tokens_are_read_where_that_is_wished(self):
        result = study(text=story(1, 400), max_tokens=200).result()
        assert 200 <= result.texts[0].num_tokens < 240

    def test_texts_are_read_into_memories_of_their_own(self):
        with tiny_lm() as lm:
            one, two = (RecallStudy(lm, MemoryConfig(**TINY), budgets=(64,), every=4) for _ in range(2))
            one.read(Document("a", story(1, 150)))
            for name in ("a", "b"):
                two.read(Document(name, story(1, 150)))
        first, both = one.result(), two.result()
        assert [text.num_tokens for text in both.texts] == 2 * [first.texts[0].num_tokens]
        for layer_idx, layer in first.layers.items():
            assert both.layers[layer_idx].num_recalls == 2 * layer.num_recalls
            assert both.layers[layer_idx].share["votes"] == pytest.approx(layer.share["votes"])

    def test_json_markdown_and_picture_say_the_same_and_are_repeatable(self, tmp_path):
        pytest.importorskip("matplotlib")
        result = study(num_needles=2).result()
        paths = write(result, tmp_path)
        assert [path.name for path in paths] == ["recall.json", "recall.md", "recall.svg"]
        found = json.loads(paths[0].read_text())
        assert found == json.loads(json.dumps(result.to_json()))
        assert set(found["mean"]["share"]) == set(METHODS)
        text = render_markdown(result)
        assert f"{100 * found['mean']['share']['votes'][0]:.1f}" in text and "story.txt" in text
        assert all(len(needle.layers) or needle.best is None for needle in result.needles)
        assert render_svg(result) == render_svg(result) == paths[2].read_bytes()

    def test_words_of_a_name_mean_nothing_to_markdown(self):
        result = study().result()
        texts = (dataclasses.replace(result.texts[0], name="a|b <i>*c*\nd"),)
        assert "a\\|b \\<i>\\*c\\* d" in render_markdown(dataclasses.replace(result, texts=texts))

    @pytest.mark.parametrize(
        ("wishes", "said"),
        [
            ({"budgets": ()}, "budgets must ascend from 1 or more, got "),
            ({"budgets": (8, 8)}, "budgets must ascend from 1 or more, got 8,8"),
            ({"budgets": (0, 8)}, "budgets must ascend from 1 or more, got 0,8"),
            ({"every": 0}, "every must be >= 1, got 0"),
            ({"num_needles": -1}, "needles must be >= 0, got -1"),
            ({"max_tokens": 0}, "tokens must be >= 1, got 0"),
            ({"config": MemoryConfig(**{**TINY, "recall_tokens": 0})}, "recall_tokens must be a number > 0"),
            ({"config": MemoryConfig(**{**TINY, "recall_tokens": "all"})}, "got 'all'"),
        ],
    )
    def test_a_wrong_number_is_refused_with_its_range(self, wishes, said):
        with pytest.raises(ConfigError, match=said):
            study(**wishes)

    def test_a_text_that_is_attended_to_whole_ranks_nothing(self):
        with pytest.raises(InputError, match="no events were ranked: the longest text has"):
            study(text="Lily had a red ball.").result()
