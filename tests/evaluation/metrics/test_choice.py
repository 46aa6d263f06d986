"""The reader of letters: what it reads, and what it must not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.evaluation.metrics import metric
from emllm.evaluation.metrics.choice import read_choice, read_letter, read_letters
from emllm.evaluation.samples import Question

OPTIONS = ["Paris", "Mr. Brown", "Vitamin D", "A tale of two cities"]


def asked(letter, **facts):
    return Question("?", (letter,), facts=facts)


@pytest.mark.parametrize(
    "said",
    [
        "B",
        " B",
        "(B)",
        "B.",
        "**B**",
        "B)\n\nQuestion: What else?\nAnswer: C",
        "B. Because C is wrong",
        "The correct answer is (B)",
        "The correct answer is B) Paris",
        "The **correct answer is (B)**.",
        "Answer: B",
        "I think that option B is right",
        "A. x\nB. y\nC. z\nD. w\nThe answer is B",
        "It must be B, I think",
        "Option A is wrong. The answer is B",
        "Option A is incorrect. Option (C) was not named. Answer: B",
        "The answer is B.\n\nQuestion: what is next?\nThe answer is A.",
        " B. The dog.\n\nQuestion: Why?\nA. fear\nB. love\nAnswer: C",
        "B. The dog. Question 2: Why? A. fear\nAnswer: C",
        "B. The dog.\nQ: Why?\nA: fear",
        "B. The dog.\n\nOption C was never mentioned.",
        "(B) The dog, unlike option D (the cat).",
        "B. The dog, unlike option D. That is a cat.",
        "B. Mr. Brown\nC. Cy",
        "B. Vitamin D.",
        "**B**. The dog",
        "B. The dog.\nAnswer: C",
        "C. The dog would be wrong. The correct answer is B",
        "The answer is option B, not option C",
        "Option B is right. Option C is not.",
        "I think the best choice is B",
    ],
)
def test_a_clear_letter_is_read(said):
    assert read_choice(said, asked("B")) == "B"
    for name in ("infinite_code_debug", "infinite_longbook_choice"):
        assert metric(name)(said, asked("C", choices=OPTIONS)) == 0


@pytest.mark.parametrize(
    "said",
    [
        "",
        "   ",
        "Because of the rain",
        "A man walked in",
        "Apples, Bananas, Cherries and Dates",
        "B or C",
        "The answer is B or C",
        "The answer is (A), (B) or (C)",
        "The answer is neither A nor B",
        "The answer cannot be A",
        "The answer isn't A",
        "Answer: A is wrong, it is C",
        "Option A, B, C, D",
        "The answer is A. No, the answer is B.",
        "A. x\nB. y\nC. z\nD. w",
        "A. x\nB. y",
        "A. x B. y C. z D. w",
        "B) or C)",
        "B. C.",
        "A: no, B: yes",
        "A. x. C. y",
        "(A) isn't right",
        "A) is wrong",
        "Neither option A nor option B is correct",
        "Question: Why?\nA. fear\nAnswer: C",
        "\n\nQuestion: Why?\nAnswer: C",
        "Who knows\n\nQuestion: Why?\nAnswer: C",
        "B. x\nThe answer is C or D",
        "ABCD",
        "b",
        "E",
        "C++ was used",
        "On D-Day",
        "None of them",
    ],
)
def test_what_is_not_clear_is_not_guessed(said):
    assert read_letter(said) is None
    assert read_choice(said, asked("A")) is None
    assert [metric("choice")(said, asked(letter)) for letter in "ABCD"] == [0] * 4


@pytest.mark.parametrize(
    "said", ["", "Because", "Who knows\n\nQuestion: Why?\nAnswer: C", "A. x\nB. y\nC. z", "A: no, B: yes"]
)
def test_what_is_not_clear_is_right_for_no_letter(said):
    for name in ("infinite_code_debug", "infinite_longbook_choice"):
        assert [metric(name)(said, asked(letter, choices=OPTIONS)) for letter in "ABCD"] == [0] * 4


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.text("xyz .\n", max_size=9))
def test_an_invented_next_question_changes_nothing(letter, other, said):
    begun = f"{letter}. {said}"
    for answer in (begun, said):
        assert read_letter(f"{answer}\n\nQuestion: why?\nThe answer is {other}") == read_letter(answer)
    assert read_letter(begun) == letter


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("The correct answer is B) Paris", "B"),
        ("The **correct answer is (B)**.", "B"),
        ("A and C look good. The correct answer is (D).", "D"),
        ("The correct answer is A, no: The correct answer is (C).", "C"),
        ("The correct answer is Brown", "B"),
        ("B", None),
        ("(B)", None),
        ("Paris", None),
        ("Answer: B", None),
        ("the correct answer is (B)", None),
        ("The correct answer is (insert answer here)", None),
        ("The correct answer is: B", None),
        ("", None),
    ],
)
def test_longbench_v2_reads_nothing_but_its_own_phrase(said, letter):
    scores = {one: metric("choice")(said, asked(one, choices=OPTIONS)) for one in "ABCD"}
    assert scores == {one: float(one == letter) for one in "ABCD"}


@given(st.text())
def test_no_answer_is_right_under_two_letters(said):
    for name in ("choice", "infinite_code_debug", "infinite_longbook_choice"):
        assert sum(metric(name)(said, asked(letter, choices=OPTIONS)) for letter in "ABCD") <= 1


def test_an_option_may_be_named_by_its_text():
    for letter, text in zip("ABCD", OPTIONS, strict=True):
        assert read_choice(text + ", I think.", asked(letter, choices=OPTIONS)) == letter
    assert read_choice("Parisian cafés", asked("A", choices=OPTIONS)) is None
    assert read_choice("Question of law", asked("A", choices=["Question of law", "Fact"])) == "A"


def test_the_longest_option_that_the_answer_begins_with_is_meant():
    choices = ["get", "get all", "set", "run"]
    assert read_choice("get all", asked("B", choices=choices)) == "B"
    assert read_choice("get", asked("A", choices=dict(zip("ABCD", choices, strict=True)))) == "A"


def test_the_right_letter_is_a_fact_a_reference_or_the_place_of_one():
    said = "The correct answer is (B)"
    assert metric("choice")(said, Question("?", ("x",), facts={"letter": "B"})) == 1
    assert metric("choice")(said, Question("?", ("Mr. Brown", "B"))) == 1
    assert metric("choice")(said, Question("?", ("Mr. Brown",), facts={"choices": OPTIONS})) == 1
    with pytest.raises(ConfigError, match="metric choice needs a letter"):
        metric("choice")("B", asked("Paris"))


@pytest.mark.parametrize(
    ("said", "letters"),
    [
        ("BD", "BD"),
        ("B, D", "BD"),
        ("(B) and (D)", "BD"),
        ("B. Speed\nD. Value", "BD"),
        ("The correct answers are BD.", "BD"),
        ("BD\n\nQuestion: Why?\nAnswer: AC", "BD"),
        ("B. Speed\nQuestion 2: Why?\nC. Value", "B"),
        ("Because", ""),
        ("", ""),
        ("A man", ""),
    ],
)
def test_several_letters_are_read_together(said, letters):
    assert read_letters(said) == set(letters)


def test_a_letter_that_is_all_that_is_said_is_a_letter_before_it_is_the_text_of_an_option():
    question = asked("B", choices={"A": "b", "B": "x", "C": "y", "D": "z"})
    assert read_choice("B", question) == "B"
    assert read_choice("x", question) == "B"
