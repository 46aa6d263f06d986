"""Memories to be tortured: drawn from a seed, driven from a tape, compared by hashes of every bit.

A case is read in steps. Whatever happens to the process or the disk in between, a memory that is opened again
must stand at the end of some step, and read on to the bits that an undisturbed run ends with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tests.support.driven_memory import Tape, attend, event_spans, geometry, memory_layers, random_tape
from torch import Tensor

from emllm.attention.geometry import ModelGeometry
from emllm.config import EVENT_KEYS, OBJECTIVES, SCORERS, MemoryConfig
from emllm.errors import StoreError
from emllm.memory import EpisodicMemory
from emllm.memory.stored import open_memory
from emllm.store.catalogue import DocumentRecord

CODECS = ("exact", "bf16", "int8", "int4")
#: Tokens of the tape that no step reads: a question at the end.
QUESTION_TOKENS = 8
IDENTITY = {"fingerprint": {"family": "torture"}}


@dataclass(frozen=True)
class Step:
    """A chunk ``[start, stop)``, and whether it is flushed before the next one is read."""

    start: int
    stop: int
    is_flushed: bool


@dataclass(frozen=True)
class Case:
    """A memory and how it is read.

    Attributes:
        documents: number of tokens of the document that begins at a token.
    """

    seed: int
    shape: ModelGeometry
    config: MemoryConfig
    tape: Tape
    steps: tuple[Step, ...]
    documents: dict[int, int]

    def __str__(self) -> str:
        kinds = ", ".join("full" if one.window_tokens is None else "window" for one in self.shape.layers)
        budgets = f"device {self.config.device_budget}, host {self.config.host_budget}"
        return f"seed {self.seed}: {self.config.codec}, {kinds}, {len(self.steps)} steps, {budgets}"

    def open(self, path: Path, *, read_only: bool = False) -> EpisodicMemory:
        """The memory in a folder, a new one where there is none."""
        return open_memory(path, self.shape, self.config, identity=IDENTITY, read_only=read_only)


@dataclass(frozen=True)
class Outcome:
    """Hashes of everything: outputs by the first token of their chunk, then what the memory holds."""

    outputs: dict[int, str]
    held: dict[str, str]

    def differences(self, other: Outcome) -> list[str]:
        """What differs among what both know."""
        both = self.outputs.keys() & other.outputs.keys()
        wrong = [f"outputs of token {i}" for i in sorted(both) if self.outputs[i] != other.outputs[i]]
        return wrong + [name for name in self.held if self.held[name] != other.held.get(name)]


def random_case(
    seed: int, *, num_tokens: int = 140, codec: str | None = None, recall_all: bool = False
) -> Case:
    """Layers, settings, chunks and documents, all of them from a seed."""
    draw = random.Random(seed)
    kinds = ["full", *(draw.choice(["full", "window", "bare"]) for _ in range(draw.randint(0, 3)))]
    draw.shuffle(kinds)
    num_kv_heads = draw.choice([1, 2])
    shape = geometry(
        kinds,
        num_heads=num_kv_heads * draw.choice([1, 2]),
        num_kv_heads=num_kv_heads,
        head_dim=draw.choice([4, 8]),
        value_dim=draw.choice([None, 6]),
        dtype=draw.choice([torch.float32, torch.bfloat16]),
    )
    config = MemoryConfig(
        segmenter=draw.choice(["surprise", "kl", "fixed", "random"]),
        refine=draw.choice(OBJECTIVES),
        refine_heads=draw.choice(["all", "each"]),
        scorer=draw.choice(SCORERS),
        event_key=draw.choice(EVENT_KEYS),
        index_precision=draw.choice(["int8", "exact"]),
        contiguity=draw.choice([0.0, 0.3]),
        representatives=draw.randint(1, 4),
        gamma=draw.choice([0.2, 1.0]),
        sink_tokens=draw.choice([0, 1, 4]),
        local_tokens=draw.choice([1, 9, 24]),
        recall_tokens="all" if recall_all else draw.choice([0, 24, 48, "all"]),
        chunk_tokens=16,
        min_event_tokens=3,
        max_event_tokens=8,
        surprise_window_tokens=20,
        recall_every_tokens=draw.choice([1, 4]),
        codec=codec or draw.choice(CODECS),
        device_budget=draw.choice([0, 1 << 20]),
        host_budget=draw.choice([0, 1, 1 << 20]),
    )
    steps = tuple(_random_steps(draw, num_tokens))
    tape = random_tape(shape, num_tokens + QUESTION_TOKENS, seed=seed)
    return Case(seed, shape, config, tape, steps, _random_documents(draw, steps))


def _random_steps(draw: random.Random, num_tokens: int) -> Iterator[Step]:
    """Chunks, a few longer than a page, and runs of single tokens of which some are flushed."""
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        kind = draw.random()
        if kind < 0.35:
            lengths += [1] * draw.randint(1, 9)
        else:
            lengths.append(draw.randint(2, 33) if kind < 0.9 else draw.randint(60, 90))
    start = 0
    for stop in accumulate(lengths):
        yield Step(start, min(stop, num_tokens), draw.random() < 0.4)
        if stop >= num_tokens:
            return
        start = stop


def _random_documents(draw: random.Random, steps: tuple[Step, ...]) -> dict[int, int]:
    documents = {}
    i = 0
    while i < len(steps):
        length = draw.randint(1, 5)
        if draw.random() < 0.5:
            last = steps[min(i + length, len(steps)) - 1]
            documents[steps[i].start] = last.stop - steps[i].start
        i += length
    return documents


def read_on(
    case: Case,
    memory: EpisodicMemory,
    *,
    done: Callable[[Step, str], None] = lambda step, output: None,
    refused: Callable[[Step, StoreError], None] | None = None,
) -> dict[int, str]:
    """Read from where the memory stands to the end.

    Args:
        done: told each step that is over, and the hash of its outputs.
        refused: told what a step could not make durable; without, the error is raised.

    Returns:
        Hashes of the outputs by the first token of their chunk.
    """
    outputs = {}
    for step in steps_left(case, memory):
        _begin_document(case, memory, step)
        token_ids = case.tape.token_ids[step.start : step.stop]
        memory.begin_chunk(token_ids)
        outputs[step.start] = digest(attend(memory, case.tape, step.start, step.stop))
        try:
            memory.commit(token_ids, case.tape.logits[step.start : step.stop])
            if step.is_flushed:
                memory.flush()
        except StoreError as error:
            if refused is None:
                raise
            refused(step, error)
        else:
            done(step, outputs[step.start])
    return outputs


def steps_left(case: Case, memory: EpisodicMemory) -> list[Step]:
    """The steps that a memory has not read yet; it must stand between two."""
    stands = memory.num_tokens
    assert stands in {0, *(step.stop for step in case.steps)}, f"the memory ends within a step, at {stands}"
    return [step for step in case.steps if step.start >= stands]


def _begin_document(case: Case, memory: EpisodicMemory, step: Step) -> None:
    if step.start in case.documents and all(one.start != step.start for one in memory.documents):
        num_tokens = case.documents[step.start]
        name = f"document {step.start}"
        memory.begin_document(
            DocumentRecord(name, step.start, step.start, num_tokens, "0" * 64, "text", num_tokens, 0.0)
        )


def held_by(case: Case, memory: EpisodicMemory) -> dict[str, str]:
    """Hashes of the log as it is gathered, of ids, surprise, events, their keys, and documents."""
    held = {}
    num = memory.num_tokens
    for idx, layer in enumerate(case.shape.layers):
        keys = torch.empty(num, layer.num_kv_heads, layer.head_dim, dtype=case.shape.dtype)
        values = torch.empty(num, layer.num_kv_heads, layer.value_dim, dtype=case.shape.dtype)
        memory._log.gather(idx, np.arange(num), keys=keys, values=values)
        held[f"keys of layer {idx}"], held[f"values of layer {idx}"] = digest([keys]), digest([values])
    for layer in memory_layers(memory):
        parts = [part.floats() for part in layer.ranking.index.parts()] if len(layer.ranking.index) else []
        held[f"event keys of layer {layer.layer_idx}"] = digest([torch.cat(parts, 1)] if parts else [])
    for layer_idx, habit in enumerate(habits_of(memory)):
        held[f"habit of layer {layer_idx}"] = digest([habit])
    held["token ids"] = digest([torch.from_numpy(memory.token_ids())])
    held["surprise"] = digest([torch.from_numpy(memory.surprise())])
    held["events"] = digest([torch.tensor(event_spans(memory))])
    records = [dataclasses.replace(one, read_seconds=0.0) for one in memory.documents]
    held["documents"] = hashlib.sha256(repr(records).encode()).hexdigest()
    return held


def habits_of(memory: EpisodicMemory) -> list[Tensor]:
    """What every event that can be recalled scores on average, by layer; it shows in traces only."""
    num_events = memory._events.num_recallable
    return [torch.from_numpy(layer._habit.mean(num_events)) for layer in memory_layers(memory)]


def digest(tensors: list[Tensor]) -> str:
    """One hash of the bytes of all."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            sha.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def ask(case: Case, memory: EpisodicMemory) -> Outcome:
    """All that a memory holds, and the outputs of a question; leaves it as it was."""
    held = held_by(case, memory)
    start, stop = memory.num_tokens, memory.num_tokens + QUESTION_TOKENS
    fork = memory.fork()
    fork.begin_chunk(case.tape.token_ids[start:stop])
    return Outcome({start: digest(attend(fork, case.tape, start, stop))}, held)


def undisturbed(case: Case) -> Outcome:
    """What a memory in RAM, of the same settings, ends with."""
    memory = EpisodicMemory(case.shape, case.config)
    outputs = read_on(case, memory)
    return Outcome(outputs, held_by(case, memory))
