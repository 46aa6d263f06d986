"""The bootstrap over samples and flips of signs: laws, planted truths, and scipy's as an oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, permutation_test

from emllm.errors import ConfigError
from emllm.evaluation.statistics import (
    bootstrap_average,
    bootstrap_average_difference,
    bootstrap_difference,
    bootstrap_mean,
)

FEW = 400
scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)
pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(scores)
def test_an_interval_is_ordered_and_lies_within_the_scores_but_for_its_widening(values):
    found = bootstrap_mean(values, num_resamples=FEW)
    wider = np.sqrt(len(values) / max(len(values) - 1, 1))
    lowest, highest = (found.mean + wider * (end - found.mean) for end in (min(values), max(values)))
    assert lowest - 1e-9 <= found.low <= found.high <= highest + 1e-9
    assert found.mean == pytest.approx(np.mean(values)) and found.num_samples == len(values)


@given(pairs)
def test_exchanging_the_rows_changes_the_sign_and_nothing_else(both):
    first, second = (list(side) for side in zip(*both, strict=True))
    one = bootstrap_difference(first, second, num_resamples=FEW)
    other = bootstrap_difference(second, first, num_resamples=FEW)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low), abs=1e-9)
    assert one.p == other.p


@given(pairs, st.floats(-1, 1))
def test_what_both_rows_gain_does_not_move_their_difference(both, gain):
    first, second = (np.array(side) for side in zip(*both, strict=True))
    before = bootstrap_difference(first, second, num_resamples=FEW)
    after = bootstrap_difference(first + gain, second + gain, num_resamples=FEW)
    assert (after.mean, after.low, after.high) == pytest.approx(
        (before.mean, before.low, before.high), abs=1e-9
    )


@given(pairs)
def test_a_p_is_a_probability_and_never_0(both):
    first, second = (list(side) for side in zip(*both, strict=True))
    p = bootstrap_difference(first, second, num_resamples=FEW).p
    assert p is not None and 0 < p <= 1


@given(scores)
def test_a_row_does_not_differ_from_itself(values):
    found = bootstrap_difference(values, values, num_resamples=FEW)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_larger_confidence_never_narrows_the_interval():
    values = np.random.default_rng(1).random(20)
    widths = []
    for confidence in (0.5, 0.8, 0.95, 0.99):
        found = bootstrap_mean(values, confidence=confidence)
        widths.append(found.high - found.low)
    assert widths == sorted(widths) and widths[0] > 0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(1).random(20)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_no_global_generator_is_touched():
    before = np.random.get_state()[1].tolist()
    bootstrap_mean([0.0, 1.0])
    assert np.random.get_state()[1].tolist() == before


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(5).beta(0.5, 0.8, 60)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    ours = bootstrap_mean(values, num_resamples=20_000)
    wider = np.sqrt(60 / 59)
    widened = [ours.mean + wider * (end - ours.mean) for end in theirs]
    assert (ours.low, ours.high) == pytest.approx(widened, abs=5e-3)


@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_means_of_few_samples_spread_by_their_standard_error(num_samples):
    # An average of many tasks has a bell of draws: 68 % of them lie within one standard error.
    values = np.random.default_rng(7).normal(0, 1, (12, num_samples))
    found = bootstrap_average([(one, None) for one in values], confidence=0.6827, num_resamples=5000)
    standard_error = np.sqrt((values.var(axis=1, ddof=1) / num_samples).sum()) / 12
    assert (found.high - found.low) / 2 == pytest.approx(standard_error, rel=0.05)


def test_nineteen_of_twenty_intervals_hold_the_planted_mean():
    generator = np.random.default_rng(11)
    held = 0
    for trial in range(300):
        found = bootstrap_mean(generator.normal(0.3, 0.2, 40), num_resamples=FEW, seed=trial)
        held += found.low <= 0.3 <= found.high
    assert 0.89 <= held / 300 <= 0.98


def test_nineteen_of_twenty_intervals_hold_the_planted_mean_over_questions_of_texts_of_all_sizes():
    # Hard texts have the most questions, so that a mean over texts would be another: 0.5.
    generator, held, blind = np.random.default_rng(31), 0, 0
    sizes = np.array([1, 4, 10])
    planted = sizes @ [0.8, 0.5, 0.2] / sizes.sum()
    for trial in range(300):
        kinds = generator.integers(3, size=60)
        hardness = np.array([0.8, 0.5, 0.2])[kinds] + generator.normal(0, 0.1, 60)
        clusters = np.repeat(np.arange(60), sizes[kinds])
        values = hardness[clusters] + generator.normal(0, 0.05, len(clusters))
        found = bootstrap_mean(values, clusters=clusters.tolist(), num_resamples=FEW, seed=trial)
        held += found.low <= planted <= found.high
        alone = bootstrap_mean(values, num_resamples=FEW, seed=trial)
        blind += alone.low <= planted <= alone.high
    assert 0.89 <= held / 300 <= 0.98 and blind / 300 < 0.8


@given(st.lists(scores, min_size=1, max_size=5))
def test_an_average_is_the_plain_mean_of_its_tasks_whatever_their_sizes(strata):
    found = bootstrap_average([(values, None) for values in strata], num_resamples=FEW)
    assert found.mean == pytest.approx(np.mean([np.mean(values) for values in strata]))
    assert found.low <= found.high and found.num_samples == min(map(len, strata))


def test_an_average_draws_each_task_by_its_own_texts():
    per_text = np.random.default_rng(37).random((2, 15))
    strata = [
        (np.repeat(values, 8), [(task, i // 8) for i in range(120)]) for task, values in enumerate(per_text)
    ]
    clustered = bootstrap_average(strata)
    texts = bootstrap_average([(values, None) for values in per_text])
    assert (clustered.low, clustered.high) == pytest.approx((texts.low, texts.high))
    one = bootstrap_mean(per_text[0])
    assert texts.high - texts.low < 0.85 * (one.high - one.low)


def test_texts_that_several_tasks_ask_about_are_drawn_once_for_all_of_them():
    hardness = np.random.default_rng(41).random(15)
    names = [f"text {number}" for number in range(15)]
    one = bootstrap_mean(hardness, clusters=names)
    shared = bootstrap_average([(hardness, names), (hardness[::-1], names[::-1])])
    assert (shared.low, shared.high) == pytest.approx((one.low, one.high))
    opposite = bootstrap_average([(hardness, names), (1 - hardness, names)])
    assert (opposite.low, opposite.high) == pytest.approx((0.5, 0.5))
    apart = bootstrap_average([(hardness, names), (hardness, [f"other {name}" for name in names])])
    assert apart.high - apart.low < 0.85 * (one.high - one.low)


def test_a_task_that_has_some_of_the_shared_texts_only_has_one_in_every_draw():
    names = ["a", "b", "c"]
    found = bootstrap_average([([0.2, 0.4, 0.6], names), ([0.5], ["b"])], num_resamples=FEW)
    assert found.mean == pytest.approx(0.45) and found.num_samples == 1
    assert found.low >= 0.45 - 0.1 * np.sqrt(1.5) and found.high <= 0.45 + 0.1 * np.sqrt(1.5)
    assert found.low < found.high


def test_a_planted_difference_is_found_and_a_null_one_is_not():
    generator = np.random.default_rng(13)
    hardness = generator.random(80)
    base, noise = hardness, generator.normal(0, 0.02, (2, 80))
    better = bootstrap_difference(base + 0.05 + noise[0], base)
    null = bootstrap_difference(base + noise[1], base)
    assert better.low > 0 and better.p < 0.01 and better.mean == pytest.approx(0.05, abs=0.01)
    assert null.low < 0 < null.high and null.p > 0.05


def test_one_in_twenty_null_differences_has_a_p_below_five_percent():
    generator = np.random.default_rng(17)
    small = 0
    for trial in range(300):
        first, second = generator.random((2, 40))
        small += bootstrap_difference(first, second, num_resamples=FEW, seed=trial).p < 0.05
    assert 0.01 <= small / 300 <= 0.11


def test_pairing_tells_apart_what_two_separate_intervals_do_not():
    generator = np.random.default_rng(19)
    base = generator.random(50)
    other = base + generator.uniform(0.02, 0.06, 50)
    assert bootstrap_mean(other).low < bootstrap_mean(base).high
    assert bootstrap_difference(other, base).low > 0


def test_questions_of_one_text_are_no_independent_samples():
    per_text = np.random.default_rng(23).random(15)
    values = np.repeat(per_text, 10)
    clusters = [f"text-{index // 10}" for index in range(150)]
    together = bootstrap_mean(values, clusters=clusters)
    texts = bootstrap_mean(per_text)
    blind = bootstrap_mean(values)
    assert (together.low, together.high) == pytest.approx((texts.low, texts.high))
    assert together.num_samples == 15
    assert blind.high - blind.low < 0.5 * (together.high - together.low)


def test_a_clustered_difference_is_drawn_by_cluster_too():
    difference = np.repeat([0.3, -0.2, 0.25, -0.1], 20)
    clusters = [index // 20 for index in range(80)]
    together = bootstrap_difference(difference, np.zeros(80), clusters=clusters)
    blind = bootstrap_difference(difference, np.zeros(80))
    assert together.low < 0 < together.high and blind.low > 0
    assert together.p > blind.p


def test_a_sample_with_more_questions_weighs_more():
    found = bootstrap_mean([1.0, 0.0, 0.0, 0.0], clusters=["a", "b", "b", "b"])
    low, high = (0.25 + np.sqrt(2) * (end - 0.25) for end in (0, 1))
    assert found.mean == 0.25 and (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_few_samples_of_one_sign_are_no_certainty(num_samples):
    found = bootstrap_difference([0.5] * num_samples, [0.1] * num_samples)
    assert found.p >= 2.0 ** (1 - num_samples)


@pytest.mark.parametrize("num_samples", [2, 5, 9, 12])
def test_a_p_is_that_of_scipys_permutation_test_over_samples(num_samples):
    first, second = np.random.default_rng(num_samples).random((2, num_samples)).round(1)
    theirs = permutation_test(
        (first, second), lambda one, other: np.mean(one - other), permutation_type="samples", n_resamples=1e5
    )
    assert bootstrap_difference(first, second, num_resamples=FEW).p == pytest.approx(theirs.pvalue)


def test_a_p_of_drawn_flips_is_near_that_of_all_of_them():
    first, second = np.random.default_rng(3).random((2, 14))
    theirs = permutation_test(
        (first, second + 0.2),
        lambda one, other: np.mean(one - other),
        permutation_type="samples",
        n_resamples=1e5,
    )
    ours = bootstrap_difference(first, second + 0.2, num_resamples=FEW)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02) and 0.01 < ours.p < 0.9


def test_a_p_of_drawn_flips_counts_the_rows_as_they_are():
    assert bootstrap_difference([0.5] * 60, [0.1] * 60, num_resamples=FEW).p == 1 / 10_001


def test_samples_on_which_two_rows_agree_make_them_no_surer_to_differ():
    few = bootstrap_difference([1.0] * 3, [0.0] * 3, num_resamples=FEW)
    many = bootstrap_difference([1.0] * 3 + [0.5] * 40, [0.0] * 3 + [0.5] * 40, num_resamples=FEW)
    assert few.p == many.p == 0.25
    assert (many.num_differing, many.num_samples) == (3, 43)


def test_a_text_of_several_tasks_has_one_sign_in_all_of_them():
    names = list("abc")
    gains = [0.1, 0.2, 0.3]
    one = bootstrap_average_difference([(gains, names)] * 4, num_resamples=FEW)
    assert (one.p, one.num_differing) == (0.25, 3)
    apart = [(gains, [f"{task} {name}" for name in names]) for task in range(4)]
    assert bootstrap_average_difference(apart, num_resamples=FEW).p == 2.0**-11
    opposite = [(gains, names), ([-gain for gain in gains], names)]
    assert bootstrap_average_difference(opposite, num_resamples=FEW).p == 1


def test_many_samples_are_drawn_in_batches_without_a_gap():
    values = np.random.default_rng(29).random(3000)
    found = bootstrap_mean(values, num_resamples=1500)
    half_width = 1.96 * values.std() / np.sqrt(3000)
    assert found.mean - found.low == pytest.approx(half_width, rel=0.15)
    assert found.high - found.mean == pytest.approx(half_width, rel=0.15)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scores": []}, "scores"),
        ({"scores": [0.5, float("nan")]}, "scores"),
        ({"scores": [0.5], "clusters": ["a", "b"]}, "1 scores, 2 clusters"),
        ({"scores": [0.5], "confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"scores": [0.5], "num_resamples": 0}, "num_resamples must be >= 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named(wrong, said):
    with pytest.raises(ConfigError, match=said):
        bootstrap_mean(**wrong)


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="one task at least"):
        bootstrap_average([])


def test_rows_with_different_numbers_of_scores_are_refused():
    with pytest.raises(ConfigError, match="got 2 and 1"):
        bootstrap_difference([0.5, 0.5], [0.5])
