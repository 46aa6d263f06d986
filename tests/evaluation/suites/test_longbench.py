"""LongBench and LongBench-E: the official prompts around every text, and facts that tables group by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import SourceError
from emllm.evaluation.metrics import metric
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites import samples_function
from emllm.evaluation.suites.files import records
from emllm.evaluation.suites.longbench import bucket, samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task, tasks_of
from emllm.evaluation.task_groups import groups_of

#: SHA-256 of LongBench/config/dataset2prompt.json and dataset2maxlen.json at commit 2e00731 of the release,
#: as JSON with sorted keys.
OFFICIAL_PROMPTS = "e7d865d712fe45e2455f5e864ac474001d7758d68d349e76ffbcdd382483358f"
OFFICIAL_LENGTHS = "39a79d9491ead3dc8bcea6dbd8b963b29248eb4c344dde1e176b0a58b4e758a9"
BARE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}

TASKS = tasks_of("longbench")
TASKS_E = tasks_of("longbench-e")
RECORD = {
    "_id": "a",
    "dataset": "hotpotqa",
    "context": "A {input} and {context} of {x",
    "input": "Who is {context}?",
    "answers": ["Bob", "Robert"],
    "length": 4000,
    "language": "en",
    "all_classes": None,
}


def short(task: Task) -> str:
    return task.name.partition("/")[2]


def needs(data: Path | None) -> SampleNeeds:
    return SampleNeeds(data=data, count_tokens=len)


def digest(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def one_task(name: str, *records: dict[str, object], folder: Path) -> list[Sample]:
    """The samples of a task whose data folder holds these records."""
    (folder / "longbench").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    suite, _, short_name = name.partition("/")
    file = f"{short_name}_e.jsonl" if suite == "longbench-e" else "longbench_v1_dev.jsonl"
    (folder / "longbench" / file).write_text(lines, encoding="utf-8")
    (task,) = (task for task in tasks_of(suite) if task.name == name)
    return list(samples(task, needs(folder)))


class TestTaskFiles:
    def test_the_21_prompts_are_the_official_ones(self) -> None:
        assert len(TASKS) == 21
        assert digest({short(task): task.prompt for task in TASKS}) == OFFICIAL_PROMPTS

    def test_the_21_answer_lengths_are_the_official_ones(self) -> None:
        assert digest({short(task): task.answer_tokens for task in TASKS}) == OFFICIAL_LENGTHS

    def test_prompts_agree_with_another_harness_but_for_known_differences(self) -> None:
        """lm-eval drops trailing space, and one line break before two inputs."""
        harness = pytest.importorskip("lm_eval.tasks.longbench._generate_config")
        for task in TASKS:
            theirs = harness.dataset2prompt[short(task)].replace("{question}", "{input}")
            ours = task.prompt.replace("}\n\n{input}", "}\n{input}")
            assert ours.rstrip() == theirs.replace("}\n\n{input}", "}\n{input}").rstrip()
            assert task.answer_tokens == harness.dataset2maxlen[short(task)]

    def test_tasks_of_the_longer_kind_are_the_13_with_the_same_prompts(self) -> None:
        normal = {short(task): task for task in TASKS}
        assert len(TASKS_E) == 13
        for task in TASKS_E:
            twin = normal[short(task)]
            for name in ("prompt", "metric", "answer_tokens", "stops", "is_chat", "category", "samples"):
                assert getattr(task, name) == getattr(twin, name), (task.name, name)
            assert task.source["member"] == f"data/{short(task)}_e.jsonl"

    def test_templates_and_stops_are_those_of_the_release(self) -> None:
        assert {short(task) for task in TASKS if not task.is_chat} == BARE
        assert {short(task) for task in TASKS if task.stops} == FIRST_LINE
        assert {task.stops for task in TASKS} == {(), ("\n",)}

    def test_every_task_names_a_metric_and_samples_that_exist(self) -> None:
        for task in TASKS + TASKS_E:
            assert callable(metric(task.metric)), task.name
            assert samples_function(task.samples) is samples

    def test_tasks_of_the_paper_are_all_but_count_in_english(self) -> None:
        chinese = {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}
        english = {task.name for task in TASKS if short(task) not in chinese}
        paper = groups_of(["longbench"])["longbench/paper"]
        assert len(paper) == 15
        assert set(paper) == english - {"longbench/passage_count"}


class TestSamples:
    def test_braces_in_texts_and_inputs_survive(self, tmp_path) -> None:
        (sample,) = one_task("longbench/hotpotqa", RECORD, folder=tmp_path)
        assert sample.text == RECORD["context"]
        assert sample.questions[0].text.endswith("\n\nQuestion: Who is {context}?\nAnswer:")
        assert sample.questions[0].query == "Who is {context}?"
        assert sample.questions[0].answers == ("Bob", "Robert")

    @given(text=st.text(alphabet="{}context input\n"), asked=st.text(alphabet="{}context input\n"))
    def test_any_record_fills_the_prompt_as_format_does(self, tmp_path_factory, text, asked) -> None:
        record = RECORD | {"context": text, "input": asked}
        (sample,) = one_task("longbench/hotpotqa", record, folder=tmp_path_factory.getbasetemp())
        (prompt,) = (task.prompt for task in TASKS if task.name == "longbench/hotpotqa")
        assert sample.before + sample.text + sample.questions[0].text == prompt.format(**record)

    def test_only_records_of_the_task_are_taken(self, tmp_path) -> None:
        mixed = [
            RECORD | {"_id": name, "dataset": name} for name in ("lcc", "hotpotqa", "hotpotqa_e", "hotpot")
        ]
        found = one_task("longbench/hotpotqa", *mixed, folder=tmp_path)
        assert [sample.sample_id for sample in found] == ["hotpotqa", "hotpotqa_e"]

    def test_a_repeated_id_is_made_unique(self, tmp_path) -> None:
        found = one_task("longbench/hotpotqa", RECORD, RECORD, RECORD | {"_id": "b"}, folder=tmp_path)
        assert [sample.sample_id for sample in found] == ["a", "a-2", "b"]

    def test_a_file_without_records_of_the_task_is_an_error(self, tmp_path) -> None:
        with pytest.raises(SourceError, match=r"^task longbench/lcc: .* no record of the data set 'lcc'$"):
            one_task("longbench/lcc", RECORD, folder=tmp_path)

    def test_a_record_that_lacks_a_field_is_an_error(self, tmp_path) -> None:
        with pytest.raises(SourceError, match=r"^task longbench/hotpotqa: record a has no length$"):
            one_task("longbench/hotpotqa", RECORD | {"length": None}, folder=tmp_path)

    def test_classes_are_a_fact_of_the_question(self, tmp_path) -> None:
        record = RECORD | {"dataset": "trec", "all_classes": ["Food", "Date"]}
        (sample,) = one_task("longbench/trec", record, folder=tmp_path)
        assert sample.questions[0].facts == {"all_classes": ["Food", "Date"]}

    @pytest.mark.parametrize(
        ("length", "group"),
        [(0, "0-4k"), (3999, "0-4k"), (4000, "4-8k"), (7999, "4-8k"), (8000, "8k+"), (10**6, "8k+")],
    )
    def test_the_longer_kind_groups_samples_by_length(self, tmp_path, length, group) -> None:
        assert bucket(length) == group
        record = RECORD | {"length": length}
        (longer,) = one_task("longbench-e/hotpotqa", record, folder=tmp_path)
        (normal,) = one_task("longbench/hotpotqa", record, folder=tmp_path)
        assert longer.facts == {"length": length, "language": "en", "bucket": group}
        assert normal.facts == {"length": length, "language": "en"}

    def test_the_own_file_of_a_task_goes_before_the_common_one(self, tmp_path) -> None:
        one_task("longbench/hotpotqa", RECORD, folder=tmp_path)
        own = json.dumps(RECORD | {"_id": "own"})
        (tmp_path / "longbench" / "hotpotqa.jsonl").write_text(own, encoding="utf-8")
        (task,) = (task for task in TASKS if task.name == "longbench/hotpotqa")
        assert [sample.sample_id for sample in samples(task, needs(tmp_path))] == ["own"]

    def test_the_longer_kind_never_reads_a_file_of_the_other(self, tmp_path) -> None:
        one_task("longbench/hotpotqa", RECORD, folder=tmp_path)
        (tmp_path / "longbench" / "hotpotqa.jsonl").write_text(json.dumps(RECORD), encoding="utf-8")
        (task,) = (task for task in TASKS_E if task.name == "longbench-e/hotpotqa")
        with pytest.raises(SourceError, match=r"^there is no longbench/hotpotqa_e\.jsonl in the data folder"):
            list(samples(task, needs(tmp_path)))
        for task in TASKS_E:
            assert task.source["file"] == f"longbench/{short(task)}_e.jsonl"


class TestSharedData:
    @pytest.fixture(scope="class")
    def found(self, shared_data) -> dict[str, list[Sample]]:
        if not (shared_data / "longbench").is_dir():
            pytest.skip("the development data folder has no longbench")
        return {task.name: list(samples(task, needs(shared_data))) for task in TASKS}

    def test_all_21_tasks_have_the_samples_that_the_folder_tells_of(self, found) -> None:
        assert all(found.values()) and len(found) == 21
        assert sum(map(len, found.values())) == 404
        assert len(found["longbench/multifieldqa_zh"]) == 102

    def test_every_whole_prompt_is_the_official_one_filled(self, found, shared_data) -> None:
        everything = {record["_id"]: record for record in records(TASKS[0], needs(shared_data))}
        for task in TASKS:
            for sample in found[task.name]:
                (question,) = sample.questions
                record = everything[sample.sample_id]
                assert sample.before + sample.text + question.text == task.prompt.format(**record)
                assert list(question.answers) == record["answers"] and question.answers

    def test_ids_are_unique_and_the_order_is_that_of_the_file(self, found, shared_data) -> None:
        for task in TASKS:
            ids = [sample.sample_id for sample in found[task.name]]
            assert len(set(ids)) == len(ids)
        again = [sample.sample_id for sample in samples(TASKS[0], needs(shared_data))]
        assert again == [sample.sample_id for sample in found[TASKS[0].name]]
        assert again == sorted(again, key=lambda name: int(name.rpartition("-")[2]))

    def test_the_right_answer_scores_full_marks_in_every_task(self, found) -> None:
        pytest.importorskip("rouge")
        pytest.importorskip("jieba")
        for task in TASKS:
            question = found[task.name][0].questions[0]
            assert metric(task.metric)(question.answers[0], question) == pytest.approx(1.0), task.name

    def test_the_same_records_are_grouped_by_the_longer_kind(self, found, shared_data, tmp_path) -> None:
        everything = list(records(TASKS[0], needs(shared_data)))
        groups: Counter[str] = Counter()
        for task in TASKS_E:
            own = [record for record in everything if record["dataset"] == short(task)]
            longer = one_task(task.name, *own, folder=tmp_path)
            normal = found[f"longbench/{short(task)}"]
            assert [sample.questions for sample in longer] == [sample.questions for sample in normal]
            groups.update(sample.facts["bucket"] for sample in longer)
        assert set(groups) == {"0-4k", "4-8k", "8k+"}
