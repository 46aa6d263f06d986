from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emllm.attention.rotary import NO_ROTATION, RotaryTable, Rotation, rotate

CONVENTIONS = ("half", "pairs", "half_negated")
seeds = st.integers(0, 2**31)


def angles(num_positions: int, num_pairs: int) -> Tensor:
    frequencies = 100.0 ** (-torch.arange(num_pairs, dtype=torch.float64) / max(1, num_pairs))
    return torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies


@st.composite
def rotations(draw: st.DrawFn) -> tuple[Rotation, int]:
    """A rotation and a head dimension that it fits in."""
    num_pairs, before, after = draw(st.integers(1, 5)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    convention = draw(st.sampled_from(CONVENTIONS))
    return Rotation(convention, 2 * num_pairs, before, None), before + 2 * num_pairs + after


def literal(x: Tensor, angle: Tensor, rotation: Rotation) -> Tensor:
    """Complex multiplication, pair by pair, in float64."""
    half, first = rotation.rotary_dim // 2, rotation.first_dim
    sign = -1 if rotation.convention == "half_negated" else 1
    turned = x.double().clone()
    for pair in range(half):
        left, right = (2 * pair, 2 * pair + 1) if rotation.convention == "pairs" else (pair, half + pair)
        number = torch.complex(x[..., first + left].double(), x[..., first + right].double())
        number = number * torch.exp(1j * sign * angle[:, pair])
        turned[..., first + left], turned[..., first + right] = number.real, number.imag
    return turned


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(rotations(), seeds)
def test_a_rotation_keeps_the_norm(drawn_rotation: tuple[Rotation, int], seed: int) -> None:
    rotation, head_dim = drawn_rotation
    x, angle = drawn(seed, 2, 7, head_dim), angles(7, rotation.rotary_dim // 2)
    torch.testing.assert_close(rotate(x, angle.cos(), angle.sin(), rotation).norm(dim=-1), x.norm(dim=-1))


@given(rotations(), seeds, st.integers(0, 50))
def test_scores_depend_on_the_distance_of_positions_alone(
    drawn_rotation: tuple[Rotation, int], seed: int, shift: int
) -> None:
    rotation, head_dim = drawn_rotation
    query, key = drawn(seed, 1, 6, head_dim), drawn(seed + 1, 1, 6, head_dim)
    angle = angles(60, rotation.rotary_dim // 2)

    def scores(first: int) -> Tensor:
        cos, sin = angle[first : first + 6].cos(), angle[first : first + 6].sin()
        return rotate(query, cos, sin, rotation) @ rotate(key, cos, sin, rotation).mT

    torch.testing.assert_close(scores(shift), scores(0))


@given(rotations(), seeds)
def test_position_zero_turns_nothing(drawn_rotation: tuple[Rotation, int], seed: int) -> None:
    rotation, head_dim = drawn_rotation
    x, angle = drawn(seed, 3, 4, head_dim), angles(1, rotation.rotary_dim // 2)
    assert torch.equal(rotate(x, angle.cos(), angle.sin(), rotation), x)


@given(rotations(), seeds, st.integers(0, 20), st.integers(0, 20))
def test_two_rotations_are_one_by_the_sum_of_their_angles(
    drawn_rotation: tuple[Rotation, int], seed: int, first: int, second: int
) -> None:
    rotation, head_dim = drawn_rotation
    x, angle = drawn(seed, 2, 3, head_dim), angles(41, rotation.rotary_dim // 2)

    def turned(y: Tensor, position: int) -> Tensor:
        row = angle[position : position + 1]
        return rotate(y, row.cos(), row.sin(), rotation)

    torch.testing.assert_close(turned(turned(x, first), second), turned(x, first + second))


@given(rotations(), seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_it_is_complex_multiplication_with_one_rounding(
    drawn_rotation: tuple[Rotation, int], seed: int, dtype: torch.dtype
) -> None:
    rotation, head_dim = drawn_rotation
    x, angle = drawn(seed, 2, 9, head_dim, dtype=dtype), angles(9, rotation.rotary_dim // 2)
    found = rotate(x, angle.cos().float(), angle.sin().float(), rotation)
    expected = literal(x, angle, rotation)
    assert found.dtype == dtype
    one_rounding = 0.5 * torch.finfo(dtype).eps * expected.abs() + 0.5 * torch.finfo(dtype).smallest_normal
    inside = 4 * torch.finfo(torch.float32).eps * x.double().abs().amax()
    assert bool(((found.double() - expected).abs() <= one_rounding + inside).all())


@given(rotations(), seeds)
def test_features_outside_are_copied(drawn_rotation: tuple[Rotation, int], seed: int) -> None:
    rotation, head_dim = drawn_rotation
    x, angle = drawn(seed, 2, 5, head_dim), angles(5, rotation.rotary_dim // 2) + 1
    found = rotate(x, angle.cos(), angle.sin(), rotation)
    stop = rotation.first_dim + rotation.rotary_dim
    assert torch.equal(found[..., : rotation.first_dim], x[..., : rotation.first_dim])
    assert torch.equal(found[..., stop:], x[..., stop:])


@given(rotations(), seeds, st.sampled_from([torch.float32, torch.bfloat16]))
def test_strides_change_nothing(drawn_rotation: tuple[Rotation, int], seed: int, dtype: torch.dtype) -> None:
    rotation, head_dim = drawn_rotation
    token_major = drawn(seed, 8, 3, 2 * head_dim, dtype=dtype)
    x = token_major.permute(1, 0, 2)[:, 1:7, ::2]
    angle = angles(6, rotation.rotary_dim // 2)
    cos, sin = angle.cos().float(), angle.sin().float()
    expected = rotate(x.contiguous(), cos, sin, rotation)
    out = torch.full((6, 3, head_dim), 9.0, dtype=dtype).permute(1, 0, 2)
    assert torch.equal(rotate(x, cos, sin, rotation), expected)
    assert rotate(x, cos, sin, rotation, out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_row_of_angles_serves_every_token(convention: str) -> None:
    rotation, x, angle = Rotation(convention, 6, 1, None), drawn(1, 2, 5, 8), angles(4, 3)[3:]
    assert torch.equal(
        rotate(x, angle.cos(), angle.sin(), rotation),
        rotate(x, angle.cos().expand(5, -1), angle.sin().expand(5, -1), rotation),
    )


def test_no_rotation_returns_its_input_or_copies_it() -> None:
    x, angle = drawn(1, 2, 5, 8), angles(5, 4)
    assert rotate(x, angle.cos(), angle.sin(), NO_ROTATION) is x
    out = torch.empty_like(x)
    assert rotate(x, angle.cos(), angle.sin(), NO_ROTATION, out) is out
    assert torch.equal(out, x)


class Source:
    """Angles that tell which length was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, num_positions: int) -> tuple[Tensor, Tensor]:
        self.asked.append(num_positions)
        return angles(num_positions, 4).cos(), torch.full((num_positions, 4), float(num_positions))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_a_table_has_the_rows_asked_for_whatever_was_asked_before(lengths: list[int]) -> None:
    source = Source()
    table = RotaryTable(source)
    for length in lengths:
        cos, sin = table.cos_sin(length)
        assert cos.dtype == sin.dtype == torch.float32
        assert cos.shape == sin.shape == (length, 4)
        torch.testing.assert_close(cos, angles(length, 4).cos().float())
    assert len(source.asked) <= 5  # it at least doubles: 1024, 2048, 4096, 8192 or the lengths themselves


def by_regime(num_positions: int) -> range:
    """Alike up to 300; beyond, every length for itself."""
    return range(1, 301) if num_positions <= 300 else range(num_positions, num_positions + 1)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=30))
def test_a_table_that_goes_by_length_is_built_for_the_length_asked(lengths: list[int]) -> None:
    table = RotaryTable(Source(), lengths_alike=by_regime)
    for length in lengths:
        built_for = table.cos_sin(length)[1].unique().tolist()
        assert built_for == [float(max(300, length))]


def test_a_table_that_goes_by_length_keeps_few_tables() -> None:
    source = Source()
    table = RotaryTable(source, lengths_alike=by_regime)
    for length in (400, 401, 400, 401):
        table.cos_sin(length)
    assert source.asked == [400, 401]
    for length in range(400, 600):
        table.cos_sin(length)
    assert len(table._cached) <= 4


def test_threads_that_ask_at_once_get_what_they_asked_for() -> None:
    table, wrong = RotaryTable(Source(), lengths_alike=by_regime), []

    def ask(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for length in torch.randint(1, 600, (200,), generator=generator).tolist():
            cos, sin = table.cos_sin(length)
            if len(cos) != length or sin[0, 0] != max(300, length):
                wrong.append(length)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
