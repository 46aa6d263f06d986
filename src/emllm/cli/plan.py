"""``emllm plan``: what reading will need on disk, in RAM and of time, before anything is read.

This module does not know the formulae (`emllm.needs`) nor how budgets are chosen (`emllm.plan`).
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from emllm.cli import options
from emllm.cli.settings import with_settings
from emllm.cli.sources import load_documents, opened_lm
from emllm.cli.terminal import columns, duration, remark, say, say_json, working
from emllm.config import MemoryConfig
from emllm.errors import ConfigError, InputError, ModelError
from emllm.machine import free_ram_bytes

if TYPE_CHECKING:
    from emllm.config import ResolvedConfig
    from emllm.models.outline import Located, Outline
    from emllm.plan import Machine, Plan

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
MOST_TOKENS = 10**12


class Text(NamedTuple):
    """What is to be read, as far as it is known: the ids of its beginning are empty for a bare number."""

    num_tokens: int
    longest_tokens: int
    first_ids: list[int]
    names: list[str]


@with_settings
def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...|TOKENS", help="Files, folders, - for stdin; or 1_000_000, 200K, 10M."
        ),
    ],
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    into: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the memory will be: whose disk counts.")
    ] = Path(),
    mean_event_tokens: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Mean length of an event, where known.", show_default=False),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model and time a few chunks; else one layer is timed.")
    ] = False,
    json: options.Json = False,
    *,
    config: MemoryConfig,
) -> None:
    """Say what reading will need: disk by codec, RAM, GPU memory and time; and what suits this machine.

    A bare number is a number of tokens (./200K is a file). The exit code is 1 if it will not fit.
    """
    num_tokens = number_of_tokens(sources)
    if mean_event_tokens is not None and not 1 <= mean_event_tokens < MOST_TOKENS:
        raise ConfigError(f"mean-event-tokens must be a number >= 1, got {mean_event_tokens}")
    from emllm.plan import existing_folder

    disk = shutil.disk_usage(existing_folder(into)).free
    documents = load_documents(sources) if num_tokens is None else []
    with working("measuring"):
        from emllm.models.outline import Located

        located = Located(model)
        outline = located.outline(device=device, dtype=dtype)
        resolved = config.resolve(
            trained_tokens=outline.geometry.trained_tokens, num_layers=outline.geometry.num_layers
        )
        text = (
            tokenised(located, [d.text for d in documents], names=[d.name for d in documents])
            if num_tokens is None
            else Text(num_tokens, num_tokens, [], [])
        )
        machine = free_here(outline, disk)
        speed, mean = (
            measured(text, model, device=device, dtype=dtype, config=config) if measure else (None, None)
        )
        result = planned(outline, resolved, text, machine, speed, mean_event_tokens or mean)
    if json:
        say_json({**to_json(result, machine), "documents": text.names, "model": model, "measured": measure})
    else:
        say(shown(result, machine, outline, model=model, names=text.names, is_measured=measure), end="")
    if not result.fits:
        raise typer.Exit(1)


def number_of_tokens(sources: list[str]) -> int | None:
    """The number that stands for a text of so many tokens; None where the sources are files.

    Raises:
        InputError: it is zero or enormous, or stands beside others.
    """
    found = [
        match for source in sources if (match := re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([KMG]?)", source, re.I))
    ]
    if not found:
        return None
    if len(sources) > 1:
        raise InputError(f"a number of tokens stands alone, got {found[0][0]} and {len(sources) - 1} more")
    tokens = float(found[0][1].replace("_", "")) * _UNITS[found[0][2].upper()]
    if not 1 <= tokens <= MOST_TOKENS:
        raise InputError(f"the number of tokens must be from 1 to {MOST_TOKENS:,}, got {found[0][0]}")
    return round(tokens)


def tokenised(located: Located, texts: list[str], *, names: list[str]) -> Text:
    """The exact number of tokens, as a memory reads the documents one after another.

    Without a tokenizer it is estimated from the size of the texts, with a remark.
    """
    from emllm.models.chat import chat_format
    from emllm.reading import BYTES_PER_TOKEN

    try:
        tokenizer = located.tokenizer()
    except ModelError as error:
        remark(f"emllm: {error}; tokens are estimated from bytes")
        lengths = [max(round(len(text.encode()) / BYTES_PER_TOKEN), 1) for text in texts]
        return Text(sum(lengths), max(lengths), [], names)
    chat = chat_format(tokenizer)
    first_ids = chat.document(texts[0], is_first=True)
    lengths = [len(first_ids), *(len(chat.document(text, is_first=False)) for text in texts[1:])]
    return Text(sum(lengths) + len(chat.opening), max(lengths), first_ids, names)


def free_here(outline: Outline, disk_bytes: int) -> Machine:
    """What this machine has free for a model where the outline places it."""
    import torch

    from emllm.plan import Machine

    device = outline.geometry.layers[0].device
    free = int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
    return Machine(free_ram_bytes(), disk_bytes, free)


def measured(
    text: Text, model: str, *, device: str, dtype: str, config: MemoryConfig
) -> tuple[float, float | None]:
    """Speed of reading the first chunks with the model itself, and the mean length of their events."""
    from emllm.evaluation.probe import NUM_CHUNKS, read_speed

    with opened_lm(model, device=device, dtype=dtype) as lm:
        if text.first_ids:
            return read_speed(lm, text.first_ids, config)
        chunk = lm.memory(config=config).config.chunk_tokens
        any_ids = [
            (7919 * i) % lm.geometry.vocab_size for i in range(min(text.num_tokens, NUM_CHUNKS * chunk))
        ]
        return read_speed(lm, any_ids, config)[0], None


def planned(
    outline: Outline,
    config: ResolvedConfig,
    text: Text,
    machine: Machine,
    speed: float | None,
    mean_event_tokens: float | None,
) -> Plan:
    """The plan; without a measured speed it follows from one layer of the model's shapes."""
    from emllm.evaluation.probe import READING_SHARE, layer_flops
    from emllm.needs import MEAN_EVENT_TOKENS, Needs, Workload
    from emllm.plan import make_plan

    mean = mean_event_tokens or MEAN_EVENT_TOKENS
    work = Workload(
        text.num_tokens,
        text.longest_tokens,
        speed or 1.0,
        mean_event_tokens=mean,
        num_documents=max(len(text.names), 1),
    )
    needs = Needs(outline, config, work)
    if speed is None:
        flops = layer_flops(outline, chunk_tokens=config.chunk_tokens, attended_tokens=needs.attended_tokens)
        work = dataclasses.replace(work, tokens_per_second=READING_SHARE * flops / needs.flops_per_token)
        needs = dataclasses.replace(needs, work=work)
    return make_plan(needs, machine)


def to_json(plan: Plan, machine: Machine) -> dict[str, Any]:
    """The plan as JSON: the fields of `Plan`, whether it fits and what is free."""
    return {
        **dataclasses.asdict(plan),
        "fits": plan.fits,
        "verdict": plan.verdict,
        "free": dataclasses.asdict(machine),
    }


def shown(
    plan: Plan, machine: Machine, outline: Outline, *, model: str, names: list[str], is_measured: bool
) -> str:
    """The plan for a person: a small table, and the verdict."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Cell

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows(plan, machine, outline, model=model, names=names, is_measured=is_measured):
        table.add_row(*map(Cell, row))
    printed = io.StringIO()
    Console(file=printed, width=columns(), color_system=None).print(table)
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "\n".join([*lines, plan.verdict, ""])


def rows(
    plan: Plan, machine: Machine, outline: Outline, *, model: str, names: list[str], is_measured: bool
) -> list[tuple[str, str, str]]:
    """Name, figure and explanation of each line."""
    place = outline.geometry.layers[0].device
    dtype = str(outline.geometry.dtype).removeprefix("torch.")
    what = f"{len(names)} documents" if len(names) > 1 else names[0] if names else "a text of this length"
    per_codec = ", ".join(f"{name} {size(num)}" for name, num in plan.disk_bytes.items())
    how = "measured" if is_measured else "estimated from one layer"
    library = plan.process_bytes + plan.log_bytes
    parts = (
        f"chunk {size(plan.activation_bytes)}, raw tail {size(plan.tail_bytes)}, "
        f"index {size(plan.index_bytes)}, tokenising {size(plan.text_bytes)}, all else {size(library)}"
    )
    found = [
        ("text", f"{plan.num_tokens:,} tokens", f"{what}, about {plan.num_events:,} events"),
        (
            "model",
            size(plan.weight_bytes),
            f"{model}, {dtype} on {place}, {plan.kv_bytes_per_token:,} bytes a token",
        ),
        ("disk", size(plan.disk_bytes[plan.codec]), f"of {size(machine.disk_bytes)} free: {per_codec}"),
        ("index", size(plan.index_bytes), f"of this; {size(plan.catalogue_bytes)} catalogue"),
        (
            "RAM",
            size(plan.ram_bytes),
            f"of {size(machine.ram_bytes)} free, at the peak, budgets and model included",
        ),
        ("", "", parts),
    ]
    if plan.device_bytes is not None and machine.device_bytes is not None:
        found.append(("GPU memory", size(plan.device_bytes), f"of {size(machine.device_bytes)} free"))
    return [
        *found,
        ("time", duration(plan.seconds), f"at {plan.tokens_per_second:,.0f} tokens/s, {how}"),
        (
            "proposed",
            f"codec {plan.codec}",
            f"device_budget {size(plan.device_budget)}, host_budget {size(plan.host_budget)}"
            f" ({'as if not set' if plan.is_default_budget else 'to be set, as the defaults do not fit'})",
        ),
    ]


def size(num_bytes: int) -> str:
    """Bytes in a unit of which there are at least a few."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes} bytes"
