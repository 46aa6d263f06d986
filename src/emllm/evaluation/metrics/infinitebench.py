"""Retrieval, books, code and sums at 100 thousand tokens and more: InfiniteBench.

Source: ``src/compute_scores.py`` of InfiniteBench (Zhang et al., 2024); the scorers that came with InfLLM and
EM-LLM were made from it.

**Deviations.** *code_debug*: the bare letter that the prompt asks for is read; the release knows only "B."
and "B:", and the one that came with InfLLM draws a letter at random instead. *longbook_choice*: an empty
answer scores 0 and does not stop the run; a letter is compared with the right letter, not with the characters
of the right option ("Mr. Brown" does not make B right); "Because" is not B.
*math_find*: numbers are compared as numbers, so that "12.5" is wrong where 12 is right, and is no crash.
*math_calc*, *code_run*: a minus belongs to its number, and a point between digits too. *dialogue*: a name may
have several words.

This module does not know the texts.
"""

from __future__ import annotations

import re
from decimal import Decimal

from emllm.evaluation.metrics.choice import answered, read_choice, right_letter
from emllm.evaluation.metrics.libraries import library
from emllm.evaluation.metrics.words import best, normalised_chinese, qa_f1, token_f1
from emllm.evaluation.samples import Question

_MARKS = re.compile(r"[\n:\"'.,?!{}]")
_RUN_MARKS = re.compile(r"[\n`'\":]|\.(?![0-9])|(?<![0-9])\.")
_NUMBER = re.compile(r"(?:(?<!\w)-)?[0-9]+(?:\.[0-9]+)?")
_INTEGER = re.compile(r"(?:(?<!\w)-)?[0-9]+")


def infinite_kv(prediction: str, question: Question) -> float:
    """1 where the value is one of the words of the answer."""
    words = _MARKS.sub(" ", prediction).split()
    return float(any(answer in words for answer in question.answers))


def infinite_code_run(prediction: str, question: Question) -> float:
    """1 where the last word of the answer is the returned number."""
    last = _RUN_MARKS.sub(" ", prediction).split()[-1:]
    said = last[0] if last and re.fullmatch(r"[+-]?[0-9]+", last[0]) else None
    return float(said is not None and any(_same_number(said, answer) for answer in question.answers))


def infinite_code_debug(prediction: str, question: Question) -> float:
    """1 where the answer chooses the function with the bug, by letter or by name."""
    right = right_letter(question, metric="infinite_code_debug")
    return float(_read_option(prediction, question) == right)


def infinite_longbook_choice(prediction: str, question: Question) -> float:
    """1 where the answer chooses the right option, by letter or by its text."""
    right = right_letter(question, metric="infinite_longbook_choice")
    return float(_read_option(prediction, question) == right)


def infinite_longbook_qa(prediction: str, question: Question) -> float:
    """Token F1 with the best reference: of words, of characters where the fact `language` is ``zh``."""
    is_chinese = question.facts.get("language") == "zh"
    return best(_character_f1, prediction, question) if is_chinese else qa_f1(prediction, question)


def infinite_longbook_sum(prediction: str, question: Question) -> float:
    """F of ROUGE-Lsum of the package ``rouge_score``, which the release calls, with the best reference."""
    scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=False)

    def score(said: str, right: str) -> float:
        return float(scorer.score(right, said)["rougeLsum"].fmeasure)

    return best(score, prediction, question)


def infinite_dialogue(prediction: str, question: Question) -> float:
    """1 where the masked name stands in the answer as whole words, in whatever case."""
    said = _as_words(prediction)
    return float(any(_as_words(answer) in said for answer in question.answers if _as_words(answer).strip()))


def infinite_math_find(prediction: str, question: Question) -> float:
    """1 where the first number of the answer equals the right one, "7.0" being 7."""
    found = _NUMBER.search(prediction)
    return float(
        found is not None and any(_same_number(found.group(), answer) for answer in question.answers)
    )


def infinite_math_calc(prediction: str, question: Question) -> float:
    """Share of the results that are right before the first wrong one; the references hold all, in order."""
    wanted = [Decimal(number) for answer in question.answers for number in _INTEGER.findall(answer)]
    said = [Decimal(number) for number in _INTEGER.findall(prediction)]
    num_right = 0
    while num_right < min(len(wanted), len(said)) and wanted[num_right] == said[num_right]:
        num_right += 1
    return num_right / len(wanted) if wanted else 0.0


def _character_f1(prediction: str, reference: str) -> float:
    """F1 of the characters, punctuation and space left out."""
    return token_f1(normalised_chinese(prediction), normalised_chinese(reference))


def _read_option(prediction: str, question: Question) -> str | None:
    """The chosen letter: of the whole answer or, where that is not clear, of what follows "answer is"."""
    letter, said = read_choice(prediction, question), answered(prediction)
    if letter is None and (found := re.search(r"(?i:answer is|answer|option is|\bis):?\s+(.*)", said)):
        letter = read_choice(found.group(1), question)
    return letter


def _as_words(text: str) -> str:
    """The words in capitals, with a space before and after each."""
    return f" {' '.join(_MARKS.sub(' ', text).upper().split())} "


def _same_number(said: str, right: str) -> bool:
    """Whether two texts are one number; a reference that is no number equals none."""
    found = _NUMBER.fullmatch(right.strip())
    return found is not None and Decimal(said) == Decimal(found.group())
