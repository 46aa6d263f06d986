"""The arithmetic of a plan: laws, then the tensors themselves as an oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.driven_memory import geometry, memory_layers, random_tape, read

from emllm.attention.geometry import LayerGeometry, ModelGeometry
from emllm.attention.rotary import NO_ROTATION
from emllm.config import MemoryConfig
from emllm.memory import placing
from emllm.memory.stored import open_memory
from emllm.models.outline import Outline
from emllm.needs import PROCESS_BYTES, Needs, Workload, page_bytes
from emllm.plan import CUDA_BYTES, FREE_SHARE, Machine, Plan, codecs, make_plan, most_tokens
from emllm.recall.index import EventIndex
from emllm.store.codecs import make_codec
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
    assert plan.sealed_tokens % plan.unit_tokens == 0 and plan.raw_tokens >= min(num_tokens, 512)
    assert plan.raw_tokens * plan.kv_bytes_per_token <= plan.tail_bytes
    assert plan.seconds == num_tokens / 500


@given(lengths, machines)
def test_a_plan_that_fits_stays_within_its_share_of_what_is_free(num_tokens: int, machine: Machine) -> None:
    plan = make_plan(needs(num_tokens), machine)
    if plan.fits:
        assert plan.ram_bytes <= machine.ram_bytes * FREE_SHARE
        assert plan.disk_bytes[plan.codec] <= machine.disk_bytes * FREE_SHARE
        assert plan.is_default_budget or plan.device_budget >= plan.least_budget
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
    need = needs(200_000, device_budget=TB, host_budget=TB)
    room = int(1.5 * need.least_budget) + need.computing_bytes
    ram, gpu = need.hosting_bytes + room, room + CUDA_BYTES
    machine = Machine(TB, TB, int(gpu / FREE_SHARE)) if has_gpu else Machine(int(ram / FREE_SHARE) + 1, TB)
    plan = make_plan(need, machine)
    assert plan.fits and not plan.is_default_budget
    assert need.least_budget <= plan.device_budget <= 1.5 * need.least_budget
    assert plan.host_budget == (need.pages_bytes("exact") if has_gpu else 0)


@example(Machine(4 * 10**9, TB), None)
@example(Machine(8 * 10**9, TB, 8 * 10**9), None)
@given(machines, st.sampled_from([None, 0, 3 << 20]))
def test_budgets_are_those_that_a_memory_takes_where_they_fit(machine: Machine, asked: int | None) -> None:
    need = needs(500_000, device_budget=asked)
    plan = make_plan(need, machine)
    weights, on_gpu = need.model.weight_bytes, machine.device_bytes is not None
    shape = LayerShape(3, 64, 64, torch.bfloat16, torch.device("cuda" if on_gpu else "cpu"))
    free_ram = max(machine.ram_bytes - PROCESS_BYTES - (0 if on_gpu else weights), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "free_ram_bytes", lambda: free_ram)
        patch.setattr(
            torch.cuda,
            "mem_get_info",
            lambda _: (max((machine.device_bytes or 0) - CUDA_BYTES - weights, 0), 0),
        )
        device, host = placing.budgets([shape], need.config)
    everything = need.sealed_tokens * need.kv_bytes_per_token
    taken = min(device, everything), min(host, need.pages_bytes(plan.codec))
    assert plan.is_default_budget == ((plan.device_budget, plan.host_budget) == taken)
    assert plan.device_budget <= taken[0] and plan.host_budget <= taken[1]
    if machine.ram_bytes >= 4 * 10**9 and (machine.device_bytes or TB) >= 4 * 10**9:
        assert plan.is_default_budget


def test_a_short_text_is_kept_raw_and_needs_no_budgets() -> None:
    plan = make_plan(needs(1000), VAST)
    assert (plan.sealed_tokens, plan.device_budget, plan.host_budget) == (0, 0, 0)
    assert plan.fits and len(set(plan.disk_bytes.values())) == 1


def test_known_figures_of_a_million_tokens() -> None:
    plan = make_plan(needs(1_000_000), VAST)
    assert (plan.kv_bytes_per_token, plan.unit_tokens, plan.num_events) == (23_040, 512, 55_556)
    assert plan.sealed_tokens == 1951 * 512
    assert plan.index_bytes == 55_556 * 30 * 3 * (4 * 64 + 4)
    assert 1.0 < plan.disk_bytes["exact"] / (1_000_000 * 23_040 + plan.index_bytes) < 1.01
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


@pytest.mark.parametrize("codec", ["exact", "int8"])
@pytest.mark.parametrize("num_tokens", [5000, 9000])
def test_files_and_catalogue_have_the_size_that_was_planned(
    tmp_path: Path, codec: str, num_tokens: int
) -> None:
    """A memory that was read and closed: only the mean length of its events is told to the plan."""
    shape = geometry(("full", "window", "full"), num_heads=2, head_dim=32, dtype=torch.bfloat16)
    config = MemoryConfig(codec=codec, chunk_tokens=100, local_tokens=128, recall_tokens=128)
    memory = open_memory(tmp_path / "m", shape, config, identity={"fingerprint": {}})
    tape = random_tape(shape, num_tokens)
    most_raw = 0
    for start in range(0, num_tokens, 100):
        read(memory, tape, [min(100, num_tokens - start)])
        most_raw = max(most_raw, memory.num_tokens - memory._log._slabs._slabs[0].start)
    work = Workload(num_tokens, num_tokens, 1.0, mean_event_tokens=num_tokens / memory.num_events)
    need = Needs(Outline(shape, 0, 0, 64, 64), memory.config, work)
    sealed = memory._log.sealed_stop
    recalls = sum(layer._habit._num_recalls for layer in memory_layers(memory))
    memory.close()
    files = {path: path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert need.disk_bytes(codec) == pytest.approx(sum(files.values()), rel=0.03)
    assert need.catalogue_bytes == pytest.approx(
        files[tmp_path / "m" / "catalogue.sqlite"], rel=0.25, abs=20_480
    )
    assert sum(path.suffix == ".safetensors" for path in files) == need.num_units + 1
    assert abs(need.sealed_tokens - sealed) <= 2 * need.unit_tokens
    assert recalls == pytest.approx(2 * (need.num_units - 4), abs=4)
    assert (most_raw + need.unit_tokens) * need.kv_bytes_per_token <= need.tail_bytes


@pytest.mark.parametrize(
    ("num_tokens", "device_budget", "measured"),
    [
        (21_306, 50_000_000, 1_206_329_344),
        (21_306, 350_000_000, 1_455_796_224),
        (1_039_004, 700_000_000, 3_650_000_000),
        (1_039_004, 700_000_000, 3_950_000_000),
    ],
)
def test_the_peaks_that_were_measured_are_within_a_sixth_of_the_plan(
    num_tokens: int, device_budget: int, measured: int
) -> None:
    """Peak resident memory of `emllm read` with the default model on a CPU, of one book and of four."""
    need = needs(num_tokens, device_budget=device_budget)
    need = replace(need, work=replace(need.work, longest_tokens=min(num_tokens, 766_985)))
    assert make_plan(need, VAST).ram_bytes == pytest.approx(measured, rel=0.15)


def test_short_documents_end_pages_and_units() -> None:
    need = needs(64_000)
    many = replace(need, work=replace(need.work, num_documents=1000))
    assert many.num_units == need.num_units + 999
    assert many.disk_bytes("exact") > need.disk_bytes("exact") + 999 * 64 * need.kv_bytes_per_token
