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
#: "The answer is B", "Answer: option B", "the best choice is B" or, of a whole sentence, "Option B is right".
_SAID = re.compile(
    r"(?i:\banswer(?:\s+is)?\s*:?\s*(?:(?:the\s+)?(?:option|choice)\s+)?"
    r"|\b(?:option|choice)\s*(?:\bis\b|:)\s*:?\s*"
    r"|(?:^|[.!?;\n])\s*(?:option|choice)\s+(?=\W*[A-D]\W*\s+is\s+(?:the\s+)?(?:right|correct|best)\b))"
    rf"[(\[*\"'`]*{_LETTER}"
)
_FINALLY = re.compile(rf"(?i:\banswer\s+is\s*:?\s*(?:(?:the\s+)?(?:option|choice)\s+)?)[(\[*\"'`]*{_LETTER}")
#: After a letter: it is not the answer, or not the only one.
_DENIED = re.compile(r"[)\]*\"'`]*\s*(?:is|was|are)(?:n['’]t\b|\s+(?:not\b|wrong|incorrect|false))")
_SHARED = re.compile(r"[)\]*\"'`]*\s*(?:,|/|\bor\b|\band\b)\s*[(\[*\"'`]*[A-D](?![\w'’])")
_NEGATION = re.compile(r"(?i)\b(?:not|cannot|neither|nor|never|wrong|incorrect)\b|n['’]t\b")
#: An option as exams mark it, at the beginning of a text, and one behind it.
_OPENED = re.compile(rf"{_OPEN}([A-D])[*\"'`]*[).:\]]")
_SECOND = re.compile(r"\s*[(\[*\"'`]*[A-D](?:[).:\]]|\s*$)")
#: An option that is marked and has its text behind it; one that is only spoken of.
_LISTED = re.compile(r"(?:^|[\s(])([A-D])[).:](?=[ \t]*[^\W_])", re.MULTILINE)
_SPOKEN_OF = re.compile(r"(?i:\b(?:option|choice)s?)\s+[(\[*\"'`]*[A-D]\b[).:]*")
#: Where a model that goes on writing invents the next question.
_NEXT_QUESTION = re.compile(r"(?:^|\n)[\s#*>]*(?:Question\b|Q\s*\d*\s*[:.])|\bQuestion\s*(?:\d|:)")
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


def answered(text: str) -> str:
    """An answer up to the next question, which a model that does not stop invents, answer and all."""
    return _NEXT_QUESTION.split(text, maxsplit=1)[0]


def read_choice(prediction: str, question: Question) -> str | None:
    """The letter that an answer chooses, by letter or by the text of an option; None where none is clear."""
    said = answered(prediction)
    return _letter_alone(said) or _option_begun(prediction, options(question)) or _letter_said(said)


def read_letter(text: str) -> str | None:
    """The one letter from A to D that a text gives as its answer; None where that is not clear.

    In this order: a first line that is a letter; a first line that is one marked option, as in "B. ..." or
    "(B) ...", whatever is said of others behind it, unless the text says that "the answer is" another; "the
    answer is B", in the first paragraph that says so; the only capital of the four that stands on its own,
    where nothing is negated. A text that lists A and then B repeats the options and has chosen none of them.
    """
    said = answered(text)
    return _letter_alone(said) or _letter_said(said)


def _letter_said(text: str) -> str | None:
    """The letter that a text names as its answer, among other words."""
    if opened := _letter_opened(text):
        return opened
    for paragraph in text.split("\n\n"):
        if claimed := _claimed(paragraph, _SAID):
            return claimed.pop() if len(claimed) == 1 else None
    alone = set(_ANY.findall(text))
    return alone.pop() if len(alone) == 1 and not _NEGATION.search(text) else None


def _letter_alone(text: str) -> str | None:
    """The letter that the first line is."""
    found = _ALONE.fullmatch(first_line(text.strip()))
    return found.group(1) if found else None


def _letter_opened(text: str) -> str | None:
    """The letter of the one option that the first line is, where no answer behind it is another."""
    line = first_line(text.strip())
    found = _OPENED.match(line)
    if found is None or any(more.match(line, found.end()) for more in (_DENIED, _SHARED, _SECOND)):
        return None
    letter = found.group(1)
    if _listed(text)[:2] == ["A", "B"] or not set(_listed(line)) | _claimed(text, _FINALLY) <= {letter}:
        return None
    return letter


def _listed(text: str) -> list[str]:
    """The letters of the options that a text marks and writes out, each once, in the order of the text."""
    return list(dict.fromkeys(_LISTED.findall(_SPOKEN_OF.sub(" ", text))))


def _claimed(text: str, claim: re.Pattern[str]) -> set[str]:
    """The letters of which a text says that they are the answer: all of "the answer is B or C"."""
    letters: set[str] = set()
    for found in claim.finditer(text):
        if not _DENIED.match(text, found.end()):
            letters.add(found.group(1))
            if more := _SHARED.match(text, found.end()):
                letters.update(_ANY.findall(more.group()))
    return letters


def read_letters(text: str) -> set[str]:
    """All letters from A to D that a text gives as its answer, as in "BD", "B, D" or "B. ... D. ..."."""
    said = answered(text)
    if found := _RUN.search(said):
        return set(found.group(1))
    return set(_ANY.findall(said))


def read_only_letter(text: str) -> str | None:
    """`read_letter` where several letters may be right: a text that lists two options gives two."""
    return read_letter(text) if len(_listed(answered(text))) < 2 else None


def _option_begun(prediction: str, texts: list[str]) -> str | None:
    """Letter of the longest option that the answer begins with, as a whole word."""
    said = prediction.lstrip(" \t\n\"'`*").casefold()
    begun = [
        (len(text), letter)
        for letter, text in zip(LETTERS, texts, strict=False)
        if text.strip() and re.match(re.escape(text.strip().casefold()) + r"(?!\w)", said)
    ]
    return max(begun)[1] if begun else None
