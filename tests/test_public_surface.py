"""The names that users import, frozen: a change here is a change for everybody."""

import dataclasses
import subprocess
import sys

import emllm
from emllm import EpisodicLM, EpisodicMemory, MemoryConfig
from emllm.cli import evaluate as eval_group
from emllm.cli import memory as memory_group
from emllm.cli.app import COMMANDS, GROUPS

SETTINGS = [
    "segmenter",
    "gamma",
    "surprise_window_tokens",
    "refine",
    "refine_from_layer",
    "refine_heads",
    "contiguity",
    "min_event_tokens",
    "max_event_tokens",
    "sink_tokens",
    "local_tokens",
    "recall_tokens",
    "chunk_tokens",
    "recall_every_tokens",
    "scorer",
    "event_key",
    "representatives",
    "shortlist_events",
    "index_precision",
    "positions",
    "recollect",
    "recollect_tokens",
    "recollect_every_tokens",
    "rerank_events",
    "codec",
    "device_budget",
    "host_budget",
]


def public(cls):
    ours = [vars(base) for base in cls.__mro__ if base.__module__.startswith("emllm")]
    return sorted({name for names in ours for name in names if not name.startswith("_")})


def test_the_package_offers_these_names_and_no_others():
    assert sorted(emllm.__all__) == [
        "Answer",
        "Document",
        "EmllmError",
        "EpisodicLM",
        "EpisodicMemory",
        "Event",
        "Evidence",
        "MemoryConfig",
        "Sampling",
        "Stats",
    ]
    for name in emllm.__all__:
        assert getattr(emllm, name).__name__ == name


def test_a_language_model_offers_these_methods():
    assert public(EpisodicLM) == [
        "answer",
        "ask",
        "asking",
        "cache",
        "chat_format",
        "close",
        "evidence",
        "fingerprint",
        "from_pretrained",
        "geometry",
        "memory",
        "prepare",
        "reread",
        "stream",
    ]


def test_a_memory_offers_these_methods():
    assert public(EpisodicMemory) == [
        "abandon",
        "attend",
        "become",
        "begin_chunk",
        "begin_document",
        "check_whole",
        "close",
        "closing_boundaries",
        "commit",
        "document_being_read",
        "drop_document_without_tokens",
        "end_trace",
        "event",
        "events",
        "flush",
        "forget",
        "fork",
        "is_selective",
        "kept_ids",
        "num_events",
        "num_representatives",
        "num_tokens",
        "observe_recall",
        "place",
        "read",
        "recallable_spans",
        "rest",
        "surprise",
        "texts_from",
        "token_ids",
        "trace_recall",
        "units_that_left",
        "verify",
    ]


def test_the_settings_are_these():
    assert [field.name for field in dataclasses.fields(MemoryConfig)] == SETTINGS


def test_the_commands_are_these():
    assert COMMANDS == ("ask", "read", "chat", "segment", "plan", "bench", "doctor")
    assert sorted(GROUPS) == ["eval", "memory"]
    commands = {
        group: [command.__name__.rstrip("_") for command in module.COMMANDS]
        for group, module in (("memory", memory_group), ("eval", eval_group))
    }
    assert commands == {
        "memory": ["list", "show", "verify", "forget", "copy", "compact"],
        "eval": ["run", "merge", "report", "recall", "list"],
    }


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, emllm; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
