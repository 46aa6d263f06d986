"""InfiniteBench (Zhang et al., 2024), the six tasks that its authors made: to any length, from a seed.

Where the authors' own file is to be had and no length is wanted, it is read instead: from the data folder or,
without one, from the hub where ``[source]`` names it.

Source: ``data/construct_synthetic_dataset.py`` of the released code, commit 88b3daa. Keys are spread over the
text as there: `passkey` and `number_string` over at most 59 places from its beginning to its end, several
samples a place, `kv_retrieval` over one place a sample. `math_find` asks for seven kinds of
number of a list, `code_run` for the value of a function in a chain of 2, 4, 6, 8 or 10 that call one another.

**Deviations.** The authors fix the number of lines, pairs or numbers; here a wanted length in tokens does.
The key-value pairs are drawn here, not taken from another benchmark's generator. The values of `math_calc`
begin with the first number, as the prompt's examples do; the release leaves it out of the reference and of
the answers of one model only, and it is put before the values of the authors' file. The seven questions of
`math_find` and the five lengths of chains take turns from sample to sample; the release has them one after
another. A median that is a whole number is written as one. The functions have names of four digits, as in
the released file; the released code makes 550 of them, that file has many more.

This module does not know how answers are scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from random import Random
from statistics import median
from typing import Any
from uuid import UUID

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.answer_prefix import split_answer_prefix
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.files import has_records, records
from emllm.evaluation.suites.infinitebench import prompt_fields, samples_of
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
_MOST_PLACES = 59
_LARGEST = 99
#: What `math_find` asks for, in turn: of the last six a number of rank 1, 2 or 3, of those that differ.
_FINDS = (
    "median number",
    *("largest number", "second largest number", "third largest number"),
    *("smallest number", "second smallest number", "third smallest number"),
)
_PLACES = 3
#: Calls of `code_run`, in turn, and what a function adds to what it calls, at least and at most.
_CHAINS = (2, 4, 6, 8, 10)
_ADDED = (-12, 17)
#: Kinds whose texts are not all alike: how many there are, in turn.
_SHAPES = {"code_run": len(_CHAINS)}
#: A shorter list or module makes no sense.
_LEAST_UNITS = {"math_find": 10, "code_run": max(_CHAINS)}
#: Sizes of the two trial texts from which the tokens of one unit are known.
_TRIAL_UNITS = (32, 288)


@dataclass(frozen=True)
class _Made:
    """A made text and what is asked about it; `depths` are the places of the answer, from 0 to 1."""

    text: str
    asked: str
    answers: tuple[str, ...]
    query: str
    depths: tuple[float, ...] = ()


#: Makes a text of so many units, for sample ``idx`` of ``num_samples``.
_Maker = Callable[[Random, int, int, int], _Made]


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """The authors' samples, or `needs.num_wanted` of each length or of the task's own.

    Raises:
        ConfigError: a length is too short for the task.
        SourceError: the authors' file holds a record that is none of this task.
    """
    if not needs.lengths and has_records(task, needs):
        read = (_whole(task, record) for record in records(task, needs))
        yield from islice(samples_of(task, read), needs.limit)
        return
    kind = task.source["kind"]
    make = _MAKERS[kind]
    for length in needs.lengths or (task.source["length"],):
        units = [_num_units(task, needs, make, length, idx) for idx in range(_SHAPES.get(kind, 1))]
        for idx in range(needs.num_wanted):
            made = make(_random(task, needs, length, idx), units[idx % len(units)], idx, needs.num_samples)
            yield _sample(task, made, length, idx)


def _whole(task: Task, record: dict[str, Any]) -> dict[str, Any]:
    """A record of the authors' file; of `math_calc` with the first value too."""
    if task.source["kind"] != "math_calc" or not isinstance(record.get("answer"), list):
        return record
    return {**record, "answer": [*str(record.get("context")).split()[:1], *record["answer"]]}


def _sample(task: Task, made: _Made, length: int, idx: int) -> Sample:
    before, after = task.split_prompt(**prompt_fields(task, {"input": made.asked}))
    text, answer_begins = split_answer_prefix(task, after)
    depth = placed([100 * depth for depth in made.depths])
    question = Question(text, made.answers, made.query, answer_begins, facts=depth)
    facts = {"length": length, **depth}
    return Sample(f"{task.source['kind']}-{length}-{idx}", before, made.text, (question,), facts)


def _random(task: Task, needs: SampleNeeds, length: int, idx: int) -> Random:
    return Random(f"{needs.seed} {task.name} {length} {idx}")


def _num_units(task: Task, needs: SampleNeeds, make: _Maker, length: int, idx: int) -> int:
    """Units of a text of that length: a text grows by the same number of tokens with each, on average.

    Args:
        idx: of the sample, or of another with texts of the same kind.
    """
    few, many = _TRIAL_UNITS
    trial = _random(task, needs, length, -1)
    few_tokens, many_tokens = (needs.count_tokens(make(trial, units, idx, 1).text) for units in _TRIAL_UNITS)
    unit_tokens = (many_tokens - few_tokens) / (many - few)
    rest_tokens = few_tokens - few * unit_tokens
    num_units = round((length - rest_tokens) / unit_tokens)
    least = _LEAST_UNITS.get(task.source["kind"], 1)
    if num_units < least:
        shortest = round(rest_tokens + least * unit_tokens)
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
    return _Made(text, asked, (key,), asked, (before / num_units,))


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
    return _Made(f"JSON data:\n{json.dumps(dict(pairs))}", asked, (value,), key, (at / num_units,))


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


def _math_find(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """A list of numbers from 0 to 99, its upper end lower or its lower end higher where that is asked for."""
    wanted = _FINDS[idx % len(_FINDS)]
    is_high = wanted.endswith("largest number") or (wanted == "median number" and random.random() < 0.5)
    numbers: list[int] = []
    while len(set(numbers)) < _PLACES:
        low = 0 if is_high else random.randint(0, _LARGEST // 5)
        high = random.randint(_LARGEST * 4 // 5, _LARGEST) if is_high else _LARGEST
        numbers = [random.randint(low, high) for _ in range(num_units)]
    asked = f"You should answer with only one number, no other words. The {wanted} of the list is: "
    return _Made(str(numbers), asked, (_found_number(numbers, wanted),), asked)


def _found_number(numbers: Sequence[int], wanted: str) -> str:
    """What is asked for; the second largest is the largest of those below the largest."""
    if wanted == "median number":
        middle = median(numbers)
        return str(int(middle) if middle == int(middle) else middle)
    ranked = sorted(set(numbers), reverse=wanted.endswith("largest number"))
    place = {"second": 1, "third": 2}.get(wanted.partition(" ")[0], 0)
    return str(ranked[place])


def _code_run(random: Random, num_units: int, idx: int, num_samples: int) -> _Made:
    """Functions that add a number to what another returns, in levels; those of the last level call none."""
    num_levels = _CHAINS[idx % len(_CHAINS)]
    digits = max(4, len(str(num_units + num_units // 9)))
    names = random.sample(range(10 ** (digits - 1), 10**digits), num_units)
    levels = [
        names[level * num_units // num_levels : (level + 1) * num_units // num_levels]
        for level in range(num_levels)
    ]
    called = {name: random.choice(after) for level, after in pairwise(levels) for name in level}
    added = {name: random.randint(*_ADDED) for name in names}
    functions = {name: _function(name, called.get(name), added[name]) for name in sorted(names)}
    text = "\nHere is the content of functions_module.py:\n\n" + "\n".join(functions.values())
    argument = random.randint(-10, 10)
    chain = [random.choice(levels[0])]
    while chain[-1] in called:
        chain.append(called[chain[-1]])
    call = f"func_{chain[0]}({argument})"
    asked = (
        f"Please give me the exact number of the return value of {call}. Your response should end with the "
        "sentence 'The return value is:'."
    )
    value = argument + sum(added[name] for name in chain)
    places = tuple(text.index(functions[name]) / len(text) for name in chain)
    return _Made(text, asked, (str(value),), asked, places)


def _function(name: int, called: int | None, added: int) -> str:
    """Its two lines; nothing stands there for 0 that is added."""
    inner = "x" if called is None else f"func_{called}(x)"
    change = f" {'+' if added > 0 else '-'} {abs(added)}" if added else ""
    return f"def func_{name}(x):\n    return {inner}{change}\n"


_MAKERS: dict[str, _Maker] = {
    "passkey": _passkey,
    "number_string": _number_string,
    "kv_retrieval": _kv_retrieval,
    "math_calc": _math_calc,
    "math_find": _math_find,
    "code_run": _code_run,
}
