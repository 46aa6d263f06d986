"""RULER's needles: sentences that give a magic number to a name, in noise, in books or among their like.

Source parameters, under RULER's names: `haystack` (``noise``, ``needle`` or a folder of books),
`type_needle_k` and `type_needle_v` (``words``, ``numbers``, ``uuids``), `num_needle_k`, `num_needle_v` and
`num_needle_q` (keys, values of each key, keys asked for). This module does not know other kinds of task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from random import Random

from emllm.errors import SourceError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.files import records
from emllm.evaluation.suites.filler import NOISE, Filler
from emllm.evaluation.suites.made import (
    Recipe,
    asked_sample,
    depth_facts,
    made_samples,
    random_of,
    sample_name,
)
from emllm.evaluation.suites.made_names import Names, word_parts
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

#: Forty depths in percent, of which each needle in a book gets its own.
_DEPTHS = tuple(round(100 * step / 39) for step in range(40))

#: A needle has more tokens than this with any tokenizer: for how many names a text needs at most.
_NEEDLE_TOKENS = 12


def needle_samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Samples of the eight needle tasks."""
    haystack = task.source["haystack"]
    filler = None if haystack in ("noise", "needle") else Filler(needs, haystack)

    def recipe_of(length: int, index: int) -> Recipe:
        return _Needles(task, needs, filler, length, index).recipe()

    yield from made_samples(task, needs, recipe_of)


class _Needles:
    """The needles of one sample, and the haystack that grows around them."""

    def __init__(
        self, task: Task, needs: SampleNeeds, filler: Filler | None, length: int, index: int
    ) -> None:
        self._task, self._filler, self._source = task, filler, task.source
        self._name = sample_name(task, length, index)
        self._length = length
        self._fill_seed = random_of(task, needs, length, index, "fill").getrandbits(64)
        random = random_of(task, needs, length, index)
        num_names = length // _NEEDLE_TOKENS if self._source["haystack"] == "needle" else 1000
        self._names = Names(random, parts=max(2, word_parts(num_names)))
        self._lines: list[str] = []
        num_queries = self._source.get("num_needle_q", 1)
        num_keys = max(self._source.get("num_needle_k", 1), num_queries)
        num_values = self._source.get("num_needle_v", 1)
        keys = [self._draw("type_needle_k") for _ in range(num_keys)]
        values = {key: [self._draw("type_needle_v") for _ in range(num_values)] for key in keys}
        self._asked = [(key, value) for key in random.sample(keys, num_queries) for value in values[key]]
        self._needles = [self._needle(key, value) for key in keys for value in values[key]]
        random.shuffle(self._needles)
        self._first = random.randrange(1 << 16)

    def recipe(self) -> Recipe:
        return Recipe(self._make, least=max(4, len(self._needles)))

    def _draw(self, parameter: str) -> str:
        return self._names.draw(self._source[parameter])

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self._source['type_needle_v']} for {key} is: {value}."

    def _make(self, num_units: int) -> Sample:
        text = self._in_book(num_units) if self._filler else self._among_lines(num_units)
        queries = list(dict.fromkeys(key for key, _ in self._asked))
        asked = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
        return asked_sample(
            self._task,
            self._name,
            text,
            answers=[value for _, value in self._asked],
            fields={"query": asked},
            facts={
                "length": self._length,
                "haystack": self._filler.name if self._filler else self._source["haystack"],
            },
            question_facts=depth_facts(text, [self._needle(*pair) for pair in self._asked]),
        )

    def _in_book(self, num_sentences: int) -> str:
        """The needles between sentences of a book, each at its own one of the forty depths."""
        assert self._filler is not None
        sentences = self._filler.sentences(num_sentences, first=self._first)
        depths = sorted(Random(self._fill_seed).sample(_DEPTHS, len(self._needles)))
        for needle, depth in reversed(list(zip(self._needles, depths, strict=True))):
            sentences.insert(num_sentences * depth // 100, needle)
        return " ".join(sentences)

    def _among_lines(self, num_lines: int) -> str:
        """The needles on lines of their own, anywhere among lines of noise or of other needles."""
        if self._source["haystack"] == "noise":
            lines = [NOISE] * num_lines
        else:
            while len(self._lines) < num_lines:
                self._lines.append(self._needle(self._draw("type_needle_k"), self._draw("type_needle_v")))
            lines = self._lines[:num_lines]
        places = sorted(Random(self._fill_seed).sample(range(num_lines), len(self._needles)), reverse=True)
        for place, needle in zip(places, self._needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def official_samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Prompts that RULER itself made, whole in `input`, taken apart where the task's templates say.

    Raises:
        SourceError: a prompt is not of the task's form.
    """
    before, _, ask = task.prompt.partition("{context}")
    begins = str(task.source["answer_begins"])
    pattern = re.compile(
        re.escape(before)
        + r"(?P<text>.*)"
        + re.escape(ask).replace(r"\{query\}", r"(?P<query>[^\n]*?)", 1)
        + re.escape(begins).replace(r"\{query\}", r"(?P=query)")
        + r"\Z",
        re.DOTALL,
    )
    for record in islice(records(task, needs), needs.limit):
        found = pattern.match(str(record.get("input", "")))
        answers = record.get("outputs", [])
        if found is None or not answers or not all(answer in found["text"] for answer in answers):
            raise SourceError(f"task {task.name}: record {record.get('index')} is not of the task's form")
        yield asked_sample(
            task,
            f"{task.name.rpartition('/')[2]}-{record['index']}",
            found["text"],
            answers=answers,
            fields={"query": found["query"]},
            facts={"length": task.source["length"]},
            question_facts=depth_facts(found["text"], answers),
        )
