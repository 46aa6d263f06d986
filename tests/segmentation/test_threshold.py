"""Laws and oracles of the rolling threshold."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from emllm.segmentation.threshold import RollingThreshold, boundary_flags

NATS = st.floats(0.0, 30.0, width=32)
SIGNALS = st.lists(st.one_of(NATS, NATS, NATS, st.just(float("nan"))), max_size=60).map(np.array)
WINDOWS = st.integers(2, 25)
GAMMAS = st.floats(-1.0, 3.0)
EDGES = st.lists(st.integers(0, 60))


def in_chunks(values: np.ndarray, edges: list[int]) -> list[np.ndarray]:
    return np.split(values, sorted(edge for edge in edges if edge <= len(values)))


@given(SIGNALS, EDGES, GAMMAS, WINDOWS)
def test_any_chunking_gives_the_same_bits(values, edges, gamma: float, window: int) -> None:
    online = RollingThreshold(gamma=gamma, window_tokens=window)
    parts = [online.extend(chunk) for chunk in in_chunks(values, edges)]
    flags, thresholds = boundary_flags(values, gamma=gamma, window_tokens=window)
    assert np.array_equal(np.concatenate([part[0] for part in parts]), flags)
    assert np.concatenate([part[1] for part in parts]).tobytes() == thresholds.tobytes()


def test_any_chunking_gives_the_same_bits_for_a_long_text_too() -> None:
    values = np.random.default_rng(1).gamma(1.0, 2.5, 20_000).astype(np.float32)
    online = RollingThreshold(gamma=1.0, window_tokens=1024)
    parts = [online.extend(chunk)[1] for chunk in np.split(values, [1, 2, 700, 701, 9000, 15_111])]
    whole = boundary_flags(values, gamma=1.0, window_tokens=1024)[1]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(SIGNALS, GAMMAS, WINDOWS)
def test_the_threshold_equals_mean_plus_gamma_deviations_of_the_known_values_before(
    values, gamma: float, window: int
) -> None:
    flags, thresholds = boundary_flags(values, gamma=gamma, window_tokens=window)
    for t in range(len(values)):
        before = values[max(0, t - window) : t]
        before = before[~np.isnan(before)]
        if len(before) < 2:
            assert np.isnan(thresholds[t]) and not flags[t]
            continue
        oracle = before.mean() + gamma * before.std(ddof=1)
        assert abs(thresholds[t] - oracle) < 3e-5
        assert np.isnan(values[t]) or abs(values[t] - oracle) < 3e-5 or flags[t] == (values[t] > oracle)


@given(SIGNALS, GAMMAS, st.floats(0.0, 3.0), WINDOWS)
def test_a_larger_gamma_never_adds_a_boundary(values, gamma: float, more: float, window: int) -> None:
    loose, _ = boundary_flags(values, gamma=gamma, window_tokens=window)
    tight, _ = boundary_flags(values, gamma=gamma + more, window_tokens=window)
    assert not (tight & ~loose).any()


@given(SIGNALS, st.floats(0.01, 100.0), st.floats(-50.0, 50.0), GAMMAS, WINDOWS)
def test_boundaries_are_unmoved_by_a_linear_change_of_the_unit(values, a, b, gamma, window: int) -> None:
    flags, thresholds = boundary_flags(values, gamma=gamma, window_tokens=window)
    is_clear = np.isnan(thresholds) | np.isnan(values) | (np.abs(values - thresholds) > 1e-3)
    assume(is_clear.any())
    changed, _ = boundary_flags(a * values + b, gamma=gamma, window_tokens=window)
    assert np.array_equal(changed[is_clear], flags[is_clear])


@given(SIGNALS, SIGNALS, GAMMAS, WINDOWS)
def test_the_future_never_changes_the_past(past, future, gamma: float, window: int) -> None:
    alone = boundary_flags(past, gamma=gamma, window_tokens=window)
    whole = boundary_flags(np.concatenate([past, future]), gamma=gamma, window_tokens=window)
    assert np.array_equal(whole[0][: len(past)], alone[0])
    assert np.array_equal(whole[1][: len(past)], alone[1], equal_nan=True)


@given(SIGNALS, EDGES, SIGNALS, WINDOWS)
def test_a_copy_goes_on_alone_and_a_stored_state_goes_on_alike(values, edges, others, window: int) -> None:
    online = RollingThreshold(gamma=1.0, window_tokens=window)
    for chunk in in_chunks(values, edges):
        online.extend(chunk)
    fork = online.copy()
    fork.extend(others)
    stored = json.loads(json.dumps(online.state(), allow_nan=False))
    restored = RollingThreshold.from_state(stored, gamma=1.0, window_tokens=window)
    assert online.extend(others)[1].tobytes() == restored.extend(others)[1].tobytes()


@given(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), st.integers(0, 60), st.floats(0.0, 3.0), WINDOWS)
def test_a_constant_signal_has_no_boundary(value: float, count: int, gamma: float, window: int) -> None:
    flags, _ = boundary_flags(np.full(count, value), gamma=gamma, window_tokens=window)
    assert not flags.any()


def test_planted_spikes_are_the_boundaries_and_their_shuffled_places_are_not() -> None:
    random = np.random.default_rng(3)
    values = random.normal(2.0, 0.1, 1000)
    planted = np.arange(100, 1000, 90)
    values[planted] += 5.0
    flags, _ = boundary_flags(values, gamma=4.0, window_tokens=50)
    assert np.flatnonzero(flags).tolist() == planted.tolist()
    shuffled, _ = boundary_flags(random.permutation(values), gamma=4.0, window_tokens=50)
    assert len(set(np.flatnonzero(shuffled)) & set(planted)) < len(planted) / 2


def test_an_infinite_surprise_is_a_boundary_and_does_not_spoil_the_statistics() -> None:
    values = np.array([1.0, 2.0, np.inf, 1.5, 9.0])
    flags, thresholds = boundary_flags(values, gamma=1.0, window_tokens=10)
    assert flags.tolist() == [False, False, True, False, True]
    assert np.isfinite(thresholds[2:]).all()


def test_there_is_no_threshold_before_two_values_are_known() -> None:
    flags, thresholds = boundary_flags(np.array([np.nan, 1.0, 9.0, 9.0]), gamma=0.0, window_tokens=3)
    assert np.isnan(thresholds).tolist() == [True, True, True, False]
    assert flags.tolist() == [False, False, False, True]
