"""Nothing of a run is lost and nothing is counted twice, however often and wherever it is killed."""

from __future__ import annotations

import errno
import json
import operator
import shutil
import tempfile
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import tiny_suite
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_suite import FakeAnswerer, sample, task, wishes

import emllm.evaluation.run as module
from emllm.errors import ConfigError, MissingExtraError, SourceError, StoreError
from emllm.evaluation import answering
from emllm.evaluation.answering import Answerer, Outcome, Reply
from emllm.evaluation.merge import merge
from emllm.evaluation.results import COSTS, RESULTS, RUN, key_of, read_lines
from emllm.evaluation.rows import ROWS, Row
from emllm.evaluation.run import Run
from emllm.evaluation.suites.files import NoSuchFileError
from emllm.evaluation.task import tasks_of
from emllm.reading import read_tokens
from emllm.store import disk

ROW, OTHER = Row("mine"), ROWS["streaming-llm"]
TASKS = (task("one"), task("two", source={"count": 2, "bad": (1,)}))


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def lm():
    with tiny_suite.tiny_lm() as lm:
        yield lm


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        tiny_suite.install(patch)
        yield


@pytest.fixture(scope="module")
def fake():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Answerer", FakeAnswerer)
        yield


@pytest.fixture(scope="module")
def whole(lm, fake, tmp_path_factory):
    """The results of one go."""
    folder = tmp_path_factory.mktemp("whole")
    start(lm, folder)
    return (folder / RESULTS).read_bytes()


def start(lm, folder, tasks=TASKS, rows=(ROW, OTHER), **changes):
    return Run(lm, wishes(tasks, rows, **changes)).into(folder)


def killed_at(step: int):
    """Dies before the change of the disk of this number."""
    count = iter(range(1 << 30))

    def hook(what, path):
        if next(count) == step:
            raise Killed

    return hook


def costs_agree(folder: Path) -> bool:
    costs = [key_of(line) for line in read_lines(folder / COSTS)]
    return costs == [key_of(line) for line in read_lines(folder / RESULTS)]


@settings(max_examples=40)
@given(steps=st.lists(st.integers(0, 60), max_size=4))
def test_a_run_killed_at_any_change_of_the_disk_and_resumed_has_the_same_results(lm, fake, whole, steps):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place) / "run"
        for step in steps:
            patch.setattr(disk, "hook", killed_at(step))
            with suppress(Killed):
                start(lm, folder)
        patch.setattr(disk, "hook", None)
        start(lm, folder)
        assert (folder / RESULTS).read_bytes() == whole
        assert costs_agree(folder)


@settings(max_examples=40)
@given(data=st.data())
def test_a_run_whose_files_were_cut_anywhere_has_the_same_results_when_resumed(lm, fake, whole, data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        start(lm, folder)
        for name in (RESULTS, COSTS):
            content = (folder / name).read_bytes()
            kept = data.draw(st.integers(0, len(content)), label=name)
            (folder / name).write_bytes(content[:kept])
        start(lm, folder)
        assert (folder / RESULTS).read_bytes() == whole


def test_a_line_of_zeros_at_the_end_is_dropped(lm, fake, whole, tmp_path):
    start(lm, tmp_path)
    (tmp_path / RESULTS).write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1] + b"\0" * 20 + b"\n")
    start(lm, tmp_path)
    assert (tmp_path / RESULTS).read_bytes() == whole


def test_results_are_task_by_task_sample_by_sample_row_by_row(lm, fake, whole):
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [(line["task"], line["index"], line["row"]) for line in lines] == [
        (one, index, row)
        for one, count in (("tiny/one", 3), ("tiny/two", 2))
        for index in range(count)
        for row in ("mine", "streaming-llm")
    ]


def test_a_failed_sample_is_written_down_with_its_reason_and_no_score(lm, fake, whole):
    lines = [json.loads(line) for line in whole.splitlines()]
    failed = [line for line in lines if line["failed"] is not None]
    assert {(line["task"], line["sample"]) for line in failed} == {("tiny/two", "s1")}
    for line in failed:
        assert line["failed"] == "ValueError: a question needs at least one token"
        assert line["score"] is None and line["answers"] == []


def test_a_line_has_exactly_the_agreed_keys(lm, fake, whole, tmp_path):
    line = json.loads(whole.splitlines()[0])
    assert list(line) == [
        *("task", "index", "sample", "row", "text"),
        *("tokens", "read_tokens", "facts", "score", "answers", "failed"),
    ]
    assert set(line["answers"][0]) == {"prediction", "score", "answer_tokens", "facts", "evidence"}
    assert line["answers"][1]["facts"] == {"depth": 50.0, "depths": [49.5, 50.5]} and line["facts"] == {
        "length": 60
    }
    start(lm, tmp_path)
    assert set(read_lines(tmp_path / COSTS)[0]) == {
        *("task", "sample", "row", "read_seconds", "answer_seconds", "first_token_seconds"),
        *("peak_rss_bytes", "peak_rss_since", "peak_device_bytes", "recalled_tokens"),
    }
    run = json.loads((tmp_path / RUN).read_text())
    assert {"format", "created", "commands", "versions", "model", "fingerprint", "hardware"} <= set(run)
    assert run["rows"]["mine"]["kind"] == "memory" and run["tasks"]["tiny/one"]["metric"] == "qa_f1"


def test_lines_have_one_digest_of_a_text_whatever_task_row_or_failure(lm, fake, whole):
    by_sample: dict[str, set[str]] = {}
    for line in map(json.loads, whole.splitlines()):
        by_sample.setdefault(line["sample"], set()).add(line["text"])
    assert all(len(texts) == 1 and len(*texts) == 16 for texts in by_sample.values())
    assert len(set.union(*by_sample.values())) == len(by_sample) > 1


def test_what_is_done_is_not_run_again(lm, fake, whole, tmp_path):
    start(lm, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeAnswerer, "answer", lambda *args, **kwargs: pytest.fail("run again"))
        start(lm, tmp_path)
    assert len(json.loads((tmp_path / RUN).read_text())["commands"]) == 2


def test_tasks_rows_and_samples_may_be_added_and_the_order_is_that_of_one_go(lm, fake, whole, tmp_path):
    start(lm, tmp_path, TASKS[:1], (ROW,), limit=1)
    start(lm, tmp_path, TASKS[:1], (ROW, OTHER), limit=2)
    start(lm, tmp_path, TASKS, (OTHER,))
    start(lm, tmp_path)
    assert (tmp_path / RESULTS).read_bytes() == whole
    assert json.loads((tmp_path / RUN).read_text())["limit"] is None


def test_failed_samples_are_run_again_on_request_only(lm, fake, tmp_path):
    start(lm, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        good = FakeAnswerer("", ROW, {})
        patch.setattr(
            FakeAnswerer,
            "answer",
            lambda self, task, sample, **_: (
                good.answer(task, tiny_suite.sample(0))
                if len(sample.questions) == 2
                else Outcome(1, 1, (Reply("a", 1, (), None, 0.1, 0.1),), None, 0.1, 0)
            ),
        )
        assert any(line["failed"] for line in start(lm, tmp_path).results)
        results = start(lm, tmp_path, retry_failed=True).results
    assert not any(line["failed"] for line in results) and len(results) == 10
    keys = [(line["task"], line["index"], line["row"]) for line in results]
    assert keys[-2:] == [("tiny/two", 1, "mine"), ("tiny/two", 1, "streaming-llm")]
    assert sorted(map(key_of, read_lines(tmp_path / COSTS))) == sorted(map(key_of, results))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"lengths": (99,)}, r"lengths was \[\], is \[99\]"),
        ({"num_samples": 3}, "num_samples was 20, is 3"),
        ({"shards": 2}, "shards was 1, is 2"),
        ({"settings": {**tiny_suite.SMALL, "recall_tokens": 96}}, "row mine had recall_tokens=64, has 96"),
        ({"rows": (Row("mine", settings={"gamma": 3.0}),)}, "row mine had gamma=1.0, has 3.0"),
        ({"tasks": (task("one", answer_tokens=6),)}, "task tiny/one had answer_tokens=5, has 6"),
        ({"tasks": (task("one", prompt="x{context}"),)}, "task tiny/one had digest="),
    ],
)
def test_results_of_other_settings_are_not_added_to(lm, fake, tmp_path, changes, said):
    start(lm, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=f"holds results of another run: {said}"):
        start(lm, tmp_path, **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_of_another_model_are_not_added_to(lm, fake, tmp_path, monkeypatch):
    start(lm, tmp_path)
    monkeypatch.setattr(lm, "_fingerprint", {**lm.fingerprint, "weights": "0" * 64})
    with pytest.raises(ConfigError, match="the model differs"):
        start(lm, tmp_path)


def test_other_data_under_the_same_name_are_found_out(lm, fake, tmp_path, monkeypatch):
    start(lm, tmp_path)
    monkeypatch.setattr(
        "tiny_suite_samples.samples", lambda task, needs: iter([replace(sample(0), sample_id="new")])
    )
    with pytest.raises(ConfigError, match="results of another run: task tiny/one has another sample 0: the"):
        start(lm, tmp_path)
    without_digests(tmp_path)
    with pytest.raises(SourceError, match="sample 0 of tiny/one was 's0' and is 'new' now"):
        start(lm, tmp_path)


def without_digests(folder: Path) -> None:
    """As runs were described that tell neither of samples nor of packages."""
    run = json.loads((folder / RUN).read_text())
    for one in run["tasks"].values():
        del one["samples"], one["libraries"]
    (folder / RUN).write_text(json.dumps(run))


def asking(**changes):
    return lambda one: replace(one, questions=(one.questions[0], replace(one.questions[1], **changes)))


@pytest.mark.parametrize(
    "changed",
    [
        lambda one: replace(one, text=one.text + "."),
        lambda one: replace(one, before=one.before + " "),
        lambda one: replace(one, questions=one.questions[:1]),
        asking(text="What?"),
        asking(answers=("b",)),
        asking(answer_begins="It is"),
        asking(facts={"depth": 0.25}),
    ],
)
def test_other_data_under_the_same_sample_names_are_refused(lm, fake, tmp_path, monkeypatch, changed):
    start(lm, tmp_path, TASKS[:1], limit=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = [sample(0), changed(sample(1)), sample(2)]
    monkeypatch.setattr("tiny_suite_samples.samples", lambda task, needs: iter(made))
    with pytest.raises(ConfigError, match="another run: task tiny/one has another sample 1: the data differ"):
        start(lm, tmp_path, TASKS[:1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(start(lm, tmp_path, TASKS[:1], limit=1).results) == 4
    without_digests(tmp_path)
    assert len(start(lm, tmp_path, TASKS[:1]).results) == 6


def test_results_of_another_version_of_what_scores_are_not_added_to(lm, fake, tmp_path, monkeypatch):
    for versions in ({}, {"rouge": "1.0.1"}, {}):  # not installed, installed, not installed
        monkeypatch.setattr(module, "library_versions", lambda metric, found=versions: found)
        start(lm, tmp_path)
    monkeypatch.setattr(module, "library_versions", lambda metric: {"rouge": "1.0.2"})
    with pytest.raises(ConfigError, match=r"task tiny/one was scored with rouge 1\.0\.1, this is 1\.0\.2$"):
        start(lm, tmp_path)
    without_digests(tmp_path)
    start(lm, tmp_path)


@pytest.mark.parametrize("made", [[], [sample(0), sample(0)]])
def test_no_samples_and_two_of_one_name_are_refused_before_anything_runs(
    lm, fake, tmp_path, monkeypatch, made
):
    monkeypatch.setattr("tiny_suite_samples.samples", lambda task, needs: iter(made))
    with pytest.raises(SourceError, match=r"task tiny/one: (no samples|two samples are called 's0')"):
        start(lm, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_a_task_lacks_its_file_the_tasks_that_have_theirs_are_named(lm, fake, tmp_path, monkeypatch):
    def made(task, needs):
        if task.name != "tiny/two":
            raise NoSuchFileError("there is no x.jsonl in the data folder data (--data)")
        yield sample(0)

    monkeypatch.setattr("tiny_suite_samples.samples", made)
    said = "^task tiny/one: there is no x.jsonl in the data folder data \\(--data\\)"
    with pytest.raises(
        SourceError, match=f"{said}; of these tasks, tiny/two have their files \\(--tasks\\)$"
    ):
        start(lm, tmp_path)
    with pytest.raises(SourceError, match=f"{said}$"):
        start(lm, tmp_path, TASKS[:1])


def test_a_folder_of_something_else_is_left_alone(lm, fake, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match=r"holds letter\.txt and no results"):
        start(lm, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (RUN, b"{", "not the description of a run"),
        (RUN, b'{"format": 2, "rows": {}, "tasks": {}, "shards": 1, "shard": 0}', "format must be 1, got 2"),
        (RUN, b"[]", r"not the description of a run: must be an object, got \[\]"),
        (RUN, b"1", "not the description of a run: must be an object, got 1"),
        (RUN, b'{"format": 1, "model": "x"}', "a run: fingerprint must be dict, got None"),
        (RESULTS, b"{}\n{}\n", "line 1: not a line of a run"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_place(lm, fake, tmp_path, name, content, said):
    start(lm, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, SourceError), match=said):
        start(lm, tmp_path)


def places_in(value: object, *path: str) -> list[tuple[str, ...]]:
    """Where a description has something that can be left out."""
    inner = value.items() if isinstance(value, dict) else ()
    return [found for name, one in inner for found in ((*path, name), *places_in(one, *path, name))]


def test_whatever_a_description_lacks_it_is_merged_or_refused_in_one_line(lm, fake, tmp_path):
    folders = [tmp_path / str(shard) for shard in range(2)]
    for shard, folder in enumerate(folders):
        start(lm, folder, shards=2, shard=shard)
    whole = json.loads((folders[1] / RUN).read_text())
    refused = set()
    for *inside, last in places_in(whole):
        about = json.loads(json.dumps(whole))
        del reduce(operator.getitem, inside, about)[last]
        (folders[1] / RUN).write_text(json.dumps(about))
        try:
            merge(folders, tmp_path / "whole")
        except (ConfigError, SourceError) as error:
            assert str(folders[1]) in str(error)
            refused.add(last)
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    assert {"fingerprint", "versions", "device", "rows", "tasks", "shards", "model", "num_samples"} <= refused


def test_a_full_disk_ends_the_run_with_one_line_and_loses_nothing(lm, fake, whole, tmp_path, monkeypatch):
    count = iter(range(100))

    def full(what, path):
        if what == "append" and next(count) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "hook", full)
    with pytest.raises(StoreError, match=r"cannot write .*results\.jsonl: No space left on device"):
        start(lm, tmp_path)
    assert len(read_lines(tmp_path / RESULTS)) == 3
    monkeypatch.setattr(disk, "hook", None)
    start(lm, tmp_path)
    assert (tmp_path / RESULTS).read_bytes() == whole


def test_a_sample_that_exceeds_the_ram_is_a_failed_one_before_which_all_is_let_go(lm, tmp_path, monkeypatch):
    held = []

    class Greedy(FakeAnswerer):
        def __init__(self, lm, row, shared, last=None):
            super().__init__(lm, row, shared)
            self.last = last

        def answer(self, task, sample, *, progress=None):
            assert not any(block() for block in held), "what an earlier sample held is still there"
            if sample.sample_id == "s1" and self.row is ROW:
                block = Block()
                held.append(weakref.ref(block))
                block.itself = block  # as what errors and models hold in circles
                self.last._memory = Memory()
                raise MemoryError("Unable to allocate 24 GiB")
            return super().answer(task, sample)

    class Block:
        itself: Block

    class Memory:
        def close(self):
            closed.append(self)

    closed = []
    monkeypatch.setattr(module, "Answerer", Greedy)
    results = start(lm, tmp_path, TASKS[:1]).results
    failed = [(line["sample"], line["row"], line["failed"]) for line in results if line["failed"]]
    assert failed == [("s1", "mine", "out of memory: Unable to allocate 24 GiB")]
    assert len(results) == 6 and len(closed) == 1 and costs_agree(tmp_path)
    monkeypatch.setattr(module, "Answerer", FakeAnswerer)
    assert not any(line["failed"] for line in start(lm, tmp_path, TASKS[:1], retry_failed=True).results)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MissingExtraError])
def test_what_another_start_may_mend_ends_the_run_and_is_no_failed_sample(lm, fake, tmp_path, error):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeAnswerer, "answer", lambda *args, **kwargs: (_ for _ in ()).throw(error("gone")))
        with pytest.raises(error):
            start(lm, tmp_path)
    assert read_lines(tmp_path / RESULTS) == []


def test_two_processes_cannot_write_to_one_folder(lm, fake, tmp_path, monkeypatch):
    run = Run(lm, wishes(TASKS, (ROW,)), on_step=lambda step: start(lm, tmp_path))
    with pytest.raises(StoreError, match="is being written by process"):
        run.into(tmp_path)


def test_a_metric_out_of_range_is_a_failed_sample(lm, fake, tmp_path, monkeypatch):
    monkeypatch.setitem(module.result_line.__globals__, "metric", lambda name: lambda *_: float("nan"))
    results = start(lm, tmp_path, TASKS[:1], (ROW,)).results
    assert all("must be in 0..1, got nan" in line["failed"] for line in results)


def test_perplexity_has_a_score_without_answers_and_no_row_of_passages(lm, fake, tmp_path):
    results = start(lm, tmp_path, (task("p", metric="perplexity"),), (ROW, ROWS["rag"])).results
    assert [(line["row"], line["score"], line["answers"]) for line in results] == [("mine", 1.5, [])] * 3


def test_progress_counts_up_to_all_results_and_tells_the_time_left(lm, fake, tmp_path):
    steps = []
    Run(lm, wishes(TASKS, (ROW, OTHER)), on_step=steps.append).into(tmp_path)
    assert [step.num_done for step in steps] == sorted(step.num_done for step in steps)
    assert steps[-1].num_done == steps[-1].num_total == 10 and steps[-1].num_failed == 2
    assert steps[0].seconds_left is None and steps[2].seconds_left > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0}, "limit must be >= 1"),
        ({"num_samples": 0}, "num_samples must be >= 1"),
        ({"shards": 0}, "shards must be >= 1"),
        ({"shards": 2, "shard": 2}, "shard must be < shards = 2"),
        ({"lengths": (0,)}, "lengths must be >= 1"),
        ({"tasks": ()}, "at least one task"),
        ({"data": Path("nowhere")}, "nowhere: no such data folder"),
        ({"tasks": (task(metric="best"),)}, "metric must be one of .* got 'best'"),
        ({"tasks": (task(samples="none"),)}, "samples must be one of .* got 'none'"),
    ],
)
def test_a_wrong_wish_is_refused(lm, fake, tmp_path, changes, said):
    with pytest.raises((ConfigError, SourceError), match=said):
        start(lm, tmp_path, **changes)


def test_a_real_model_gives_the_same_bytes_in_one_go_and_interrupted(lm, tmp_path):
    rows, tasks = (ROWS["full"], ROW), (task("one", answer_tokens=3),)
    start(lm, tmp_path / "a", tasks, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "hook", killed_at(20))
        with pytest.raises(Killed):
            start(lm, tmp_path / "b", tasks, rows)
    assert 0 < len(read_lines(tmp_path / "b" / RESULTS)) < 6
    start(lm, tmp_path / "b", tasks, rows)
    assert (tmp_path / "a" / RESULTS).read_bytes() == (tmp_path / "b" / RESULTS).read_bytes()


def test_a_text_that_several_tasks_ask_about_is_read_once_by_each_row(lm, monkeypatch, tmp_path):
    num_read = []

    def counted(model, cache, token_ids, **options):
        num_read.append(len(token_ids))
        return read_tokens(model, cache, token_ids, **options)

    monkeypatch.setattr(module, "Answerer", Answerer)
    monkeypatch.setattr(answering, "read_tokens", counted)
    tasks = (task("one"), task("two", source={"count": 2}))
    folder = start(lm, tmp_path, tasks)
    assert len(num_read) == 3 * 2
    assert len(folder.results) == (3 + 2) * 2
    assert costs_agree(tmp_path)


def test_only_the_first_questions_of_a_sample_are_asked_and_a_run_keeps_to_their_number(lm, fake, tmp_path):
    folder = start(lm, tmp_path, questions=1)
    assert {len(line["answers"]) for line in folder.results if line["failed"] is None} == {1}
    assert json.loads((tmp_path / RUN).read_text())["tasks"]["tiny/one"]["questions"] == 1
    with pytest.raises(ConfigError, match="task tiny/one had questions=1, has None"):
        start(lm, tmp_path)
    with pytest.raises(ConfigError, match="questions must be >= 1, got 0"):
        start(lm, tmp_path / "other", questions=0)


def test_a_limit_takes_samples_of_every_length_and_another_one_needs_a_new_folder(lm, fake, tmp_path):
    lengths = {"tasks": tasks_of("passkey"), "rows": (ROW,), "lengths": (512, 1024), "num_samples": 3}
    results = start(lm, tmp_path, **lengths, limit=1).results
    assert [(line["index"], line["facts"]["length"]) for line in results] == [(0, 512), (1, 1024)]
    with pytest.raises(ConfigError, match=r"passkey/passkey has another sample 1: .* another limit numbers"):
        start(lm, tmp_path, **lengths, limit=2)


def test_a_sample_that_is_another_when_its_turn_comes_is_refused(lm, fake, monkeypatch, tmp_path):
    made = [0]

    def changing(task, needs):
        made[0] += 1
        yield sample(made[0])

    monkeypatch.setattr(module, "samples_function", lambda name: changing)
    with pytest.raises(SourceError, match="tiny/one: sample 0 is another by now; the data changed"):
        start(lm, tmp_path, TASKS[:1])


MEETING = {
    "meeting_transcripts": [{"speaker": "Ada", "content": "We build it of wood."}],
    "general_query_list": [{"query": "Sum it up.", "answer": "It is built of wood."}],
    "specific_query_list": [],
}


def meetings(data: Path, name: str, **changes: object) -> None:
    (data / "qmsum").mkdir(parents=True, exist_ok=True)
    (data / "qmsum" / name).write_text(json.dumps({**MEETING, **changes}) + "\n")


def test_a_run_names_the_files_that_it_read_and_says_where_they_are_not_the_benchmarks_own(
    lm, fake, tmp_path
):
    general = [one for one in tasks_of("qmsum") if one.name == "qmsum/general"]
    meetings(tmp_path / "data", "qmsum_val.jsonl")

    def begun(folder: str) -> tuple[list[str], list[str]]:
        said: list[str] = []
        wanted = wishes([*general, task("one")], (ROW,), data=tmp_path / "data")
        about = Run(lm, wanted, on_remark=said.append).into(tmp_path / folder).run["tasks"]
        assert about["tiny/one"]["files"] == []
        return about["qmsum/general"]["files"], said

    files, (said,) = begun("run")
    assert files == ["qmsum/qmsum_val.jsonl"]
    assert "qmsum/qmsum_val.jsonl (1 of the tasks of qmsum)" in said and "\n" not in said
    meetings(tmp_path / "data", "qmsum_test.jsonl")
    assert begun("run") == (["qmsum/qmsum_test.jsonl"], [])
    meetings(tmp_path / "data", "qmsum_test.jsonl", meeting_transcripts=[{"speaker": "Bo", "content": "No."}])
    with pytest.raises(ConfigError, match="task qmsum/general has another sample 0: the data differ"):
        begun("run")


def test_a_run_that_does_not_name_its_files_can_be_gone_on_with(lm, fake, tmp_path):
    start(lm, tmp_path, limit=1)
    about = json.loads((tmp_path / RUN).read_text())
    for one in about["tasks"].values():
        del one["files"]
    (tmp_path / RUN).write_text(json.dumps(about))
    assert start(lm, tmp_path).run["tasks"]["tiny/one"]["files"] == []
