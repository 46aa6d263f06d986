"""The episodic memory: one log, three views of it, and the only writer."""

from emllm.memory.episodic import EpisodicMemory
from emllm.memory.events import Event

__all__ = ["EpisodicMemory", "Event"]
