"""What reading will need, said before it begins, and the budgets and codec that suit this machine.

The figures are those of `emllm.needs`, beside what is free. This module does not know how anything is stored
or computed, nor how a plan is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from emllm.errors import InputError
from emllm.needs import PROCESS_BYTES, Needs

#: What CUDA and its libraries take on a GPU.
CUDA_BYTES = 600_000_000
#: Share of what is free that a plan spends.
FREE_SHARE = 0.9


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists already.

    Raises:
        InputError: something else is in the way.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path}: {folder.name} is no folder")
    return folder


@dataclass(frozen=True)
class Machine:
    """What is free: RAM, disk, and memory of the GPU that computes (None on a CPU), in bytes."""

    ram_bytes: int
    disk_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """The forecast. Bytes unless said otherwise.

    Attributes:
        num_tokens: N, the tokens to read.
        num_events: ``N / mean_event_tokens``.
        kv_bytes_per_token: keys and values of a token, all layers, in the model's dtype.
        unit_tokens: of a unit, which is one file: ``chunk_tokens``.
        sealed_tokens: tokens that the codec has encoded at the end: what was read before the last chunk, less
            ``local_tokens + mean_event_tokens`` (or the widest sliding window), rounded down to whole units.
        raw_tokens: ``N - sealed_tokens``.
        disk_bytes: for each codec: ``unit_tokens / page_tokens`` pages, rounded up, of each unit and layer,
            encoded up to `sealed_tokens` and then exact; index, catalogue, 8 bytes of id and surprise for
            each token, a header for each unit, the state (logits of one token, and in each layer the mean
            key that the index took off), and, for each chunk after the first ``sink + local + recall``
            tokens and each full-attention layer, ``24 + 12 * recall_tokens / mean_event_tokens`` of
            what was recalled.
        index_bytes: events times, over the full-attention layers, ``num_kv_heads * (representatives *
            head_dim + 4)``: int8 keys and one scale; the dtype's size and no scale for exact keys.
        catalogue_bytes: spans of events, two rows for each unit, a checksum for each page.
        weight_bytes: ``num_params * itemsize``.
        process_bytes: Python and its libraries, and what these and the allocator hold on to.
        activation_bytes: logits of a chunk ``chunk * vocab``, twice 16 float32 rows of them, activations of
            one layer ``chunk * (4 hidden + 3 inner)``, and ``2 * 9/8`` contexts of three views and a chunk.
        tail_bytes: raw tokens at most: ``local + recall + 2 chunk`` and a slab of 1024, or all; and the unit
            that is being written.
        text_bytes: the longest document while it is tokenised.
        log_bytes: ids and surprise of all tokens, spans of all events, and their habits in each full layer.
        least_budget: decoded pages that one chunk may ask for: the recalled events' pages of all layers.
        device_budget: of decoded pages where the layers compute, and no more than there are: what was set,
            or by default a quarter of what is free, at most 1 GiB on a CPU and 8 GiB on a GPU; smaller, where
            that does not fit, but not than `least_budget`.
        host_budget: of encoded pages in RAM, likewise: by default none on a CPU, and with a GPU a quarter of
            the free RAM, at most 16 GiB.
        is_default_budget: whether these budgets are used anyway; else they are smaller and must be set.
        codec: proposed: the largest one that fits on the disk, as it loses least; the smallest if none does.
        ram_bytes: at the peak. On a CPU the sum of all from `weight_bytes` to `log_bytes`, index and both
            budgets; with a GPU what is not there, and the weights on their way to it, if that is more.
        device_bytes: with a GPU: weights, activations, tail, index, `device_budget` and CUDA itself.
        tokens_per_second: as given.
        seconds: ``N / tokens_per_second``.
        fitting_tokens: tokens of such a text, up to N, that would fit with this codec.
        problems: a line for each resource of which there is too little; empty if all fits.
    """

    num_tokens: int
    num_events: int
    kv_bytes_per_token: int
    unit_tokens: int
    sealed_tokens: int
    raw_tokens: int
    disk_bytes: Mapping[str, int]
    index_bytes: int
    catalogue_bytes: int
    weight_bytes: int
    process_bytes: int
    activation_bytes: int
    tail_bytes: int
    text_bytes: int
    log_bytes: int
    least_budget: int
    device_budget: int
    host_budget: int
    is_default_budget: bool
    codec: str
    ram_bytes: int
    device_bytes: int | None
    tokens_per_second: float
    seconds: float
    fitting_tokens: int
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether this machine has room for it."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line: that all fits, or what does not and what would."""
        if self.fits:
            return "this will fit"
        would = (
            f"about {self.fitting_tokens:,} tokens would fit" if self.fitting_tokens else "no text would fit"
        )
        return f"will not fit: {'; '.join(self.problems)}; {would}"


def make_plan(needs: Needs, machine: Machine) -> Plan:
    """The forecast for one text, and what to set so that it fits."""
    disk = {codec: needs.disk_bytes(codec) for codec in codecs()}
    room = int(machine.disk_bytes * FREE_SHARE)
    largest_first = sorted(disk, key=lambda name: -disk[name])  # more bytes lose less
    codec = next((name for name in largest_first if disk[name] <= room), largest_first[-1])
    device_budget, host_budget = budgets(needs, machine, codec=codec)
    spent = device_budget + host_budget
    has_gpu = machine.device_bytes is not None
    ram = _ram_bytes(needs, host_budget if has_gpu else spent, has_gpu=has_gpu)
    seconds = needs.work.num_tokens / needs.work.tokens_per_second
    return Plan(
        num_tokens=needs.work.num_tokens,
        num_events=needs.num_events,
        kv_bytes_per_token=needs.kv_bytes_per_token,
        unit_tokens=needs.unit_tokens,
        sealed_tokens=needs.sealed_tokens,
        raw_tokens=needs.work.num_tokens - needs.sealed_tokens,
        disk_bytes=disk,
        index_bytes=needs.index_bytes,
        catalogue_bytes=needs.catalogue_bytes,
        weight_bytes=needs.model.weight_bytes,
        process_bytes=needs.process_bytes,
        activation_bytes=needs.activation_bytes,
        tail_bytes=needs.tail_bytes,
        text_bytes=needs.text_bytes,
        log_bytes=needs.log_bytes,
        least_budget=needs.least_budget,
        device_budget=device_budget,
        host_budget=host_budget,
        is_default_budget=(device_budget, host_budget) == wanted_budgets(needs, machine, codec=codec),
        codec=codec,
        ram_bytes=ram,
        device_bytes=needs.computing_bytes + CUDA_BYTES + device_budget if has_gpu else None,
        tokens_per_second=needs.work.tokens_per_second,
        seconds=seconds,
        fitting_tokens=fitting_tokens(needs, machine, codec=codec),
        problems=problems(needs, machine, codec=codec),
    )


def codecs() -> tuple[str, ...]:
    """Names of the codecs."""
    from emllm.store.codecs import CODECS

    return tuple(CODECS)


def wanted_budgets(needs: Needs, machine: Machine, *, codec: str) -> tuple[int, int]:
    """What a memory will take for decoded pages where the layers compute, and for encoded pages in RAM.

    What was set, or what `emllm.memory.placing` takes of what is free once the model is there; in either
    case no more than there is to keep.
    """
    from emllm.memory.placing import chosen

    on_gpu = machine.device_bytes is not None
    weights, ram = needs.model.weight_bytes, machine.ram_bytes - PROCESS_BYTES
    free = ram - weights if machine.device_bytes is None else machine.device_bytes - CUDA_BYTES - weights
    device, host = chosen(needs.config, on_gpu=on_gpu, device_free=free, ram_free=ram)
    everything = needs.sealed_tokens * needs.kv_bytes_per_token
    return min(device, everything), min(host, needs.pages_bytes(codec))


def budgets(needs: Needs, machine: Machine, *, codec: str) -> tuple[int, int]:
    """The wanted budgets, or smaller ones where those do not fit: a chunk's pages come first."""
    device, host = wanted_budgets(needs, machine, codec=codec)
    hosting = needs.hosting_bytes
    if machine.device_bytes is None:
        hosting += needs.computing_bytes
        room = int(machine.ram_bytes * FREE_SHARE) - hosting
    else:
        room = int(machine.device_bytes * FREE_SHARE) - CUDA_BYTES - needs.computing_bytes
    device = min(device, max(room, needs.least_budget))
    rest = int(machine.ram_bytes * FREE_SHARE) - hosting
    rest -= device if machine.device_bytes is None else 0
    return device, max(min(host, rest), 0)


def _least_budget(needs: Needs, machine: Machine, *, codec: str) -> int:
    """Decoded pages that there must be room for: a chunk's, or what the memory takes, if that is less."""
    return min(needs.least_budget, wanted_budgets(needs, machine, codec=codec)[0])


def problems(needs: Needs, machine: Machine, *, codec: str) -> tuple[str, ...]:
    """A line for each resource of which there is too little, naming need, room and a way out."""
    dtype = ", --dtype bfloat16" if needs.model.geometry.dtype.itemsize > 2 else ""
    smaller = f"a smaller model{dtype} or a smaller --chunk-tokens needs less"
    has_gpu = machine.device_bytes is not None
    least_budget = _least_budget(needs, machine, codec=codec)
    least_ram = _ram_bytes(needs, 0 if has_gpu else least_budget, has_gpu=has_gpu)
    checked = [
        (
            f"the disk needs, with codec {codec},",
            needs.disk_bytes(codec),
            machine.disk_bytes,
            "--into names another",
        ),
        ("RAM needs at least", least_ram, machine.ram_bytes, smaller),
    ]
    if machine.device_bytes is not None:
        least = needs.computing_bytes + CUDA_BYTES + least_budget
        checked.append(
            ("the GPU needs at least", least, machine.device_bytes, f"{smaller}, --device cpu none")
        )
    return tuple(
        f"{what} {_gigabytes(need)}, more than {FREE_SHARE:.0%} of the {_gigabytes(free)} free ({way_out})"
        for what, need, free, way_out in checked
        if need > int(free * FREE_SHARE)
    )


def fitting_tokens(needs: Needs, machine: Machine, *, codec: str) -> int:
    """The largest number of tokens of such a text, up to its own, that fits."""

    def fits(num_tokens: int) -> bool:
        longest = min(needs.work.longest_tokens, num_tokens)
        work = replace(needs.work, num_tokens=num_tokens, longest_tokens=longest)
        return not problems(replace(needs, work=work), machine, codec=codec)

    if fits(needs.work.num_tokens):
        return needs.work.num_tokens
    return most_tokens(fits, needs.work.num_tokens)


def _ram_bytes(needs: Needs, budget: int, *, has_gpu: bool) -> int:
    """At the peak; on their way to a GPU, the weights lie in RAM before there is a text."""
    if has_gpu:
        return max(needs.hosting_bytes + budget, needs.process_bytes + needs.model.weight_bytes)
    return needs.hosting_bytes + needs.computing_bytes + budget


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def most_tokens(fits: Callable[[int], bool], num_tokens: int) -> int:
    """The largest number of tokens up to `num_tokens` that fits, if less always fits better."""
    low, high = 0, num_tokens + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
