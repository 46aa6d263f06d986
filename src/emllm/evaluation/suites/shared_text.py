"""Several questions about one text that is read once: records, passwords and bells planted in books.

After SCBench (Li et al. 2024), whose conversations share a context: what was prepared for one question must
not cost the next. The text holds a register of records (a name and a number), three passwords a place, and
the ringing of bells, all at depths drawn uniformly; one place more than is asked about of each kind.
`questions` in ``[source]`` says what is asked, in this order:

- ``number``: the number of a name; the names asked about are spread over the text;
- ``passwords``: all three of a place;
- ``first``: of two names, the number of the one that stands first;
- ``rings``: how many times the text says that a bell rang, between the two `rings` of ``[source]``.

Names, places and numbers never repeat within a text. This module does not know how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.background import Planted, background, fitting, planted, planting_tokens
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.made import sample_name
from emllm.evaluation.suites.made_names import Names
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

LENGTHS = (4096, 8192, 16384, 32768, 65536)
_TOKENS_A_RECORD = 256
_LEAST_RECORDS, _MOST_RECORDS = 12, 400
_PASSWORDS = 3
_SEAMS = 8


@dataclass(frozen=True)
class Fact:
    """One planted sentence: what it says of whom."""

    kind: str
    key: str
    value: str
    sentence: str


@dataclass(frozen=True)
class Asked:
    """A question, its references, and the facts that answer it, as indices in the order of the text."""

    kind: str
    text: str
    answers: tuple[str, ...]
    evidence: tuple[int, ...]


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """`num_wanted` samples of each length.

    Raises:
        SourceError: there are no books.
        ConfigError: an unknown kind of question, or a length without room for the facts.
    """
    kinds = tuple(task.source["questions"])
    if wrong := [kind for kind in kinds if kind not in _QUESTIONS]:
        raise ConfigError(f"questions of {task.name} must be of {', '.join(_QUESTIONS)}, got {wrong[0]!r}")
    for length in needs.lengths or LENGTHS:
        for index in range(needs.num_wanted):
            yield _made(task, needs, kinds, length=length, index=index)


def _made(task: Task, needs: SampleNeeds, kinds: tuple[str, ...], *, length: int, index: int) -> Sample:
    draw = Random(f"{needs.seed} {task.name} {length} {index}")
    num_records = max(min(length // _TOKENS_A_RECORD, _MOST_RECORDS), _LEAST_RECORDS, 2 * len(kinds))
    low, high = task.source["rings"]
    facts = drawn_facts(draw, kinds, num_records=num_records, rings=(low, high))
    asked = drawn_questions(draw, kinds, facts)
    sentences = [fact.sentence for fact in facts]
    room = length - _prompt_tokens(task, needs, asked) - planting_tokens(sentences, needs.count_tokens)
    if room < 0:
        raise ConfigError(f"lengths of {task.name} must leave room for its facts, got {length}")
    pieces = fitting(background(needs, task.source["books"]).pieces(draw), room, needs.count_tokens)
    text = planted(pieces, sentences, sorted(draw.random() for _ in sentences))
    questions = tuple(_question(task, one, text) for one in asked)
    before = task.split_prompt()[0]
    about = {"length": length, "facts": len(facts), "records": num_records}
    return Sample(sample_name(task, length, index), before, text.text.rstrip(), questions, about)


def _prompt_tokens(task: Task, needs: SampleNeeds, asked: Sequence[Asked]) -> int:
    """Tokens of the instructions, the longest question and an answer."""
    before = task.split_prompt()[0]
    longest = max(needs.count_tokens(task.split_prompt(input=one.text)[1]) for one in asked)
    return needs.count_tokens(before) + longest + task.answer_tokens + _SEAMS


def _question(task: Task, asked: Asked, text: Planted) -> Question:
    facts = {"kind": asked.kind, **placed([100 * text.depths[idx] for idx in asked.evidence])}
    return Question(task.split_prompt(input=asked.text)[1], asked.answers, query=asked.text, facts=facts)


def drawn_facts(
    draw: Random, kinds: Sequence[str], *, num_records: int, rings: tuple[int, int]
) -> list[Fact]:
    """The facts of one text, in the order of the text."""
    names = Names(draw, parts=2)
    facts = []
    for _ in range(num_records):
        name, number = names.draw("words"), names.draw("numbers")
        facts.append(Fact("number", name, number, f"The register gives {name} the number {number}."))
    for _ in range(kinds.count("passwords") + 1):
        place = names.draw("words")
        for password in [names.draw("numbers") for _ in range(_PASSWORDS)]:
            facts.append(Fact("passwords", place, password, f"One password of {place} is {password}."))
    for _ in range(kinds.count("rings") + 1):
        place = names.draw("words")
        ring = Fact("rings", place, "", f"That night the bell of {place} rang.")
        facts += [ring] * draw.randint(*rings)
    draw.shuffle(facts)
    return facts


def drawn_questions(draw: Random, kinds: Sequence[str], facts: Sequence[Fact]) -> list[Asked]:
    """The questions about facts, of these kinds, none twice."""
    left = {kind: question(draw, facts, kinds.count(kind)) for kind, question in _QUESTIONS.items()}
    return [left[kind].pop() for kind in kinds]


def _number_questions(draw: Random, facts: Sequence[Fact], num_wanted: int) -> list[Asked]:
    """One from each of so many equal parts of the text, in any order."""
    records = [idx for idx, fact in enumerate(facts) if fact.kind == "number"]
    part = len(records) / max(num_wanted, 1)
    drawn = [draw.choice(records[int(n * part) : int((n + 1) * part)]) for n in range(num_wanted)]
    draw.shuffle(drawn)
    text = "What number does the register give {}? Answer with the number alone."
    return [Asked("number", text.format(facts[i].key), (facts[i].value,), (i,)) for i in drawn]


def _passwords_questions(draw: Random, facts: Sequence[Fact], num_wanted: int) -> list[Asked]:
    text = (
        f"What are the {_PASSWORDS} passwords of {{}}? Answer with the passwords alone, separated by commas."
    )
    return [
        Asked("passwords", text.format(place), tuple(facts[i].value for i in evidence), evidence)
        for place, evidence in _drawn_places(draw, facts, "passwords", num_wanted)
    ]


def _rings_questions(draw: Random, facts: Sequence[Fact], num_wanted: int) -> list[Asked]:
    text = (
        "How many times does the text say that the bell of {} rang? Answer with the number alone, in digits."
    )
    return [
        Asked("rings", text.format(place), (str(len(evidence)),), evidence)
        for place, evidence in _drawn_places(draw, facts, "rings", num_wanted)
    ]


def _first_questions(draw: Random, facts: Sequence[Fact], num_wanted: int) -> list[Asked]:
    """No record is asked about twice."""
    records = [idx for idx, fact in enumerate(facts) if fact.kind == "number"]
    drawn = draw.sample(records, 2 * num_wanted)
    asked = []
    for pair in zip(drawn[::2], drawn[1::2], strict=True):
        first, second = sorted(pair)
        one, other = draw.sample([facts[first].key, facts[second].key], 2)
        text = (
            f"The register gives numbers to {one} and to {other}. Which of these two numbers stands first in "
            "the text? Answer with that number alone."
        )
        asked.append(Asked("first", text, (facts[first].value,), (first, second)))
    return asked


def _drawn_places(
    draw: Random, facts: Sequence[Fact], kind: str, num_wanted: int
) -> list[tuple[str, tuple[int, ...]]]:
    """So many of the places of a kind, each with its facts."""
    places = sorted({fact.key for fact in facts if fact.kind == kind})
    return [
        (place, tuple(idx for idx, fact in enumerate(facts) if fact.kind == kind and fact.key == place))
        for place in draw.sample(places, num_wanted)
    ]


_QUESTIONS = {
    "number": _number_questions,
    "passwords": _passwords_questions,
    "first": _first_questions,
    "rings": _rings_questions,
}
