"""The arithmetic of a plan: laws, then the tensors themselves as an oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emllm.attention.geometry import LayerGeometry, ModelGeometry
from emllm.attention.rotary import NO_ROTATION
from emllm.config import MemoryConfig
from emllm.models.outline import Outline
from emllm.needs import Needs, Workload, page_bytes
from emllm.plan import CUDA_BYTES, FREE_SHARE, Machine, Plan, codecs, make_plan, most_tokens
from emllm.recall.index import EventIndex
from emllm.store.catalogue import Catalogue, Change
from emllm.store.codecs import make_codec
from emllm.store.files import FileRecord, write_tensors
from emllm.store.log import LayerShape

VAST = Machine(1 << 60, 1 << 60)
TB = 10**12


def outline(
    *, num_layers: int = 30, num_kv_heads: int = 3, window_tokens: int | None = None, dtype=torch.bfloat16
) -> Outline:
    """Measures like those of a model of 135 million weights; its first layer may have a window."""
    layers = [
        LayerGeometry(9, num_kv_heads, 64, 64, NO_ROTATION, window_tokens if idx == 0 else None)
        for idx in range(num_layers)
    ]
    geometry = ModelGeometry(tuple(layers), 8192, 49_152, dtype)
    return Outline(geometry, 134_515_008, 134_515_008, 576, 1536)


def needs(
    num_tokens: int, *, model: Outline | None = None, speed: float = 500.0, **settings: object
) -> Needs:
    model = model or outline()
    config = MemoryConfig(**settings).resolve(trained_tokens=8192, num_layers=model.geometry.num_layers)
    return Needs(model, config, Workload(num_tokens, num_tokens, speed))


machines = st.builds(
    Machine,
    st.integers(10**9, TB),
    st.integers(10**9, TB),
    st.one_of(st.none(), st.integers(10**9, TB)),
)
lengths = st.integers(1, 30_000_000)


@given(lengths, machines)
def test_the_sums_of_a_plan_add_up(num_tokens: int, machine: Machine) -> None:
    plan = make_plan(needs(num_tokens), machine)
    hosted = plan.process_bytes + plan.text_bytes + plan.log_bytes + plan.host_budget
    computing = plan.weight_bytes + plan.activation_bytes + plan.tail_bytes + plan.index_bytes
    if machine.device_bytes is None:
        assert plan.device_bytes is None
        assert plan.ram_bytes == hosted + computing + plan.device_budget
    else:
        assert plan.device_bytes is not None and plan.device_bytes > computing + plan.device_budget
        assert plan.ram_bytes == max(hosted, plan.process_bytes + plan.weight_bytes)
    assert plan.sealed_tokens + plan.raw_tokens == num_tokens == plan.num_tokens
    assert plan.sealed_tokens % plan.segment_tokens == 0 and plan.raw_tokens >= min(num_tokens, 512)
    assert plan.raw_tokens * plan.kv_bytes_per_token <= plan.tail_bytes
    assert plan.seconds == num_tokens / 500


@given(lengths, machines)
def test_a_plan_that_fits_stays_within_its_share_of_what_is_free(num_tokens: int, machine: Machine) -> None:
    plan = make_plan(needs(num_tokens), machine)
    if plan.fits:
        assert plan.ram_bytes <= machine.ram_bytes * FREE_SHARE
        assert plan.disk_bytes[plan.codec] <= machine.disk_bytes * FREE_SHARE
        assert plan.device_budget >= plan.least_budget
        if plan.device_bytes is not None and machine.device_bytes is not None:
            assert plan.device_bytes <= machine.device_bytes * FREE_SHARE


@given(lengths, machines)
def test_a_plan_proposes_the_largest_codec_that_fits(num_tokens: int, machine: Machine) -> None:
    plan = make_plan(needs(num_tokens), machine)
    assert tuple(plan.disk_bytes) == codecs()
    room = machine.disk_bytes * FREE_SHARE
    fitting = [size for size in plan.disk_bytes.values() if size <= room]
    smallest = min(plan.disk_bytes.values())
    if fitting:
        assert plan.disk_bytes[plan.codec] == max(fitting)
        assert plan.codec != "bf16"  # which is `exact` in this model's dtype
    else:
        assert plan.disk_bytes[plan.codec] == smallest and any("disk" in line for line in plan.problems)


@given(lengths, machines, st.integers(1, 5_000_000))
def test_no_budget_exceeds_what_there_is_to_keep(num_tokens: int, machine: Machine, more: int) -> None:
    need = needs(num_tokens)
    plan = make_plan(need, machine)
    assert 0 <= plan.device_budget <= plan.sealed_tokens * plan.kv_bytes_per_token
    assert 0 <= plan.host_budget <= need.pages_bytes(plan.codec)
    longer = make_plan(needs(num_tokens + more), machine)
    for part in ("index_bytes", "catalogue_bytes", "tail_bytes", "log_bytes", "text_bytes", "seconds"):
        assert getattr(longer, part) >= getattr(plan, part)
    if not plan.fits:
        assert not longer.fits


@given(lengths, st.integers(1, 40), st.integers(1, 200))
def test_what_is_said_to_fit_fits_and_no_more_would(num_tokens: int, ram: int, disk: int) -> None:
    machine = Machine(ram * 10**9, disk * 10**9)
    plan = make_plan(needs(num_tokens), machine)
    if plan.fits:
        assert plan.fitting_tokens == num_tokens and plan.verdict == "this will fit"
        return
    assert plan.fitting_tokens < num_tokens and "\n" not in plan.verdict
    more = plan.fitting_tokens * 11 // 10 + 4096
    assert not make_plan(needs(more), machine).fits
    if plan.fitting_tokens:
        assert make_plan(needs(plan.fitting_tokens), machine).fits
        assert f"about {plan.fitting_tokens:,} tokens would fit" in plan.verdict


def test_small_machines_are_told_what_is_missing_in_one_line() -> None:
    small = make_plan(needs(1_000_000), Machine(10**9, 10**9, 10**9))
    assert len(small.problems) == 3 and "\n" not in small.verdict
    for said in ("the disk needs, with codec int4,", "the GPU needs", "RAM needs", "--device cpu"):
        assert said in small.verdict
    assert "no text would fit" in make_plan(needs(1_000_000), Machine(10**8, TB)).verdict


@pytest.mark.parametrize("has_gpu", [False, True])
def test_where_room_is_scarce_the_device_gets_what_a_chunk_needs(has_gpu: bool) -> None:
    need = needs(200_000)
    room = int(1.5 * need.least_budget) + need.computing_bytes
    ram, gpu = need.hosting_bytes + room, room + CUDA_BYTES
    machine = Machine(TB, TB, int(gpu / FREE_SHARE)) if has_gpu else Machine(int(ram / FREE_SHARE) + 1, TB)
    plan = make_plan(need, machine)
    assert plan.fits and need.least_budget <= plan.device_budget <= 1.5 * need.least_budget
    assert plan.host_budget == (
        need.pages_bytes("exact") if has_gpu else pytest.approx(plan.least_budget / 2, abs=9)
    )


def test_a_short_text_is_kept_raw_and_needs_no_budgets() -> None:
    plan = make_plan(needs(2500), VAST)
    assert (plan.sealed_tokens, plan.device_budget, plan.host_budget) == (0, 0, 0)
    assert plan.fits and len(set(plan.disk_bytes.values())) == 1


def test_known_figures_of_a_million_tokens() -> None:
    plan = make_plan(needs(1_000_000), VAST)
    assert (plan.kv_bytes_per_token, plan.segment_tokens, plan.num_events) == (23_040, 2048, 45_455)
    assert plan.sealed_tokens == 488 * 2048
    assert plan.index_bytes == 45_455 * 30 * 3 * (4 * 64 + 4)
    pages = 999_424 // 64 * 30 * 64 * 3 * 128 * 2
    assert 1.0 < plan.disk_bytes["exact"] / (pages + plan.index_bytes + plan.raw_tokens * 23_040) < 1.01
    assert plan.disk_bytes["exact"] == plan.disk_bytes["bf16"]
    assert plan.disk_bytes["int4"] < plan.disk_bytes["int8"] < plan.disk_bytes["exact"]


@pytest.mark.parametrize("precision", ["int8", "exact"])
def test_the_index_has_the_bytes_of_its_tensors(precision: str) -> None:
    model = outline(num_layers=4, window_tokens=64)
    need = needs(100_000, model=model, index_precision=precision)
    index = EventIndex(precision)
    index.append(torch.randn(3, need.num_events, 4, 64).bfloat16())
    stored = [tensor for part in index.parts() for tensor in (part.keys, part.scales) if tensor is not None]
    assert need.index_bytes == 3 * sum(tensor.nbytes for tensor in stored)


@pytest.mark.parametrize("codec", codecs())
def test_pages_have_the_bytes_of_their_codec(codec: str) -> None:
    model = outline(num_layers=2)
    shape = LayerShape(3, 64, 64, torch.bfloat16, torch.device("cpu"))
    keys = values = torch.randn(2, 64, 3, 64).bfloat16()
    encoded = make_codec(codec, shape, 64).encode(keys, values)
    assert page_bytes(model, codec, 64) == encoded[0].nbytes * 2


@pytest.mark.parametrize("recall", [0, "all"])
def test_what_ranks_nothing_has_no_index(recall: int | str) -> None:
    positions = {"positions": "paper"} if recall == "all" else {}
    assert needs(10_000, recall_tokens=recall, **positions).index_bytes == 0


def test_longer_windows_and_more_weights_take_more_operations() -> None:
    base = needs(100_000).flops_per_token
    assert base > 2 * 134_515_008
    assert needs(100_000, local_tokens=1024).flops_per_token > base
    assert needs(100_000, model=outline(window_tokens=64)).flops_per_token < base
    heavier = replace(outline(), active_params=2 * 134_515_008)
    assert needs(100_000, model=heavier).flops_per_token == base + 2 * 134_515_008


@given(st.integers(0, 1000), st.integers(1, 900))
def test_the_most_tokens_that_fit_are_found(limit: int, num_tokens: int) -> None:
    assert most_tokens(lambda n: n <= limit, num_tokens) == min(limit, num_tokens)


def test_a_plan_is_all_numbers() -> None:
    plan = make_plan(needs(10**6), VAST)
    assert isinstance(plan, Plan) and Plan.__doc__ is not None
    assert all(f"        {name}: " in Plan.__doc__ for name in Plan.__dataclass_fields__)


def test_files_and_catalogue_have_the_size_that_was_planned(tmp_path: Path) -> None:
    """A memory as the store lays it out, written out in full: two segments, and the raw rest by its size."""
    model = outline(num_layers=4, num_kv_heads=2)
    num_tokens = 2 * 16_384 + 1000
    need = needs(num_tokens, model=model, chunk_tokens=64)
    assert need.segment_tokens == 16_384 and need.sealed_tokens == 2 * 16_384
    edges = np.linspace(0, num_tokens, need.num_events + 1).astype(np.int64)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    records = [_segment(tmp_path, need, start, start + 16_384) for start in (0, 16_384)]
    with Catalogue.create(tmp_path / "catalogue.sqlite", {"codec": "int8"}) as catalogue:
        done = 0
        for stop in range(64, num_tokens + 64, 64):
            ready = int(np.searchsorted(spans[:, 1], stop, side="right"))
            files = records if stop + 64 > num_tokens else []
            catalogue.commit(
                Change(
                    num_tokens=min(stop, num_tokens),
                    new_files=files,
                    dropped_files=[],
                    first_new_event=done,
                    new_events=spans[done:ready],
                    documents=None,
                    state={},
                )
            )
            done = ready
    raw = need.work.num_tokens - need.sealed_tokens
    written = sum(record.num_bytes for record in records) + raw * (need.kv_bytes_per_token + 8)
    catalogue_bytes = (tmp_path / "catalogue.sqlite").stat().st_size
    assert need.disk_bytes("int8") == pytest.approx(written + catalogue_bytes, rel=0.01)
    assert need.catalogue_bytes == pytest.approx(catalogue_bytes, rel=0.2)


def _segment(folder: Path, need: Needs, start: int, stop: int) -> FileRecord:
    num_pages, num_events = (stop - start) // 64, round((stop - start) / need.work.mean_event_tokens)
    tensors = {
        "token_ids": torch.zeros(stop - start, dtype=torch.int32),
        "surprise": torch.zeros(stop - start),
    }
    for idx, layer in enumerate(need.model.geometry.layers):
        num_heads = layer.num_kv_heads
        shape = LayerShape(num_heads, layer.head_dim, layer.value_dim, torch.bfloat16, layer.device)
        keys = torch.randn(num_pages, 64, num_heads, 64).bfloat16()
        tensors[f"pages.{idx}"] = make_codec("int8", shape, 64).encode(keys, keys)
        tensors[f"event_keys.{idx}"] = torch.zeros(num_events, num_heads, 4, 64, dtype=torch.int8)
        tensors[f"event_scales.{idx}"] = torch.zeros(num_events, num_heads)
    (folder / "segments").mkdir(exist_ok=True)
    name = f"segments/{start}.safetensors"
    return write_tensors(folder, name, tensors, kind="segment", start=start, stop=stop, num_events=num_events)
