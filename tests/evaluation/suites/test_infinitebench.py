"""InfiniteBench: collected texts asked in the release's words, made texts with the key where they say."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.metrics import metric
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.infinitebench import samples as read_samples
from emllm.evaluation.suites.infinitebench_made import samples as make_samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task, tasks_of

TASKS = {task.name.removeprefix("infinitebench/"): task for task in tasks_of("infinitebench")}
MADE = ["code_run", "kv_retrieval", "math_calc", "math_find", "number_string", "passkey"]
#: Of the made ones, those whose file is read from the hub where there is no data folder.
ON_HUB = ["code_run", "math_find"]
COLLECTED = sorted(set(TASKS) - set(MADE))
BOOKS = ["longbook_choice_eng", "longbook_qa_chn", "longbook_qa_eng"]
OPTIONS = ["parse", "load", "dump", "read_all"]

#: Prompt for the text TEXT, input of the record and answer length, as the release has them for open models.
OFFICIAL = {
    "code_debug": (
        "Following is a Python code where exactly one of the functions/methods has a deliberate error"
        " that makes"
        " it crash.\n\nTEXT\n\nOptions:\nA. parse\nB. load\nC. dump\nD. read_all\n\nThe correct option is:",
        "Which funtion has deliberate error?",
        5,
    ),
    "code_run": (
        "There is a function called func_7 in the following Python code.\n\nTEXT\n\nPlease compute the"
        " exact value"
        " of func_7(-3). The value of func_7(-3) is",
        "Please give me the exact number of the return value of func_7(-3). Your response should end with the"
        " sentence 'The return value is:'.",
        5,
    ),
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\nTEXT\n\nQuestion: Who?\nA. parse\nB. load\nC."
        " dump\nD. read_all"
        "\n\nThe letter of the correct answer is",
        "Who?",
        40,
    ),
    "longbook_qa_eng": (
        "Read the book and answer the question. Be very concise in your answer.\n\nTEXT\n\nQuestion:"
        " Who?\nAnswer:",
        "Who?",
        40,
    ),
    "longbook_qa_chn": ("阅读以下书籍然后回答问题。\n\nTEXT\n\n问题：谁?\n答案：", "谁?", 40),
    "longbook_sum_eng": ("Summarize the book below.\n\nTEXT\n\nSummary:", "", 1200),
    "longdialogue_qa_eng": (
        "Below is a dialogue script where one random occurrence of a character name is replaced with"
        ' "$$MASK$$", and you should try to guess who that character is.\n\nTEXT\n\nThe name that has'
        " been replaced"
        " with $$MASK$$ is likely",
        'Which character is most likely "$$MASK$$"? Just say the name.',
        40,
    ),
    "math_find": (
        "What is the second largest number in the following list?\n\nTEXT\n\nYou should answer with only one"
        " number, no other words. The second largest number of the list is:",
        "You should answer with only one number, no other words. The second largest number of the list is: ",
        3,
    ),
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I"
        " will quiz"
        " you about the important information.\n\nTEXT\n\nWhat is the pass key?\n\nThe pass key is",
        "",
        6,
    ),
    "number_string": (
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you"
        " about the"
        " important information there.\n\nTEXT\n\nWhat is the sequence of digits?\n\nThe sequence of"
        " digits is",
        "",
        12,
    ),
    "kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\nTEXT\n\n\n"
        'Key: "QUERY"\nThe value associated with the specified key is:',
        "",
        50,
    ),
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues:"
        " [1, 4, 8]"
        "\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: TEXT\nValues:",
        "",
        30000,
    ),
}


def quarter_words(text: str) -> int:
    """A stand-in for a tokenizer: a token is four characters."""
    return -(-len(text) // 4)


def record(name: str, **changes: Any) -> dict[str, Any]:
    choice = name in ("code_debug", "longbook_choice_eng")
    own = {
        "context": "TEXT",
        "input": OFFICIAL[name][1],
        "answer": ["dump"],
        "options": OPTIONS if choice else [],
    }
    return own | changes


def written(folder: Path, task: Task, *lines: dict[str, Any]) -> SampleNeeds:
    path = folder / task.source["file"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return SampleNeeds(folder, quarter_words)


def made(name: str, *, lengths: Sequence[int] = (4096,), num_samples: int = 5, seed: int = 0) -> list[Sample]:
    needs = SampleNeeds(None, quarter_words, lengths=tuple(lengths), num_samples=num_samples, seed=seed)
    return list(make_samples(TASKS[name], needs))


def whole_prompt(sample: Sample, text: str) -> str:
    (question,) = sample.questions
    return sample.before + text + question.text + question.answer_begins


def test_all_twelve_tasks_are_there_with_their_answer_lengths() -> None:
    assert {name: task.answer_tokens for name, task in TASKS.items()} == {
        name: tokens for name, (_, _, tokens) in OFFICIAL.items()
    }


@pytest.mark.parametrize("name", COLLECTED)
def test_a_collected_text_is_asked_in_the_words_of_the_release(name: str, tmp_path: Path) -> None:
    needs = written(tmp_path, TASKS[name], record(name))
    (sample,) = read_samples(TASKS[name], needs)
    assert whole_prompt(sample, sample.text) == OFFICIAL[name][0]
    assert sample.questions[0].answer_begins


def test_an_answer_begins_at_the_last_of_its_first_words(tmp_path: Path) -> None:
    task = TASKS["longbook_qa_eng"]
    (sample,) = read_samples(task, written(tmp_path, task, record(task.name[14:], input="Answer: who?")))
    (question,) = sample.questions
    assert (question.text, question.answer_begins) == ("\n\nQuestion: Answer: who?\n", "Answer:")


@pytest.mark.parametrize("name", COLLECTED)
def test_the_reference_itself_is_a_full_answer(name: str, tmp_path: Path) -> None:
    (sample,) = read_samples(TASKS[name], written(tmp_path, TASKS[name], record(name)))
    for answered in sample.questions[0].answers:
        assert metric(TASKS[name].metric)(answered, sample.questions[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", MADE)
def test_the_made_reference_is_a_full_answer(name: str) -> None:
    for sample in made(name):
        (question,) = sample.questions
        assert metric(TASKS[name].metric)(f"{', '.join(question.answers)}.", question) == 1.0


@pytest.mark.parametrize("name", MADE)
def test_a_made_text_is_asked_in_the_words_of_the_release(name: str) -> None:
    sample = made(name)[2 if name == "math_find" else 0]  # the one that the official prompt above is of
    query = sample.questions[0].query
    wanted = OFFICIAL[name][0].replace("QUERY", query)
    if name == "code_run":
        call = re.findall(r"func_[0-9]+\(-?[0-9]+\)", query)[0]
        wanted = wanted.replace("func_7(-3)", call).replace("func_7 ", call.partition("(")[0] + " ")
    assert whole_prompt(sample, "TEXT") == wanted
    assert sample.questions[0].answer_begins and sample.text not in sample.questions[0].text


@pytest.mark.parametrize("answer", ["dump", ["dump"], ["dump", "C"]])
@pytest.mark.parametrize("name", ["code_debug", "longbook_choice_eng"])
def test_a_choice_is_answered_by_its_option_and_its_letter(name: str, answer: Any, tmp_path: Path) -> None:
    (sample,) = read_samples(TASKS[name], written(tmp_path, TASKS[name], record(name, answer=answer)))
    assert sample.questions[0].answers == ("dump", "C")
    assert sample.questions[0].facts == {"choices": OPTIONS, "letter": "C"}


def test_a_number_is_a_reference_as_it_is_written(tmp_path: Path) -> None:
    task = TASKS["math_find"]
    lines = [record("math_find", answer=answer) for answer in (49.5, [49.5], ["49.5"])]
    found = read_samples(task, written(tmp_path, task, *lines))
    assert {sample.questions[0].answers for sample in found} == {("49.5",)}


@pytest.mark.parametrize("name", BOOKS)
def test_a_book_is_read_once_for_all_its_questions(name: str, tmp_path: Path) -> None:
    books = ["One.", "Two.", "One."]
    lines = [record(name, context=book, input=f"Q{idx}?") for idx, book in enumerate(books)]
    found = list(read_samples(TASKS[name], written(tmp_path, TASKS[name], *lines)))
    assert [(sample.sample_id, sample.text) for sample in found] == [
        (f"{name}-0", "One."),
        (f"{name}-1", "Two."),
    ]
    assert [[question.query for question in sample.questions] for sample in found] == [
        ["Q0?", "Q2?"],
        ["Q1?"],
    ]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("code_run", {"input": "What does it return?"}),
        ("code_debug", {"answer": ["nothing"]}),
        ("math_find", {"input": "What?"}),
    ],
)
def test_a_record_of_another_kind_is_told_by_its_number(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    needs = written(tmp_path, TASKS[name], record(name), record(name, **changes))
    with pytest.raises(SourceError, match=f"infinitebench/{name}, record 2"):
        list(read_samples(TASKS[name], needs))


@pytest.mark.parametrize("name", MADE)
@given(length=st.integers(1024, 20_000), seed=st.integers(0, 2**32))
def test_a_made_text_has_the_wanted_length(name: str, length: int, seed: int) -> None:
    for sample in made(name, lengths=[length], num_samples=2, seed=seed):
        assert quarter_words(sample.text) == pytest.approx(length, rel=0.05)


@pytest.mark.parametrize("name", MADE)
def test_without_wanted_lengths_a_text_is_as_long_as_its_authors_made_it(name: str, tmp_path: Path) -> None:
    (sample,) = make_samples(TASKS[name], SampleNeeds(tmp_path, quarter_words, num_samples=1))
    assert sample.facts["length"] == TASKS[name].source["length"]
    assert quarter_words(sample.text) == pytest.approx(TASKS[name].source["length"], rel=0.05)


@pytest.mark.parametrize("name", MADE)
def test_samples_depend_on_seed_length_and_index_only(name: str) -> None:
    both = made(name, lengths=[2048, 4096])
    assert both[5:] == made(name, lengths=[4096])
    assert len({sample.sample_id for sample in both}) == len({sample.text for sample in both}) == 10
    assert not {sample.text for sample in both} & {sample.text for sample in made(name, seed=1)}


@pytest.mark.parametrize("name", ["passkey", "number_string"])
@given(num_samples=st.integers(1, 130), seed=st.integers(0, 99))
def test_a_key_stands_in_one_line_at_the_stated_depth(name: str, num_samples: int, seed: int) -> None:
    for sample in made(name, lengths=[2048], num_samples=num_samples, seed=seed):
        (key,) = sample.questions[0].answers
        lines = sample.text.splitlines()
        (at,) = [number for number, line in enumerate(lines) if key in line]
        assert 100 * at / (len(lines) - 1) == pytest.approx(sample.facts["depth"], abs=0.06)
        assert sample.questions[0].facts["depth"] == sample.facts["depth"]


@given(num_samples=st.integers(2, 130) | st.just(590))
def test_places_are_even_and_the_ends_are_among_them(num_samples: int) -> None:
    depths = [sample.facts["depth"] for sample in made("passkey", lengths=[8192], num_samples=num_samples)]
    assert (depths[0], depths[-1]) == (0.0, 100.0) and depths == sorted(depths)
    counts = [depths.count(depth) for depth in set(depths)]
    assert len(counts) == min(num_samples, 59) and max(counts) - min(counts) <= (num_samples % 59 > 0)


@given(num_samples=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_value_stands_once_in_the_json_and_the_key_moves_on(num_samples: int, seed: int) -> None:
    for idx, sample in enumerate(made("kv_retrieval", lengths=[1024], num_samples=num_samples, seed=seed)):
        (question,) = sample.questions
        pairs = json.loads(sample.text.removeprefix("JSON data:\n"))
        assert pairs[question.query] == question.answers[0]
        assert sample.text.count(question.answers[0]) == sample.text.count(question.query) == 1
        at = list(pairs).index(question.query)
        assert at == idx * len(pairs) // num_samples
        assert sample.facts["depth"] == pytest.approx(100 * at / len(pairs), abs=0.06)


@given(seed=st.integers(0, 2**32))
def test_the_values_of_an_expression_are_its_running_sums_between_0_and_99(seed: int) -> None:
    (sample,) = made("math_calc", lengths=[1024], num_samples=1, seed=seed)
    first, *steps = sample.text.replace("+ ", "+").replace("- ", "-").split(" ")
    values = [int(first)]
    for step in steps:
        values.append(values[-1] + int(step))
    assert tuple(map(str, values)) == sample.questions[0].answers
    assert set(values) <= set(range(100))


@pytest.mark.parametrize("name", MADE)
def test_the_authors_file_is_read_where_it_is_there_unless_a_length_is_wanted(
    name: str, tmp_path: Path
) -> None:
    asked = {
        "kv_retrieval": '\nKey: "QUERY"\nThe value associated with the specified key is: ',
        "math_calc": "The value of the numerical expression is: ",
        "number_string": "What is the sequence of digits?",
        "passkey": "What is the pass key?",
    }
    context = "7 + 2 - 1" if name == "math_calc" else "TEXT"
    answer = [9, 8] if name == "math_calc" else ["1234"]
    line = record(name, context=context, input=asked.get(name, OFFICIAL[name][1]), answer=answer)
    needs = written(tmp_path, TASKS[name], line, line)
    found = list(make_samples(TASKS[name], needs))
    assert [sample.sample_id for sample in found] == [f"{name}-0", f"{name}-1"]
    assert whole_prompt(found[0], "TEXT") == OFFICIAL[name][0]
    assert found[0].text == context
    assert found[0].questions[0].answers == (("7", "9", "8") if name == "math_calc" else ("1234",))
    longer = list(make_samples(TASKS[name], dataclasses.replace(needs, lengths=(2048,), num_samples=2)))
    assert [sample.facts["length"] for sample in longer] == [2048, 2048]


@pytest.mark.parametrize("name", MADE)
def test_without_a_data_folder_the_hub_is_asked_only_where_the_task_says_so(name: str, monkeypatch) -> None:
    class HubError(Exception):
        pass

    def ask(*args: Any, **options: Any) -> None:
        raise HubError

    monkeypatch.setattr("emllm.evaluation.suites.files._hub_file_records", ask)
    found = make_samples(TASKS[name], SampleNeeds(None, quarter_words, num_samples=1))
    if name in ON_HUB:
        with pytest.raises(HubError):
            next(found)
    else:
        assert next(found).facts["length"] == TASKS[name].source["length"]


@given(seed=st.integers(0, 2**32))
def test_the_number_asked_for_is_the_one_that_a_sort_finds(seed: int) -> None:
    found = made("math_find", lengths=[1024], num_samples=14, seed=seed)
    for sample in found:
        numbers = json.loads(sample.text)
        (question,) = sample.questions
        (wanted,) = re.findall(r"The (.*) of the list", question.query)
        by_size = sorted(set(numbers))
        middle = sorted(numbers)[(len(numbers) - 1) // 2 : len(numbers) // 2 + 1]
        expected = {
            "median number": sum(middle) / len(middle),
            **dict(
                zip(
                    ("smallest number", "second smallest number", "third smallest number"),
                    by_size[:3],
                    strict=True,
                )
            ),
            **dict(
                zip(
                    ("largest number", "second largest number", "third largest number"),
                    by_size[:-4:-1],
                    strict=True,
                )
            ),
        }
        assert float(question.answers[0]) == expected[wanted] and not question.answers[0].endswith(".0")
        assert by_size[0] >= 0 and by_size[-1] <= 99
    assert len({sample.questions[0].query for sample in found}) == 7


@given(seed=st.integers(0, 2**32))
def test_the_value_of_a_call_is_what_python_returns_after_the_stated_number_of_calls(seed: int) -> None:
    for sample, num_calls in zip(made("code_run", lengths=[2048], seed=seed), (2, 4, 6, 8, 10), strict=True):
        (question,) = sample.questions
        functions: dict[str, Any] = {}
        exec(sample.text.partition("functions_module.py:")[2], functions)
        call = re.findall(r"func_[0-9]+\(-?[0-9]+\)", question.query)[0]
        assert question.answers == (str(eval(call, functions)),)
        assert len(question.facts["depths"]) == num_calls
        first = f"def {call.partition('(')[0]}(x)"
        place = 100 * sample.text.index(first) / len(sample.text)
        assert question.facts["depths"][0] == pytest.approx(place, abs=0.06)


def test_five_of_ten_digits_repeat_the_digit_before_them() -> None:
    for sample in made("number_string", num_samples=30):
        (key,) = sample.questions[0].answers
        assert len(key) == 10 and sum(one == other for one, other in pairwise(key)) >= 5


@pytest.mark.parametrize("name", MADE)
def test_a_length_without_room_for_one_line_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"infinitebench/{name}: a length must be >= .* got 0"):
        made(name, lengths=[0])
