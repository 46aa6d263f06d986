"""Every preset and variant, and the views of the special ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support.driven_memory import (
    Tape,
    event_spans,
    geometry,
    memory_layers,
    random_tape,
    read,
    staged_plan,
)
from tests.support.memory_cases import HYBRID, NUM_TOKENS, SMALL, assert_close, full_attention

from emllm.config import PRESETS, VARIANTS, MemoryConfig
from emllm.memory import EpisodicMemory


@pytest.mark.parametrize(
    ("preset", "variant"), [(preset, None) for preset in PRESETS] + [("em-llm", each) for each in VARIANTS]
)
def test_every_preset_and_variant_reads_and_decodes(preset, variant):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    given_ = dict(SMALL)
    if preset in ("streaming-llm", "full"):
        del given_["recall_tokens"]
    memory = EpisodicMemory(shape, MemoryConfig.preset(preset, variant=variant, **given_))
    outs = read(memory, tape, [16] * 8 + [1] * 22)
    assert all(torch.isfinite(out).all() for out in outs)
    assert memory.num_tokens == NUM_TOKENS and memory.num_events > 8
    if preset == "full":
        assert_close(outs, full_attention(shape, tape))


def test_sentences_are_events():
    pieces = [" Cat"] * 5 + [". "] + [" The"] * 6 + ["! "]
    shape = geometry(vocab_size=len(pieces))
    tape = random_tape(shape, 130)
    tape = dataclasses.replace(tape, token_ids=torch.arange(130) % 13)
    config = MemoryConfig(**SMALL | {"max_event_tokens": 16}, segmenter="sentence", refine="none")
    memory = EpisodicMemory(shape, config, piece_of=pieces.__getitem__)
    read(memory, tape, [16] * 8)
    assert {start % 13 for start, _ in event_spans(memory)[1:]} == {0, 6}


def test_streaming_recalls_nothing_and_sees_sinks_and_the_window():
    shape = geometry()
    tape = random_tape(shape, NUM_TOKENS)
    config = MemoryConfig.preset("streaming-llm", **{k: SMALL[k] for k in SMALL if k != "recall_tokens"})

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        expected = [*range(min(4, start)), *range(max(4, start - 24), start)]
        assert all(
            staged_plan(layer).token_idx.tolist() == expected or staged_plan(layer).num_chunk
            for layer in memory_layers(memory)
        )

    read(EpisodicMemory(shape, config), tape, [16] * 8 + [1] * 22, look=look)


def test_half_precision_memories_read_like_full_ones():
    """bfloat16 keys and values: same events from the same logits, outputs within rounding."""
    exact, rounded = geometry(HYBRID), geometry(HYBRID, dtype=torch.bfloat16)
    tape = random_tape(exact, NUM_TOKENS)
    half = Tape(
        tape.token_ids,
        *([[x.bfloat16() for x in xs] for xs in (tape.queries, tape.keys, tape.values)]),
        tape.logits,
    )
    config = MemoryConfig(**SMALL | {"recall_tokens": "all", "refine": "none"})
    outs = read(EpisodicMemory(rounded, config), half, [16] * 8 + [1] * 22)
    assert_close([out.float() for out in outs], full_attention(exact, tape), atol=6e-2)
