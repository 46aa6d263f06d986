"""InfiniteBench (Zhang et al., 2024), the four tasks that its authors made: to any length, from a seed.

Source: ``data/construct_synthetic_dataset.py`` of the released code, commit 88b3daa. Keys are spread over the
text as there: `passkey` and `number_string` over at most 59 places from its beginning to its end, several
samples a place, `kv_retrieval` over one place a sample.

**Deviations.** The authors fix the number of lines, pairs or numbers; here a wanted length in tokens does.
The key-value pairs are drawn here, not taken from another benchmark's generator. The values of `math_calc`
begin with the first number, as the prompt's examples do; the release leaves it out of the reference and of
the answers of one model only.

This module does not know how answers are scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from uuid import UUID

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.answer_prefix import split_answer_prefix
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
_MOST_PLACES = 59
_LARGEST = 99
#: Sizes of the two trial texts from which the tokens of one unit are known.
_TRIAL_UNITS = (32, 288)


@dataclass(frozen=True)
class _Made:
    """A made text and what is asked about it; `depth` is the place of the answer, from 0 to 1."""

    text: str
    asked: str
    answers: tuple[str, ...]
    query: str
    depth: float | None = None


#: Makes a text of so many units, for sample ``idx`` of ``num_samples``.
_Maker = Callable[[Random, int, int, int], _Made]


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """`needs.num_wanted` samples of each length, or of the task's own length where none is wanted.

    Raises:
        ConfigError: a length is too short for the task.
    """
    make = _MAKERS[task.source["kind"]]
    for length in needs.lengths or (task.source["length"],):
        num_units = _num_units(task, needs, make, length)
        for idx in range(needs.num_wanted):
            made = make(_random(task, needs, length, idx), num_units, idx, needs.num_samples)
            yield _sample(task, made, length, idx)


def _sample(task: Task, made: _Made, length: int, idx: int) -> Sample:
    before, after = task.split_prompt(input=made.asked)
    text, answer_begins = split_answer_prefix(task, after)
    depth = placed([] if made.depth is None else [100 * made.depth])
    question = Question(text, made.answers, made.query, answer_begins, facts=depth)
    facts = {"length": length, **depth}
    return Sample(f"{task.source['kind']}-{length}-{idx}", before, made.text, (question,), facts)


def _random(task: Task, needs: SampleNeeds, length: int, idx: int) -> Random:
    return Random(f"{needs.seed} {task.name} {length} {idx}")


def _num_units(task: Task, needs: SampleNeeds, make: _Maker, length: int) -> int:
    """Units of a text of that length: a text grows by the same number of tokens with each, on average."""
    few, many = _TRIAL_UNITS
    trial = _random(task, needs, length, -1)
    few_tokens, many_tokens = (needs.count_tokens(make(trial, units, 0, 1).text) for units in _TRIAL_UNITS)
    unit_tokens = (many_tokens - few_tokens) / (many - few)
    rest_tokens = few_tokens - few * unit_tokens
    num_units = round((length - rest_tokens) / unit_tokens)
    if num_units < 1:
        shortest = round(rest_tokens + unit_tokens)
        raise ConfigError(f"task {task.name}: a length must be >= {shortest} tokens, got {length}")
    return num_units


def _place(idx: int, num_samples: int, num_units: int) -> int:
    """Units before the key: the same number of samples at each place, first and last place at the ends."""
    num_places = min(num_samples, _MOST_PLACES)
    if num_places == 1:
        return num_units // 2
    return round(idx * num_places // num_samples * num_units / (num_places - 1))


def _in_noise(key: str, name: str, before: int, num_units: int) -> _Made:
    found = f"The {name} is {key}. Remember it. {key} is the {name}.\n"
    asked = f"What is the {name}?"
    text = _NOISE * before + found + _NOISE * (num_units - before)
    return _Made(text, asked, (key,), asked, before / num_units)


def _passkey(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """Five digits among lines of noise."""
    key = "".join(str(random.randint(0, 9)) for _ in range(5))
    return _in_noise(key, "pass key", _place(idx, num_samples, num_units), num_units)


def _number_string(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """Ten digits, five of them repeated where they stand, among lines of noise."""
    digits = [str(random.randint(0, 9)) for _ in range(5)]
    for repeated in range(5):
        at = random.randint(0, 4 + repeated)
        digits.insert(at, digits[at])
    key = "".join(digits)
    return _in_noise(key, "sequence of digits", _place(idx, num_samples, num_units), num_units)


def _kv_retrieval(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """Pairs of UUIDs as a JSON object; the key asked for moves on with each sample."""
    pairs = [(_uuid(random), _uuid(random)) for _ in range(num_units)]
    at = idx * num_units // num_samples
    key, value = pairs[at]
    asked = f'\nKey: "{key}"\nThe value associated with the specified key is: '
    return _Made(f"JSON data:\n{json.dumps(dict(pairs))}", asked, (value,), key, at / num_units)


def _uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def _math_calc(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """Sums and differences of numbers from 0 to 99, every value in between being one of these too."""
    value = random.randint(0, _LARGEST)
    terms, values = [str(value)], [value]
    for _ in range(num_units - 1):
        term = random.randint(0, _LARGEST)
        if random.random() > 0.5:
            term = term if value + term <= _LARGEST else random.randint(0, _LARGEST - value)
            value, sign = value + term, "+"
        else:
            term = term if value - term >= 0 else random.randint(0, value)
            value, sign = value - term, "-"
        terms.append(f"{sign} {term}")
        values.append(value)
    return _Made(" ".join(terms), "", tuple(map(str, values)), "")


_MAKERS: dict[str, _Maker] = {
    "passkey": _passkey,
    "number_string": _number_string,
    "kv_retrieval": _kv_retrieval,
    "math_calc": _math_calc,
}
