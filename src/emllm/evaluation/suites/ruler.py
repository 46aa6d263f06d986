"""RULER's thirteen tasks, made to any length (Hsieh et al., *RULER*, 2024; github NVIDIA/RULER).

``source.kind`` of a task's file says what is made: `niah` (magic numbers in a haystack), `vt` (chains of
variables), `cwe` and `fwe` (frequent words), `qa` (documents) or `official` (prompts made by RULER itself).
Templates, parameters and lengths are RULER's: a length includes the answer. What all kinds have otherwise
than RULER:

- A sample depends on seed, task, length and index alone, not on the samples before it.
- Its length is sought for each sample and is within 2 % (one unit at least: a line, a document) of what is
  wanted.
- Names in one text never repeat, so that the answer is never ambiguous; they come from a word list of our
  own.
- Essays are books of the data folder, or Python's help (`filler`).

This module does not know how samples are made; one module a kind does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from emllm.errors import ConfigError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.suites.ruler_chains import chain_samples
from emllm.evaluation.suites.ruler_counts import coded_word_samples, common_word_samples
from emllm.evaluation.suites.ruler_needles import needle_samples, official_samples
from emllm.evaluation.suites.ruler_qa import qa_samples
from emllm.evaluation.task import Task

KINDS: dict[str, Callable[[Task, SampleNeeds], Iterator[Sample]]] = {
    "niah": needle_samples,
    "vt": chain_samples,
    "cwe": common_word_samples,
    "fwe": coded_word_samples,
    "qa": qa_samples,
    "official": official_samples,
}


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Samples of a RULER task, `num_wanted` of each length.

    Raises:
        ConfigError: no such kind, or a length that the task cannot be made to.
        SourceError: documents or books are missing.
    """
    kind = task.source.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"task {task.name}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    yield from KINDS[kind](task, needs)
