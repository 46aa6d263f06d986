"""Samples that are made: to a wanted length, from a seed, with facts planted at a depth.

A suite describes one sample as a `Recipe`, a function from a number of units (sentences, words, documents) to
a sample; how many units make the wanted length is found here. This module does not know what is made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil
from random import Random
from typing import Any

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

#: Of a suite that names none and a run that names none, in tokens.
LENGTHS = (4096, 8192, 16384, 32768, 65536)

#: Longer texts are not counted whole: their tokens are extrapolated from windows that are spread evenly.
EXACT_CHARS = 1_000_000
_WINDOWS, _WINDOW_CHARS = 128, 4096

#: A sample is long enough from this share of the wanted length on; the search aims a little higher.
_ENOUGH, _AIM = 0.98, 0.99
#: Below this share a recipe that has no more units is refused.
_SHORT = 0.95
#: The search never grows faster than this, so that a poor first guess costs little.
_GROWTH = 32


@dataclass(frozen=True)
class Recipe:
    """How one sample is made to any length.

    Attributes:
        make: the sample of so many units; the same units always give the same sample, more give a longer one.
        least: units of the shortest sample that makes sense.
        most: units that there are; None: without end.
    """

    make: Callable[[int], Sample]
    least: int = 1
    most: int | None = None


def made_samples(
    task: Task, needs: SampleNeeds, recipe_of: Callable[[int, int], Recipe], *, available: int | None = None
) -> Iterator[Sample]:
    """Samples of every wanted length, `num_wanted` of each, or as many as are `available`.

    The length includes the answer, as RULER counts it: the prompt has at most length - `answer_tokens`
    tokens. What a chat template adds is not counted.

    Args:
        task: whose samples they are.
        needs: lengths, number of samples and tokenizer of the run.
        recipe_of: recipe of the sample with this length and index.
        available: how many different samples there are at most.
    """
    num_samples = needs.num_wanted if available is None else min(available, needs.num_wanted)
    for length in needs.lengths or tuple(task.source.get("lengths", LENGTHS)):
        for index in range(num_samples):
            recipe = recipe_of(length, index)
            yield fitted(recipe, needs.count_tokens, tokens=length - task.answer_tokens)


def fitted(recipe: Recipe, count_tokens: Callable[[str], int], *, tokens: int) -> Sample:
    """The sample of at most so many tokens: as long as its units allow, or within 2 % of it.

    A search along the straight line through the shortest sample and the latest one, between bounds that
    close; every fourth step halves them instead.

    Raises:
        ConfigError: the shortest sample is longer, or all units together are more than 5 % shorter.
    """
    best = recipe.make(recipe.least)
    least_tokens = low_tokens = prompt_tokens(best, count_tokens)
    if least_tokens > tokens:
        raise ConfigError(
            f"{best.sample_id}: the shortest prompt has {least_tokens} tokens, "
            f"{least_tokens - tokens} more than this length leaves beside the answer"
        )
    low, high = recipe.least, None if recipe.most is None else recipe.most + 1
    units, step = low + 16, 0
    while (high is None or high - low > 1) and low_tokens < _ENOUGH * tokens:
        if high is not None:
            units = (low + high) // 2 if step % 4 == 3 else min(units, high - 1)
        units = max(units, low + 1)
        sample = recipe.make(units)
        found = prompt_tokens(sample, count_tokens)
        if found > tokens:
            high = units
        else:
            best, low, low_tokens = sample, units, found
        per_unit = max(found - least_tokens, 1) / (units - recipe.least)
        guess = recipe.least + int((_AIM * tokens - least_tokens) / per_unit)
        units, step = min(guess, _GROWTH * units), step + 1
    if low == recipe.most and low_tokens < _SHORT * tokens:
        raise ConfigError(f"{best.sample_id}: {tokens} tokens wanted, all there is makes {low_tokens}")
    return best


def prompt_tokens(sample: Sample, count_tokens: Callable[[str], int]) -> int:
    """Tokens of a sample's longest prompt: what is read, one question and the first words of its answer."""
    asked = max(
        (question.text + question.answer_begins for question in sample.questions), key=len, default=""
    )
    return measured(sample.before + sample.text + asked, count_tokens)


def measured(text: str, count_tokens: Callable[[str], int]) -> int:
    """Tokens of a text: counted up to `EXACT_CHARS` characters, extrapolated beyond, in bounded time."""
    if len(text) <= EXACT_CHARS:
        return count_tokens(text)
    starts = [len(text) * window // _WINDOWS for window in range(_WINDOWS)]
    windows = [text[start : start + _WINDOW_CHARS] for start in starts]
    return ceil(len(text) * sum(map(count_tokens, windows)) / sum(map(len, windows)))


def random_of(task: Task, needs: SampleNeeds, *what: object) -> Random:
    """Random numbers that depend on the seed, the task and `what` (length, index, ...) alone."""
    return Random("/".join(map(str, (needs.seed, task.name, *what))))


def planted(
    background: Sequence[str], sentences: Sequence[str], depths: Sequence[float], *, is_line: bool = False
) -> str:
    """Sentences between the pieces of a background, nearest to their depths, which do not fall.

    Args:
        background: pieces, of one line where `is_line`.
        sentences: in the order of the text.
        depths: from 0 to 1, in characters of the background.
        is_line: whether each stands on a line of its own.
    """
    starts = [0, *accumulate(len(sentence) + 1 for sentence in background)]
    parts: list[str] = []
    done = 0
    for sentence, depth in zip(sentences, depths, strict=True):
        place = _nearest(starts, depth * starts[-1])
        parts += [*background[done:place], f"\n{sentence}\n" if is_line else sentence]
        done = place
    text = " ".join([*parts, *background[done:]])
    return (
        text.replace(" \n", "\n").replace("\n ", "\n").replace("\n\n", "\n").strip("\n") if is_line else text
    )


def _nearest(starts: Sequence[int], wanted: float) -> int:
    place = min(bisect_left(starts, wanted), len(starts) - 1)
    return place - 1 if place and wanted - starts[place - 1] < starts[place] - wanted else place


def depth_of(text: str, fact: str) -> float:
    """Where a fact stands in a text, in percent of characters: 0 at its beginning, 100 at its end."""
    return round(100 * text.index(fact) / max(1, len(text) - len(fact)), 1)


def depth_facts(text: str, facts: Sequence[str]) -> dict[str, Any]:
    """Where facts stand in a text, as a question's facts say it."""
    return placed([depth_of(text, fact) for fact in facts])


def asked_sample(
    task: Task,
    sample_id: str,
    text: str,
    *,
    answers: Sequence[str],
    fields: dict[str, str],
    facts: dict[str, Any],
    question_facts: dict[str, Any],
    example: str = "",
    query: str = "",
) -> Sample:
    """A sample with one question, its prompt and the first words of its answer filled from the task's file.

    Args:
        task: `prompt` and ``source.answer_begins`` hold the templates.
        sample_id: unique in the task.
        text: the long text.
        answers: the references.
        fields: for the templates.
        facts: of the sample.
        question_facts: of the question.
        example: a solved example that stands before the prompt.
        query: the bare question.
    """
    before, after = task.split_prompt(**fields)
    begins = replace(task, prompt="{context}" + task.source.get("answer_begins", "")).split_prompt(**fields)[
        1
    ]
    question = Question(after, tuple(answers), query=query, answer_begins=begins, facts=question_facts)
    return Sample(sample_id, example + before, text, (question,), facts)


def sample_name(task: Task, length: int, index: int) -> str:
    """``task-length-index``."""
    return f"{task.name.rpartition('/')[2]}-{length}-{index}"
