"""The retrieval baseline: the passages of a sample's text that are most like a question.

What a model with a short window and a search engine would read, within the same budget of tokens that a
memory recalls. The passages of a sample are cut and embedded once, for all its questions. This room does not
know tasks, prompts or answers.
"""

from __future__ import annotations

from emllm.evaluation.rag.search import PASSAGE_SETTINGS, Passages, PassageSearch, passages_for

__all__ = ["PASSAGE_SETTINGS", "PassageSearch", "Passages", "passages_for"]
