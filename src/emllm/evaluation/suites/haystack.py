"""One fact in a long text: the needle in a haystack of books, and the passkey in noise.

``source.kind`` says what is made. `needle`: one sentence in books (`filler`) at one of the task's depths;
``source.facts`` is `classic` (Kamradt's sentence about San Francisco; scored by the share of its three parts
instead of by a judge) or `varied` (another sentence in each sample, made from our own words). `passkey`: the
paper's extended passkey (EM-LLM, §4.1), InfiniteBench's text with more of its noise before and after the key;
made in bounded counting time, so that ten million tokens take seconds. Samples go through the depths in the
order of the task's file. This module does not know which row answers or how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from emllm.errors import ConfigError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.filler import NOISE, Filler
from emllm.evaluation.suites.made import (
    Recipe,
    asked_sample,
    depth_facts,
    made_samples,
    planted,
    random_of,
    sample_name,
)
from emllm.evaluation.suites.made_names import ADJECTIVES, NOUNS
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task


@dataclass(frozen=True)
class Fact:
    """A sentence, the question about it and what the answer must hold."""

    sentence: str
    query: str
    answers: tuple[str, ...]


_CLASSIC = Fact(
    "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
    "What is the best thing to do in San Francisco?",
    ("eat a sandwich", "Dolores Park", "sunny day"),
)

#: Sentence, question, first words of the answer; `{subject}` and `{answer}` are an adjective and a noun each.
VARIED = (
    (
        "The watchword of the {subject} garrison is {answer}.",
        "What is the watchword of the {subject} garrison?",
        " The watchword of the {subject} garrison is",
    ),
    (
        "The cook of the {subject} inn swears by one secret ingredient, the {answer}.",
        "What is the secret ingredient that the cook of the {subject} inn swears by?",
        " The cook of the {subject} inn swears by the",
    ),
    (
        "The keeper of the {subject} lighthouse hides his key under the {answer}.",
        "Under what does the keeper of the {subject} lighthouse hide his key?",
        " The keeper of the {subject} lighthouse hides his key under the",
    ),
    (
        "The captain of the {subject} schooner had the {answer} painted on her sails.",
        "What did the captain of the {subject} schooner have painted on her sails?",
        " The captain of the {subject} schooner had on her sails the",
    ),
    (
        "The winner of the {subject} regatta was given the {answer} as a prize.",
        "What was the winner of the {subject} regatta given as a prize?",
        " The winner of the {subject} regatta was given the",
    ),
)
#: Drawn for each sample; the first whose answer is not in the text by chance is planted.
_NUM_DRAWN = 32


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Samples of a needle or passkey task, `num_wanted` of each length.

    Raises:
        ConfigError: no such kind of task or fact.
        SourceError: the data folder has no such books.
    """
    kinds = {"needle": _needle_samples, "passkey": _passkey_samples}
    kind = task.source.get("kind")
    if kind not in kinds:
        raise ConfigError(f"task {task.name}: kind must be one of {', '.join(kinds)}, got {kind!r}")
    yield from kinds[kind](task, needs)


def _needle_samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One fact in books; the unit is a sentence."""
    filler = Filler(needs, task.source["haystack"])

    def recipe_of(length: int, index: int) -> Recipe:
        random = random_of(task, needs, length, index)
        first = random.randrange(1 << 16)
        facts = _facts_of(task, random)
        depth = _depth_of_sample(task, index)

        def make(num_sentences: int) -> Sample:
            sentences = filler.sentences(num_sentences, first=first)
            whole = " ".join(sentences).lower()
            fact = next(
                (fact for fact in facts if not any(answer.lower() in whole for answer in fact.answers)),
                facts[0],
            )
            text = planted(sentences, [fact.sentence], [depth / 100])
            return _fact_sample(task, length, index, text, fact, haystack=filler.name)

        return Recipe(make, least=4)

    yield from made_samples(task, needs, recipe_of)


def _passkey_samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """A key of five digits in noise; the unit is the group of noise."""

    def recipe_of(length: int, index: int) -> Recipe:
        key = str(random_of(task, needs, length, index).randrange(10_000, 100_000))
        sentence = f"The pass key is {key}. Remember it. {key} is the pass key."
        fact = Fact(sentence, task.source["query"], (key,))
        depth = _depth_of_sample(task, index)

        def make(num_groups: int) -> Sample:
            num_before = round(num_groups * depth / 100)
            after = f" {NOISE}" * (num_groups - num_before)
            text = f"{NOISE} " * num_before + sentence + after
            return _fact_sample(task, length, index, text, fact, haystack="noise")

        return Recipe(make, least=1)

    yield from made_samples(task, needs, recipe_of)


def _fact_sample(task: Task, length: int, index: int, text: str, fact: Fact, *, haystack: str) -> Sample:
    return asked_sample(
        task,
        sample_name(task, length, index),
        text,
        answers=fact.answers,
        fields={"query": fact.query},
        facts={"length": length, "haystack": haystack},
        question_facts=depth_facts(text, [fact.sentence]),
        query=fact.query,
    )


def _depth_of_sample(task: Task, index: int) -> float:
    depths = task.source["depths"]
    return float(depths[index % len(depths)])


def _facts_of(task: Task, random: Random) -> list[Fact]:
    """The facts that may be planted, the preferred one first."""
    kind = task.source.get("facts")
    if kind == "classic":
        return [_CLASSIC]
    if kind != "varied":
        raise ConfigError(f"task {task.name}: facts must be classic or varied, got {kind!r}")
    return [varied_fact(random) for _ in range(_NUM_DRAWN)]


def varied_fact(random: Random) -> Fact:
    """A made-up fact from our own words; subject and answer are an adjective and a noun each."""
    sentence, query, _ = random.choice(VARIED)
    (adjective, other_adjective), (noun, other_noun) = random.sample(ADJECTIVES, 2), random.sample(NOUNS, 2)
    fields = {"subject": f"{adjective} {noun}", "answer": f"{other_adjective} {other_noun}"}
    return Fact(sentence.format(**fields), query.format(**fields), (fields["answer"],))
