"""A limit is of each length, in every suite that is made to lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emllm.evaluation.samples import Sample
from emllm.evaluation.suites import BY_LENGTH, samples_function
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import suite_names, tasks_of

LENGTHS = (2048, 4096)
NEEDS = SampleNeeds(None, lambda text: len(text.split()), lengths=LENGTHS, num_samples=3)
TASKS = {task.name: task for suite in suite_names() for task in tasks_of(suite)}


def first_of_each_length(samples: list[Sample], limit: int) -> list[Sample]:
    return [
        sample
        for length in LENGTHS
        for sample in [one for one in samples if one.facts["length"] == length][:limit]
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("niah/varied", "passkey/passkey", "needles/number", "infinitebench/passkey"),
        *("ruler/niah_single_1", "ruler/vt", "ruler/niah_multikey_3"),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 9])
def test_a_limit_takes_the_first_samples_of_each_length(name: str, limit: int) -> None:
    task = TASKS[name]
    make = samples_function(task.samples)
    whole = list(make(task, NEEDS))
    assert task.samples in BY_LENGTH
    assert list(make(task, replace(NEEDS, limit=limit))) == first_of_each_length(whole, limit)


def test_every_task_whose_file_names_lengths_keeps_to_the_limit_itself() -> None:
    with_lengths = {task.samples for task in TASKS.values() if task.source.keys() & {"length", "lengths"}}
    assert with_lengths and with_lengths <= BY_LENGTH
