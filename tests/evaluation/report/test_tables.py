"""Marks: how many of them chance makes, and what is never one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emllm.evaluation.report.comparison import Comparison, comparisons
from emllm.evaluation.report.records import Answer, Record, RunFolder
from emllm.evaluation.report.tables import RowDifference, averages, differences, task_scores

#: Of a task, of each text the scores of its questions.
Texts = Sequence[Sequence[float]]


def record(task: str, index: int, row: str, scores: Sequence[float]) -> Record:
    return Record(
        task=task,
        index=index,
        sample=f"{task}-{index}",
        row=row,
        tokens=5000,
        read_tokens=5000,
        facts={},
        score=float(np.mean(scores)),
        answers=tuple(Answer("x", score) for score in scores),
        failed=None,
    )


def compared(
    ours: Sequence[Texts], theirs: Sequence[Texts], *, changed: Callable[[Record], Record] = lambda it: it
) -> Comparison:
    """Two rows, `default` and the reference `full`, on some tasks; of their records something else."""
    rows = {"full": theirs, "default": ours}
    about = {
        "model": "m",
        "rows": {row: {} for row in rows},
        "tasks": {f"a/{number}": {"suite": "a", "metric": "qa_f1"} for number in range(len(ours))},
    }
    records = tuple(
        changed(record(f"a/{number}", index, row, scores))
        for row, tasks in rows.items()
        for number, texts in enumerate(tasks)
        for index, scores in enumerate(texts)
    )
    return comparisons([RunFolder(Path("run"), about, records, (), ())])[0]


def last_difference(ours: Sequence[Texts], theirs: Sequence[Texts]) -> RowDifference:
    """Of the average, or of the one task."""
    return differences(compared(ours, theirs))[-1]


@pytest.mark.parametrize(
    ("num_tasks", "num_texts", "num_questions"), [(5, 2, 4), (12, 2, 1), (6, 3, 3), (1, 7, 3)]
)
def test_of_two_rows_that_are_equal_chance_marks_no_more_than_one_in_twenty(
    num_tasks: int, num_texts: int, num_questions: int
) -> None:
    generator = np.random.default_rng(43)
    num_marked = 0
    for _ in range(100):
        hardness = generator.random((num_tasks, num_texts, 1))
        rows = (generator.random((2, num_tasks, num_texts, num_questions)) < hardness).astype(float)
        num_marked += bool(last_difference(*rows.tolist()).verdict)
    assert num_marked / 100 <= 0.07


def test_three_samples_that_differ_are_never_marked_however_many_do_not() -> None:
    found = last_difference([[[1.0]] * 3 + [[0.0]] * 3], [[[0.0]] * 6])
    assert found.low is not None and found.low >= 0 and found.p == 0.25
    assert (found.verdict, found.num_pairs, found.num_differing, found.can_be_marked) == ("", 6, 3, False)


def test_six_samples_of_one_sign_are_marked_and_their_difference_was_to_be() -> None:
    found = last_difference([[[0.9]] * 6], [[[0.2]] * 5 + [[0.3]]])
    assert (found.verdict, found.p, found.can_be_marked) == ("better", 2.0**-5, True)


def test_an_interval_ends_where_scores_do() -> None:
    comparison = compared([[[1.0], [0.0]]] * 2, [[[0.0], [1.0]]] * 2)
    ends = [(it.low, it.high) for it in (*task_scores(comparison), *averages(comparison))]
    assert ends[:4] == [(0.0, 100.0)] * 4
    assert all(low >= 0 and high <= 100 for low, high in ends)
    apart = differences(comparison)
    assert [(it.low, it.high) for it in apart[:2]] == [(-100.0, 100.0)] * 2


def test_questions_of_several_tasks_about_one_text_alone_are_pairs_of_their_own() -> None:
    scores = np.random.default_rng(47).random((2, 5, 1, 3)).tolist()
    found = differences(compared(*scores, changed=lambda it: replace(it, sample="conversation")))[-1]
    assert (found.name, found.num_pairs, found.num_differing) == ("a", 15, 15)


def test_samples_with_one_text_are_drawn_together_in_whatever_tasks_and_rows_that_tell_it() -> None:
    scores = np.random.default_rng(53).random((2, 2, 6, 1)).tolist()

    def told(it: Record) -> Record:
        return replace(it, text=f"text {it.index // 2}" if it.row == "full" else None)

    one, _, average = differences(compared(*scores, changed=told))
    assert (one.num_pairs, average.num_pairs, average.num_differing) == (3, 3, 3)
    one, _, average = differences(compared(*scores))
    assert (one.num_pairs, average.num_pairs) == (6, 12)


def test_of_samples_that_all_have_one_text_questions_are_drawn() -> None:
    scores = np.random.default_rng(59).random((2, 1, 6, 2)).tolist()
    comparison = compared(*scores, changed=lambda it: replace(it, text="text"))
    assert comparison.is_one_text("a/0") and differences(comparison)[0].num_pairs == 12
