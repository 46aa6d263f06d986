"""Which option an answer chooses: LongBench v2's own rule, and one reader of letters for the others.

Source of the rule: ``extract_answer`` of LongBench v2 (Bai et al., 2025), ``pred.py``. L-Eval and
InfiniteBench are read by one set of functions, in place of released ones that guess: an answer is read only
where it says one thing. What cannot be read is None, and scores 0.
This module does not know the text or the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from emllm.errors import ConfigError
from emllm.evaluation.metrics.words import first_line
from emllm.evaluation.samples import Question

LETTERS = "ABCD"
_OPEN, _CLOSE = r"[\s(\[*\"'`]*", r"[\s)\].:,*\"'`]*"
#: A capital on its own: not in a word, an initial, "C++", "D-Day", nor the article in "A man".
_LETTER = (
    r"(?<![\w.'’-])([A-D])(?![\w'’+#]|-\w)"
    r"(?!(?<=A)\s+(?!(?:is|was|and|or|because|since|as)\b)[a-z])"
)
_ALONE = re.compile(rf"{_OPEN}([A-D]){_CLOSE}")
_OFFICIAL = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_SAID = re.compile(rf"(?i:\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*)[(\[*\"'`]*{_LETTER}")
#: After a letter: it is not the answer, or not the only one.
_DENIED = re.compile(r"[)\]*\"'`]*\s*(?:is|was|are)\s+(?:not\b|n't|wrong|incorrect|false)")
_SHARED = re.compile(r"[)\]*\"'`]*\s*(?:,|/|\bor\b|\band\b)\s*[(\[*\"'`]*[A-D](?![\w'’])")
_NEGATION = re.compile(r"(?i)\b(?:not|cannot|neither|nor|never|wrong|incorrect)\b|n['’]t\b")
_MARKER = re.compile(r"(?:^|[\s(])([A-D])[).:]", re.MULTILINE)
_ANY = re.compile(_LETTER)
_RUN = re.compile(
    rf"(?:^{_OPEN}|(?i:\b(?:answers?|options?)(?:\s+(?:is|are))?\s*:?)\s*)([A-D]{{2,4}})(?![\w'’])"
)


def choice(prediction: str, question: Question) -> float:
    """1 where the answer says "The correct answer is (B)" or "The correct answer is B", of the right letter.

    LongBench v2 reads nothing else, so an answer that is the letter alone scores 0; asterisks are left out.
    """
    said = prediction.replace("*", "")
    found = next((found.group(1) for pattern in _OFFICIAL if (found := pattern.search(said))), None)
    return float(found == right_letter(question, metric="choice"))


def options(question: Question) -> list[str]:
    """The texts of the options in the order of their letters; none where the fact `choices` is not there."""
    choices = question.facts.get("choices", ())
    return [choices[letter] for letter in sorted(choices)] if isinstance(choices, Mapping) else list(choices)


def right_letter(question: Question, *, metric: str) -> str:
    """The letter of the right option: a fact, a reference, or the place of a reference among the options.

    Raises:
        ConfigError: it cannot be told, so it is no question of a task with this metric.
    """
    if "letter" in question.facts:
        return str(question.facts["letter"])
    texts = options(question)
    for answer in question.answers:
        if len(answer) == 1 and answer in LETTERS:
            return answer
        if answer in texts:
            return LETTERS[texts.index(answer)]
    raise ConfigError(f"metric {metric} needs a letter from A to D as a reference, got {question.answers}")


def read_choice(prediction: str, question: Question) -> str | None:
    """The letter that an answer chooses, by letter or by the text of an option; None where none is clear."""
    return (
        _letter_alone(prediction) or _option_begun(prediction, options(question)) or _letter_said(prediction)
    )


def read_letter(text: str) -> str | None:
    """The one letter from A to D that a text gives as its answer; None where that is not clear.

    In this order: a first line that is a letter; "the answer is B", in the first paragraph that says so; a
    text that begins like "B." or "(B)" and lists no other option; the only capital of the four that stands
    on its own, where nothing is negated.
    """
    return _letter_alone(text) or _letter_said(text)


def _letter_said(text: str) -> str | None:
    """The letter that a text names as its answer, among other words."""
    for paragraph in text.split("\n\n"):
        if claimed := _claimed(paragraph):
            return claimed.pop() if len(claimed) == 1 else None
    marked = {found.group(1) for found in _MARKER.finditer(text)}
    if len(marked) == 1 and re.match(rf"{_OPEN}[A-D][).:]", text):
        return marked.pop()
    alone = set(_ANY.findall(text))
    return alone.pop() if len(alone) == 1 and not _NEGATION.search(text) else None


def _letter_alone(text: str) -> str | None:
    """The letter that the first line is."""
    found = _ALONE.fullmatch(first_line(text.strip()))
    return found.group(1) if found else None


def _claimed(text: str) -> set[str]:
    """The letters of which a text says that they are the answer: all of "the answer is B or C"."""
    letters: set[str] = set()
    for found in _SAID.finditer(text):
        if not _DENIED.match(text, found.end()):
            letters.add(found.group(1))
            if more := _SHARED.match(text, found.end()):
                letters.update(_ANY.findall(more.group()))
    return letters


def read_letters(text: str) -> set[str]:
    """All letters from A to D that a text gives as its answer, as in "BD", "B, D" or "B. ... D. ..."."""
    if found := _RUN.search(text):
        return set(found.group(1))
    return set(_ANY.findall(text))


def _option_begun(prediction: str, texts: list[str]) -> str | None:
    """Letter of the longest option that the answer begins with, as a whole word."""
    said = prediction.lstrip(" \t\n\"'`*").casefold()
    begun = [
        (len(text), letter)
        for letter, text in zip(LETTERS, texts, strict=False)
        if text.strip() and re.match(re.escape(text.strip().casefold()) + r"(?!\w)", said)
    ]
    return max(begun)[1] if begun else None
