"""What reading will need, said before it begins, and the budgets and codec that suit this machine.

The figures are those of `emllm.needs`, beside what is free. This module does not know how anything is stored
or computed, nor how a plan is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from emllm.needs import PROCESS_BYTES, Needs

#: What CUDA and its libraries take on a GPU.
CUDA_BYTES = 600_000_000
#: Share of what is free that a plan spends.
FREE_SHARE = 0.9


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
        segment_tokens: see `emllm.store.sizes.segment_tokens`.
        sealed_tokens: tokens in encoded segments at the end: ``N - local_tokens - mean_event_tokens``,
            rounded down to whole segments.
        raw_tokens: ``N - sealed_tokens``.
        disk_bytes: for each codec: ``sealed_tokens / page_tokens`` pages of each layer, index, catalogue,
            ``raw_tokens * kv_bytes_per_token``, id and surprise of each token, headers of the segments.
        index_bytes: events times, over the full-attention layers, ``num_kv_heads * (representatives *
            head_dim + 4)``: int8 keys and one scale; the dtype's size and no scale for exact keys.
        catalogue_bytes: spans of events, a row for each chunk, a checksum for each page.
        weight_bytes: ``num_params * itemsize``.
        process_bytes: Python and its libraries.
        activation_bytes: logits of a chunk ``chunk * vocab``, twice 16 float32 rows of them, activations of
            one layer ``chunk * (4 hidden + 3 inner)``, and ``2 * 9/8`` contexts of three views and a chunk.
        tail_bytes: raw tokens at most: ``segment + local + recall + chunk`` tokens, or all.
        text_bytes: the longest document while it is tokenised.
        log_bytes: ids and surprise of all tokens, spans of all events.
        least_budget: decoded pages that one chunk may ask for: the recalled events' pages of all layers.
        device_budget: proposed for decoded pages where the layers compute.
        host_budget: proposed for encoded pages in RAM.
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
    segment_tokens: int
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
        segment_tokens=needs.segment_tokens,
        sealed_tokens=needs.sealed_tokens,
        raw_tokens=needs.work.num_tokens - needs.sealed_tokens,
        disk_bytes=disk,
        index_bytes=needs.index_bytes,
        catalogue_bytes=needs.catalogue_bytes,
        weight_bytes=needs.model.weight_bytes,
        process_bytes=PROCESS_BYTES,
        activation_bytes=needs.activation_bytes,
        tail_bytes=needs.tail_bytes,
        text_bytes=needs.text_bytes,
        log_bytes=needs.log_bytes,
        least_budget=needs.least_budget,
        device_budget=device_budget,
        host_budget=host_budget,
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


def budgets(needs: Needs, machine: Machine, *, codec: str) -> tuple[int, int]:
    """Bytes for decoded pages where the layers compute, and for encoded pages in RAM.

    All pages decoded, if there is room; else on a GPU all its room, and on a CPU a quarter of the room, as
    the host's encoded pages come out of the same RAM and hold more tokens by the byte. Never less than a
    chunk needs, and nothing on the host that the device holds already.
    """
    everything = needs.sealed_tokens * needs.kv_bytes_per_token
    if machine.device_bytes is None:
        room = int(machine.ram_bytes * FREE_SHARE) - needs.hosting_bytes - needs.computing_bytes
        share = room // 4
        rest = room
    else:
        room = share = int(machine.device_bytes * FREE_SHARE) - CUDA_BYTES - needs.computing_bytes
        rest = int(machine.ram_bytes * FREE_SHARE) - needs.hosting_bytes
    if everything <= room:
        return everything, 0
    device = min(max(share, needs.least_budget), everything)
    rest -= device if machine.device_bytes is None else 0
    return device, max(min(needs.pages_bytes(codec), rest), 0)


def problems(needs: Needs, machine: Machine, *, codec: str) -> tuple[str, ...]:
    """A line for each resource of which there is too little, naming need, room and a way out."""
    dtype = ", --dtype bfloat16" if needs.model.geometry.dtype.itemsize > 2 else ""
    smaller = f"a smaller model{dtype} or a smaller --chunk-tokens needs less"
    has_gpu = machine.device_bytes is not None
    least_ram = _ram_bytes(needs, 0 if has_gpu else needs.least_budget, has_gpu=has_gpu)
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
        least = needs.computing_bytes + CUDA_BYTES + needs.least_budget
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
        return max(needs.hosting_bytes + budget, PROCESS_BYTES + needs.model.weight_bytes)
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
