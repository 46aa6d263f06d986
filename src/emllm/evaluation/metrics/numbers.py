"""Numbers that an answer says, against all that are right: for questions of our own (`shared-text`).

This module does not know what the numbers count or name.
"""

from __future__ import annotations

import re

from emllm.evaluation.samples import Question

_NUMBER = re.compile(r"\d+")


def numbers(prediction: str, question: Question) -> float:
    """Numbers both said and right, as a share of those said or right: 1 for the right ones and no other.

    RULER's ``string_match_all`` is content with a number as a substring; an answer that lists what it has
    seen then passes any question that asks to choose or to count.
    """
    right = {found for answer in question.answers for found in _NUMBER.findall(answer)}
    said = set(_NUMBER.findall(prediction))
    return len(said & right) / len(said | right) if right else 0.0
