"""The order in which samples are run, so that a text that several tasks ask about is read once.

LoCoMo asks five kinds of question about each conversation, a task each. Reading is nearly all that an
evaluation costs, so samples with the same text follow one another, whatever task they are of. This module
does not know what a sample is asked, nor who reads.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from emllm.evaluation.samples import Sample


class Place(NamedTuple):
    """Where a sample is to be found: its task's name, and its number in it."""

    task: str
    number: int


def text_digest(sample: Sample) -> str:
    """The same for samples that rows read alike."""
    return hashlib.sha256(f"{sample.before}\0{sample.text}".encode("utf-8", "replace")).hexdigest()


def sample_digest(sample: Sample, text: str) -> str:
    """Eight digits that change with the sample's name, its text, its questions or their references.

    Args:
        text: `text_digest` of the sample, so that a long text is gone through once.
    """
    asked = [(one.text, one.answers, one.query, one.answer_begins, one.facts) for one in sample.questions]
    whole = repr((sample.sample_id, text, asked, sample.facts))
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:8]


def reading_order(digests: Iterable[tuple[Place, str]]) -> Iterator[list[Place]]:
    """Groups of samples with one text, every sample once.

    Within a task samples keep their order, as they are made one after another. So a text that comes again
    after others, or in two tasks that have their texts in different orders, stands in several groups.

    Args:
        digests: the samples, ordered by number within each task, and the digests of their texts.
    """
    waiting: dict[str, deque[tuple[Place, str]]] = {}
    for place, digest in digests:
        waiting.setdefault(place.task, deque()).append((place, digest))
    while waiting:
        first = next(iter(waiting.values()))[0][1]
        alike = [task for task, line in waiting.items() if line[0][1] == first]
        group = []
        for task in alike:
            line = waiting[task]
            while line and line[0][1] == first:
                group.append(line.popleft()[0])
            if not line:
                del waiting[task]
        yield group
