"""A text, settings and an answer's length for the tiny model that writes stories (the fixture `lm`)."""

from __future__ import annotations

from emllm import MemoryConfig, Sampling

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her red ball. "
    "One day, she met a big dog. The dog was sad because it had lost its bone. Lily said she would help. "
) * 12
#: So small that most of the story has left the local window and cannot all be recalled.
SMALL = MemoryConfig(
    sink_tokens=4,
    local_tokens=48,
    recall_tokens=64,
    max_event_tokens=32,
    chunk_tokens=32,
    surprise_window_tokens=64,
)
SHORT = Sampling(max_new_tokens=12)
