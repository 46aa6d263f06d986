"""L-Eval: an exam's kinds of answers, each right, wrong, empty and cunning."""

from __future__ import annotations

import json
import lzma

import pytest

from emllm.evaluation.metrics import metric
from emllm.evaluation.samples import Question


def exam(said, right, form):
    return metric("leval_exam")(said, Question("?", (right,), facts={"form": form}))


def test_one_letter_is_read_and_never_guessed():
    assert exam("B", "B", "letter") == exam("(B) Their subconscious knew", "B", "letter") == 1
    assert exam("C", "B", "letter") == exam("Because", "B", "letter") == exam("", "B", "letter") == 0
    assert exam("I cannot tell", "A", "letter") == exam("According to it", "A", "letter") == 0


def test_a_part_of_several_right_letters_is_worth_a_quarter():
    assert exam("BD", "BD", "letters") == exam("D, B", "BD", "letters") == 1
    assert exam("B", "BD", "letters") == 0.25
    assert exam("ABCD", "BD", "letters") == exam("BC", "BD", "letters") == 0
    assert exam("", "BD", "letters") == exam("I cannot tell", "BD", "letters") == 0
    assert exam("BD", "B", "letters") == exam("B and D", "B", "letters") == 0
    assert exam("B. Speed\nD. Value", "B", "letters") == exam("", "B", "letters") == 0
    assert exam("B. Speed\n\nOption C is none.", "B", "letters") == exam("B", "B", "letters") == 1
    assert exam("BD Question: what else? AC", "BD", "letters") == 1


def test_a_judgement_is_the_first_that_is_made():
    assert exam("True, for the text says so", "True", "judge") == 1
    assert exam("False. It is not true", "True", "judge") == exam("Perhaps", "True", "judge") == 0
    for said in ("Untrue", "It is not true", "That isn't true", "True or False", "falsetto"):
        assert exam(said, "True", "judge") == exam(said, "False", "judge") == 0
    assert exam("True", "True [fact: False]", "judge") == 0.5
    assert exam("True [fact: False]", "True [fact: False]", "judge") == 1
    assert exam("", "True [fact: False]", "judge") == 0


def test_a_sum_is_the_number_after_the_answer_is_or_the_last_one():
    assert exam("2 and 3 make 5. The answer is 5.", "5", "number") == 1
    assert exam("2 and 3 make 5", "Long reasoning with 9.\nThe answer is 5", "number") == 1
    assert exam("The answer is $1,200.50", "1200.5", "number") == 1
    assert exam("The answer is 1200", "1200.5", "number") == exam("", "5", "number") == 0
    assert exam("The answer is unknown", "5", "number") == exam("5 apples, then 6", "5", "number") == 0
    assert exam("9" * 6000, "5", "number") == 0


def test_the_output_of_code_stands_at_the_end():
    assert exam("Hence the final output is [1, 2, 3] of it all", "[1, 2, 3]", "code") == 1
    assert exam("First 1. Then the value of y will be 7", "7", "code") == 1
    assert exam("7 it is not, for many reasons that I give here", "7", "code") == 0
    assert exam("17", "7", "code") == exam("", "7", "code") == 0


def test_any_other_reference_must_stand_in_the_answer():
    assert exam("It was The Role of art in  society.", "The role of art in society", "text") == 1
    assert exam("3.0", "3", "text") == 1
    assert exam("13 topics", "3", "text") == exam("", "3", "text") == exam("x", "", "text") == 0


def test_questions_and_summaries_are_scored_by_words():
    question = Question("?", ("April 25 , 2018",))
    assert (
        metric("leval_f1")("April 25, 2018", question)
        == metric("leval_rouge")("april 25 2018", question)
        == 1
    )
    assert metric("leval_f1")("", question) == metric("leval_rouge")("", question) == 0


@pytest.mark.parametrize(
    ("task", "form"),
    [("coursera", "letters"), ("tpo", "letter"), ("sci_fi", "judge"), ("topic_retrieval_longchat", "text")],
)
def test_every_reference_of_the_development_data_is_right(shared_data, task, form):
    with lzma.open(shared_data / "leval" / f"{task}.jsonl.xz", "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            for right in record["outputs"]:
                right = right.split(" [fact:")[0] if form == "judge" else right.strip()
                assert exam(right, right, form) == 1, right
