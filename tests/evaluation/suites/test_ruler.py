"""RULER's tasks: made samples hold exactly what their answers say, at the length and in the form of RULER."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.made import prompt_tokens
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.suites.ruler import samples
from emllm.evaluation.suites.ruler_counts import zeta
from emllm.evaluation.task import Task, parse_task, tasks_of

TASKS = {task.name.partition("/")[2]: task for suite in ("ruler", "ruler-files") for task in tasks_of(suite)}
NEEDLES = sorted(name for name in TASKS if name.startswith("niah") and "official" not in name)
MADE = [*NEEDLES, "vt", "cwe", "fwe"]
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def count(text: str) -> int:
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


def made(name: str, *, data: Path | None = None, lengths=(4096,), num_samples: int = 2, seed: int = 0):
    needs = SampleNeeds(data, count, lengths=lengths, num_samples=num_samples, seed=seed)
    return list(samples(TASKS[name], needs))


def whole_prompt(sample: Sample) -> str:
    (question,) = sample.questions
    return sample.before + sample.text + question.text + question.answer_begins


@pytest.fixture()
def stories(tmp_path: Path) -> Path:
    """A data folder with SQuAD, HotpotQA and FairytaleQA in the forms in which they are published."""
    (tmp_path / "ruler").mkdir()
    (tmp_path / "fairytaleqa").mkdir()
    articles, hotpot, tales = [], [], []
    for one in range(6):
        texts = [
            f"In article {one} paragraph {two} a fox number {one}-{two} ran. " + "It ran. " * 40
            for two in range(9)
        ]
        asked = [
            {
                "question": f"Which fox ran in {one} {two}?",
                "answers": [{"text": f"{one}-{two}"}],
                "is_impossible": False,
            }
            for two in range(9)
        ]
        asked[0] |= {"is_impossible": True, "answers": []}
        paragraphs = [
            {"context": text, "qas": [question]} for text, question in zip(texts, asked, strict=True)
        ]
        articles.append({"title": f"Article {one}", "paragraphs": paragraphs})
        hotpot.append(
            {
                "question": f"Who of {one}?",
                "answer": f"{one}-3",
                "context": [[f"Title {one}-{two}", [text]] for two, text in enumerate(texts)],
                "supporting_facts": [[f"Title {one}-3", 0]],
            }
        )
        questions = [
            {
                "question": f"Which of {one}?",
                "answers": [f"{one}-4"],
                "cor_section": "5",
                "ex_or_im": "explicit",
            },
            {"question": "Far?", "answers": [f"{one}-4"], "cor_section": "2, 3", "ex_or_im": "implicit"},
        ]
        tales.append({"name": str(one), "sections": texts, "qas": questions})
    (tmp_path / "ruler" / "squad.json").write_text(json.dumps({"data": articles}))
    (tmp_path / "ruler" / "hotpotqa.json").write_text(json.dumps(hotpot))
    for part in ("val", "train"):
        (tmp_path / f"fairytaleqa/fairytaleqa_{part}.jsonl").write_text("\n".join(map(json.dumps, tales)))
    return tmp_path


def test_all_thirteen_tasks_of_ruler_are_there():
    assert {task.name for task in tasks_of("ruler")} == {f"ruler/{name}" for name in (*MADE, "qa_1", "qa_2")}
    assert len({*MADE, "qa_1", "qa_2"}) == 13
    tokens = {name: TASKS[name].answer_tokens for name in ("niah_single_1", "vt", "cwe", "fwe", "qa_1")}
    assert tokens == {"niah_single_1": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32}


@pytest.mark.parametrize("name", MADE)
def test_a_sample_depends_on_seed_length_and_index_alone(name):
    both = made(name, num_samples=2, lengths=(4096, 6000))
    assert made(name, num_samples=1, lengths=(6000,)) == [both[2]]
    assert len({sample.text for sample in both}) == 4
    assert made(name, num_samples=1, seed=1)[0].text != both[0].text


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("length", [4096, 10_000])
def test_the_wanted_length_is_reached_and_never_exceeded(name, length):
    for sample in made(name, lengths=(length,)):
        tokens = prompt_tokens(sample, count) + TASKS[name].answer_tokens
        assert 0.95 * length <= tokens <= length
        assert sample.facts["length"] == length


def test_without_wanted_lengths_rulers_own_are_made():
    found = [sample.facts["length"] for sample in made("niah_single_1", lengths=(), num_samples=1)]
    assert found == [4096, 8192, 16384, 32768, 65536]


@pytest.mark.parametrize("name", NEEDLES)
def test_each_answer_stands_once_in_a_needle_with_a_key_that_is_asked_for(name):
    for sample in made(name, num_samples=4):
        (question,) = sample.questions
        kind = TASKS[name].source["type_needle_v"]
        needles = re.findall(rf"One of the special magic {kind} for (\S+) is: (\S+)\.", sample.text)
        asked = re.findall(r"for (.*) mentioned", question.text)[0].replace(", and ", ", ").split(", ")
        assert sorted(question.answers) == sorted(value for key, value in needles if key in asked)
        assert all(sample.text.count(answer) == 1 for answer in question.answers)
        values = [value for _, value in needles]
        assert len(set(values)) == len(values)
        keys = Counter(key for key, _ in needles)
        assert set(keys.values()) == {TASKS[name].source.get("num_needle_v", 1)}


@pytest.mark.parametrize(
    ("name", "num_needles", "num_answers"),
    [
        ("niah_single_1", 1, 1),
        ("niah_single_2", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multivalue", 4, 4),
        ("niah_multiquery", 4, 4),
    ],
)
def test_as_many_needles_are_hidden_as_ruler_hides(name, num_needles, num_answers):
    for sample in made(name):
        assert sample.text.count("One of the special magic") == num_needles
        assert len(sample.questions[0].answers) == num_answers


@pytest.mark.parametrize("name", NEEDLES)
def test_the_stated_depth_is_where_the_needle_stands(name):
    for sample in made(name, num_samples=3):
        (question,) = sample.questions
        stated = question.facts.get("depths") or [question.facts["depth"]]
        for answer, depth in zip(question.answers, stated, strict=True):
            assert 100 * sample.text.index(answer) / len(sample.text) == pytest.approx(depth, abs=2)


def test_a_made_prompt_of_multikey_3_has_the_form_of_the_official_ones(shared_data):
    def form(prompt: str) -> set[str]:
        return {re.sub(UUID, "<uuid>", line) for line in prompt.split("\n")}

    needs = SampleNeeds(shared_data, count)
    official = list(samples(TASKS["niah_multikey_3_official_4096"], needs))
    ours = made("niah_multikey_3")
    assert len(official) == 100
    assert form(whole_prompt(official[0])) == form(whole_prompt(ours[0]))
    for sample in official:
        assert sample.text.count(sample.questions[0].answers[0]) == 1
        assert sample.questions[0].facts["depth"] == pytest.approx(
            100 * sample.text.index(sample.questions[0].answers[0]) / len(sample.text), abs=2
        )


def test_an_official_prompt_is_taken_apart_without_loss(tmp_path):
    task = TASKS["niah_multikey_3_official_4096"]
    ours = made("niah_multikey_3", num_samples=1)[0]
    record = {"index": 7, "input": whole_prompt(ours), "outputs": list(ours.questions[0].answers)}
    (tmp_path / "ruler").mkdir()
    (tmp_path / "ruler/niah_multikey_3_4096.jsonl").write_text(json.dumps(record))
    (found,) = samples(task, SampleNeeds(tmp_path, count))
    assert found.sample_id == "niah_multikey_3_official_4096-7"
    assert (found.before, found.text) == (ours.before, ours.text)
    assert found.questions[0].text == ours.questions[0].text
    assert found.questions[0].answer_begins == ours.questions[0].answer_begins


def test_an_official_prompt_of_another_form_is_refused(tmp_path):
    (tmp_path / "ruler").mkdir()
    record = {"index": 3, "input": "Something else.", "outputs": ["x"]}
    (tmp_path / "ruler/niah_multikey_3_4096.jsonl").write_text(json.dumps(record))
    with pytest.raises(SourceError, match="record 3 is not of the task's form"):
        list(samples(TASKS["niah_multikey_3_official_4096"], SampleNeeds(tmp_path, count)))


def executed(text: str) -> dict[str, int]:
    """Values of all variables, from executing the assignments of a text line by line."""
    values: dict[str, int] = {}
    for target, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+) *$", text, re.MULTILINE):
        values[target] = int(source) if source.isdecimal() else values[source]
    return values


@pytest.mark.parametrize("num_chains", [1, 3])
def test_a_chain_resolves_to_the_answers_when_it_is_executed(num_chains):
    task = TASKS["vt"]
    task = Task(**{**vars(task), "source": {**task.source, "num_chains": num_chains}})
    for sample in samples(task, SampleNeeds(None, count, lengths=(4096,), num_samples=4)):
        (question,) = sample.questions
        (asked,) = re.findall(r"assigned the value (\d+)", question.text)
        values = executed(sample.text)
        assert len(values) == 5 * num_chains
        assert sorted(question.answers) == sorted(name for name in values if values[name] == int(asked))
        assert f"5 variables are assgined the value {asked}, they are: " in question.answer_begins


def test_the_solved_example_of_a_chain_is_right_and_short():
    (sample, *_) = made("vt")
    example, prompt, _ = sample.before.rpartition("Memorize and track")
    values = executed(example)
    answers = example.rstrip().rpartition("they are: ")[2].split()
    assert prompt and sorted(values) == sorted(answers)
    assert set(values.values()) == {int(re.findall(r"assigned the value (\d+)", example)[0])}
    assert count(example) <= 520


@pytest.mark.parametrize(("length", "often", "rarely"), [(4096, 30, 3), (3000, 6, 1)])
def test_the_common_words_are_what_counting_gives(length, often, rarely):
    for sample in made("cwe", lengths=(length,)):
        words = re.findall(r"(\d+)\. (\S+)", sample.text)
        assert [int(number) for number, _ in words] == list(range(1, len(words) + 1))
        counts = Counter(word for _, word in words)
        assert {word for word, _ in counts.most_common(10)} == set(sample.questions[0].answers)
        assert set(counts.values()) == {often, rarely}
        assert not set(re.findall(r"\d\. (\S+)", sample.before)) & set(counts)


def test_the_frequent_coded_words_are_what_counting_gives_in_this_order():
    for sample in made("fwe", num_samples=4):
        counts = Counter(sample.text.split())
        ranked = [word for word, _ in counts.most_common(4)]
        assert ranked == ["...", *sample.questions[0].answers]
        assert len({counts[word] for word in ranked}) == 4
        assert counts.most_common(5)[4][1] < counts[ranked[3]]


def test_the_frequencies_of_coded_words_follow_zeta():
    assert zeta(2.0) == pytest.approx(1.6449340668482264, rel=1e-12)
    assert zeta(3.0) == pytest.approx(1.2020569031595942, rel=1e-12)
    (sample, *_) = made("fwe", lengths=(20_000,))
    counts = [number for _, number in Counter(sample.text.split()).most_common(4)]
    assert [counts[0] / number for number in counts] == pytest.approx([1, 4, 9, 16], rel=0.05)


@pytest.mark.parametrize("name", ["qa_1", "qa_2", "qa_fairytale"])
def test_a_question_stands_with_its_document_among_others(name, stories):
    for sample in made(name, data=stories, lengths=(4096,), num_samples=4):
        (question,) = sample.questions
        documents = re.findall(r"Document (\d+):\n(.*)", sample.text)
        numbers = [int(number) for number, _ in documents]
        assert numbers == list(range(1, len(documents) + 1))
        holding = [
            text for text in sample.text.split("Document ") if f"number {question.answers[0]} ran" in text
        ]
        assert len(holding) == 1
        assert question.query in question.text
        assert question.facts["depth"] == pytest.approx(
            100 * sample.text.index(f"number {question.answers[0]} ran") / len(sample.text), abs=10
        )
        assert 0.9 * 4096 <= prompt_tokens(sample, count) + 32 <= 4096


def test_the_same_questions_are_asked_at_every_length(stories):
    found = made("qa_1", data=stories, lengths=(2048, 4096), num_samples=3)
    assert [sample.questions[0].query for sample in found[:3]] == [
        sample.questions[0].query for sample in found[3:]
    ]


def test_paragraphs_of_the_same_article_come_before_any_others(stories):
    for sample in made("qa_1", data=stories, lengths=(2048,), num_samples=4):
        (article,) = re.findall(r"ran in (\d) ", sample.questions[0].query)
        assert (
            set(re.findall(r"In article (\d)", sample.text)) <= {article}
            or sample.text.count(f"In article {article} ") == 9
        )


def test_hub_and_published_forms_of_squad_ask_the_same(stories):
    published = made("qa_1", data=stories, num_samples=3)
    articles = json.loads((stories / "ruler/squad.json").read_text())["data"]
    rows = [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {"text": [answer["text"] for answer in question["answers"]]},
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    (stories / "ruler/squad.json").write_text(json.dumps(rows))
    assert made("qa_1", data=stories, num_samples=3) == published


def test_more_documents_than_there_are_is_one_line_with_both_numbers(stories):
    with pytest.raises(ConfigError, match=r"qa_1-65536-0: 65504 tokens wanted, all there is makes \d+"):
        made("qa_1", data=stories, lengths=(65536,))


def test_a_missing_data_set_is_one_line_that_names_its_file(tmp_path):
    with pytest.raises(SourceError, match=r"^there is no ruler/squad.json in the data folder"):
        made("qa_1", data=tmp_path)


def test_records_of_another_form_are_refused(stories):
    (stories / "ruler/hotpotqa.json").write_text('[{"question": "Who?"}]')
    with pytest.raises(SourceError, match="not of the form hotpotqa"):
        made("qa_2", data=stories)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    text = 'suite="ruler"\nsamples="ruler"\nmetric="m"\nanswer_tokens=1\nprompt="p"\n[source]\nkind="x"'
    with pytest.raises(ConfigError, match="kind must be one of niah, vt, cwe, fwe, qa, official, got 'x'"):
        list(samples(parse_task("ruler/x", text), SampleNeeds(None, count)))


def test_fairytales_make_a_question_task_of_the_development_data(shared_data):
    for sample in made("qa_fairytale", data=shared_data, lengths=(8192,), num_samples=3):
        answers = [answer.lower() for answer in sample.questions[0].answers]
        assert any(answer in sample.text.lower() for answer in answers)
        assert 0.95 * 8192 <= prompt_tokens(sample, count) + 32 <= 8192


def test_essays_are_books_where_there_are_books(shared_data):
    (sample,) = made("niah_single_2", data=shared_data, num_samples=1)
    assert sample.facts["haystack"] == "books_eval"
    assert made("niah_single_2", num_samples=1)[0].facts["haystack"] == "python"
