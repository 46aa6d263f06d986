"""Episodic memory for any rotary-position causal language model of Hugging Face.

    from emllm import EpisodicLM

    lm = EpisodicLM.from_pretrained("default")
    memory = lm.memory()
    memory.read(Path("book.txt"))
    print(lm.ask(memory, "Who shot Dolokhov?").text)

The names are loaded when they are first used, so that importing the package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emllm.answers import Answer, Evidence, Stats
    from emllm.config import MemoryConfig
    from emllm.documents.document import Document
    from emllm.errors import EmllmError
    from emllm.generation import Sampling
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory, Event

__version__ = "0.1.0"

_HOME = {
    "Answer": "emllm.answers",
    "Document": "emllm.documents.document",
    "EmllmError": "emllm.errors",
    "EpisodicLM": "emllm.lm",
    "EpisodicMemory": "emllm.memory",
    "Event": "emllm.memory",
    "Evidence": "emllm.answers",
    "MemoryConfig": "emllm.config",
    "Sampling": "emllm.generation",
    "Stats": "emllm.answers",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'emllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
