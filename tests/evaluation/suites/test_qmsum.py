"""QMSum: a meeting is read once, as LongBench writes it, with all its queries of a kind."""

from __future__ import annotations

import dataclasses
import json
import lzma
from pathlib import Path

import pytest

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.suites.qmsum import meeting_text, samples
from emllm.evaluation.task import tasks_of

TASKS = {task.name.removeprefix("qmsum/"): task for task in tasks_of("qmsum")}


def words(text: str) -> int:
    return len(text.split())


def test_a_turn_is_a_line_and_its_start_is_known() -> None:
    text, starts = meeting_text([{"speaker": "A", "content": "Hm ."}, {"speaker": "B", "content": "Yes ."}])
    assert text == "A: Hm .\nB: Yes ."
    assert [text[start] for start in starts] == ["A", "B"]


def test_the_transcript_is_written_as_longbench_writes_it(shared_data: Path) -> None:
    with lzma.open(shared_data / "longbench" / "longbench_v1_dev.jsonl.xz", "rt", encoding="utf-8") as file:
        known = [record for record in map(json.loads, file) if record["dataset"] == "qmsum"]
    for record in known:
        pairs = [line.partition(":") for line in record["context"].split("\n")]
        turns = [{"speaker": speaker, "content": said.removeprefix(" ")} for speaker, _, said in pairs]
        assert meeting_text(turns)[0] == record["context"]


@pytest.mark.parametrize(("kind", "num_queries"), [("general", 35), ("specific", 237)])
def test_the_real_meetings_have_all_their_queries(kind: str, num_queries: int, shared_data: Path) -> None:
    found = list(samples(TASKS[kind], SampleNeeds(shared_data, words)))
    assert len({sample.sample_id for sample in found}) == len(found) <= 35
    questions = [question for sample in found for question in sample.questions]
    assert len(questions) == num_queries
    for question in questions:
        assert question.text.endswith(f"\n\nQuery: {question.query}\nAnswer:")
        assert all(0 <= depth < 100 for depth in question.facts.get("depths", ()))
    assert sum("depth" in question.facts for question in questions) == (226 if kind == "specific" else 0)
    assert sum("depths" in question.facts for question in questions) == (11 if kind == "specific" else 0)


def test_a_record_that_is_no_meeting_is_told(tmp_path: Path) -> None:
    (tmp_path / "qmsum").mkdir()
    (tmp_path / "qmsum" / "qmsum_test.jsonl").write_text('{"meeting_transcripts": [{}]}\n', "utf-8")
    with pytest.raises(SourceError, match="meeting 0"):
        list(samples(TASKS["general"], SampleNeeds(tmp_path, words)))


def test_an_unknown_kind_of_query_is_refused(tmp_path: Path) -> None:
    task = dataclasses.replace(TASKS["general"], source={**TASKS["general"].source, "queries": "all"})
    with pytest.raises(ConfigError, match="general, specific, got 'all'"):
        list(samples(task, SampleNeeds(tmp_path, words)))
