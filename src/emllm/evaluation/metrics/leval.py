"""Exams, questions and summaries: L-Eval.

Source: ``Evaluation/auto_eval.py``, ``em.py``, ``f1.py`` and ``rouge.py`` of L-Eval (An et al., 2024).

**Deviations.** The release takes an answer in which it finds no letter for A, and the first capital A to D of
any word ("Because") for a letter; here such an answer is not read (`choice.read_letter`). It takes an empty
answer for a part of the right letters, worth a quarter. It stops at an answer to sci_fi without "[fact:",
drops the decimals of gsm100, and finds "5" in "15".

This module does not know the documents; `Question.facts` says by ``form`` what kind of answer is wanted.
"""

from __future__ import annotations

import re
from decimal import Decimal

from emllm.evaluation.metrics.choice import read_letter, read_letters, read_only_letter
from emllm.evaluation.metrics.libraries import library
from emllm.evaluation.metrics.words import best, qa_f1
from emllm.evaluation.samples import Question

_TRUTH = re.compile(
    r"(?P<before>(?:\bnot|n't|\bnever)\s+)?\b(?P<word>true|false)\b(?P<after>\s+(?:or|and)\s+(?:true|false))?"
)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_PART_OF_THE_LETTERS = 0.25
#: What the release leaves out of an answer to codeU, in its order.
_CODE_WORDS = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")
_CODE_MARKS = ((",", ""), ("'", ""), ("\\", ""), (".0", ""), ("] [", "]["), ("[ [", "[["), ("] ]", "]]"))
_CODE_SPARE_WORDS = 3


def leval_exam(prediction: str, question: Question) -> float:
    """1 where an exam's answer is right; a quarter where it is a part, and no more, of several right letters.

    The fact `form` is ``letter`` (quality, tpo), ``letters`` (coursera), ``judge`` (sci_fi), ``number``
    (gsm100) or ``code`` (codeU); any other, or none, is a reference that must stand in the answer, or be the
    same number.
    """
    form = question.facts.get("form", "")
    score = {
        "letter": _letter, "letters": _letters, "judge": _judge, "number": _number, "code": _code
    }.get(form, _contains)  # fmt: skip
    return best(score, prediction, question)


def leval_f1(prediction: str, question: Question) -> float:
    """Token F1 of the normalised words with the best reference; the same as LongBench's."""
    return qa_f1(prediction, question)


def leval_rouge(prediction: str, question: Question) -> float:
    """F of ROUGE-L of the package ``rouge_score``, without stemming, with the best reference.

    Of the three ROUGE scores that L-Eval reports, the last; its geometric mean of the three is one of means
    over a task, which no single answer has.
    """
    scorer = library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    return best(lambda said, right: float(scorer.score(right, said)["rougeL"].fmeasure), prediction, question)


def _letter(prediction: str, right: str) -> float:
    return float(bool(right) and read_letter(prediction) == right)


def _letters(prediction: str, right: str) -> float:
    if len(right) < 2:
        return float(bool(right) and read_only_letter(prediction) == right)
    said, wanted = read_letters(prediction), set(right)
    return 1.0 if said == wanted else _PART_OF_THE_LETTERS if said and said < wanted else 0.0


def _judge(prediction: str, right: str) -> float:
    """What the document says and, where the reference says that too, what is so; each half of the score."""
    wanted = [_truth(part) for part in right.split("[fact:")]
    said = [_truth(part) for part in prediction.split("[fact:")]
    met = [one is not None and one == other for one, other in zip(wanted, said, strict=False)]
    return sum(met) / len(wanted)


def _truth(text: str) -> str | None:
    """ "true" or "false", whichever word stands first; neither of "not true" or "true or false".

    **Deviation** from the released judge, which finds "true" in "untrue".
    """
    found = _TRUTH.search(text.lower())
    return found.group("word") if found and not found.group("before") and not found.group("after") else None


def _number(prediction: str, right: str) -> float:
    wanted = _result(right)
    return float(wanted is not None and _result(prediction) == wanted)


def _result(text: str) -> Decimal | None:
    """The number after "The answer is", else the last number of the first paragraph."""
    said = re.search(r"The answer is (\S+)", text)
    numbers = _NUMBER.findall((said.group(1) if said else text.split("\n\n")[0]).replace(",", ""))
    if not numbers:
        return None
    return Decimal(numbers[0] if said else numbers[-1])


def _code(prediction: str, right: str) -> float:
    """Whether the last words of the answer, or those after "the final output", contain the output."""
    wanted, said = _code_text(right), _code_text(prediction)
    for words in _CODE_WORDS:
        said = said.replace(words, "")
    num_words = len(right.split()) + _CODE_SPARE_WORDS
    _, announced, output = said.rpartition("the final output")
    words_said = output.split()[:num_words] if announced else said.split()[-num_words:]
    return _contains(" ".join(words_said), wanted)


def _code_text(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for mark, instead in _CODE_MARKS:
        text = text.replace(mark, instead)
    return text


def _contains(prediction: str, right: str) -> float:
    """1 where both are the same number, or the reference stands in the answer whatever its space and case."""
    said, wanted = prediction.strip(), right.strip()
    if _NUMBER.fullmatch(said) and _NUMBER.fullmatch(wanted):
        return float(Decimal(said) == Decimal(wanted))
    wanted, said = ("".join(text.lower().split(" ")) for text in (wanted, said))
    not_in_a_number = r"(?<![0-9])" * wanted[:1].isdigit(), r"(?![0-9])" * wanted[-1:].isdigit()
    pattern = re.escape(wanted).join(not_in_a_number)
    return float(bool(wanted) and re.search(pattern, said) is not None)
