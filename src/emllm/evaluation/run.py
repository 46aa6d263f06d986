"""A run: every task's samples through every row, each result written down before the next begins.

Samples with one text follow one another, row by row, so that it is read once (`evaluation.reading_order`).
Killed and started again a run goes on where it was, and the results are the same to the byte. A sample that
fails is written down with its reason, and never dropped or scored. This module does not know how a row
answers, how a metric scores or how progress is shown.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from emllm.errors import MissingExtraError, SourceError, StoreError
from emllm.evaluation.answering import Answerer
from emllm.evaluation.last_reading import LastReading
from emllm.evaluation.metrics import library_versions
from emllm.evaluation.pace import Pace, Step
from emllm.evaluation.peaks import PeakMeter
from emllm.evaluation.reading_order import Place, reading_order, sample_digest, text_digest
from emllm.evaluation.results import Key, RunFolder
from emllm.evaluation.rows import Row
from emllm.evaluation.samples import Sample
from emllm.evaluation.scoring import costs_line, failed_line, result_line
from emllm.evaluation.suites import BY_LENGTH, SampleNeeds, samples_function
from emllm.evaluation.suites.files import NoSuchFileError, stand_ins
from emllm.evaluation.surroundings import surroundings
from emllm.evaluation.task import Task
from emllm.evaluation.wishes import RunWishes
from emllm.lm import EpisodicLM
from emllm.reading import ProgressCallback, ReadProgress

OnStep = Callable[[Step], None]

#: In a run's folder, while it lasts: the memory of a text that does not fit into RAM.
READING = "reading"


@dataclass(frozen=True)
class Planned:
    """One result of the plan: its sample, the length of its text and what names it, and its row."""

    index: int
    num_chars: int
    text: str
    row: Row


Plan = dict[Key, Planned]


class Run:
    """One start of a run.

    Args:
        lm: attached model with its tokenizer.
        wishes: what is to be run.
        command: how it was started, for the record.
        on_step: told before and after each result, and while a text is read.
        on_remark: told one line that a person should know before results are added.

    Raises:
        ConfigError: a wish is wrong, or a row exceeds the model.
    """

    def __init__(
        self,
        lm: EpisodicLM,
        wishes: RunWishes,
        *,
        command: Sequence[str] = (),
        on_step: OnStep | None = None,
        on_remark: Callable[[str], None] | None = None,
    ) -> None:
        wishes.check()
        self._lm = lm
        self._wishes = wishes
        self._command = list(command)
        self._on_step = on_step
        self._on_remark = on_remark
        self._needs = SampleNeeds(
            data=wishes.data,
            count_tokens=lambda text: len(lm.chat_format.encode(text)),
            lengths=wishes.lengths,
            num_samples=wishes.num_samples,
            limit=wishes.limit,
            seed=wishes.seed,
        )
        self._files: dict[str, list[str]] = {task.name: [] for task in wishes.tasks}
        self._meter = PeakMeter([weights.device for weights in lm.model.parameters()])
        self._last = LastReading(on_let_go=self._meter.start)
        self._answerers = {row.name: Answerer(lm, row, wishes.settings, self._last) for row in wishes.rows}

    def into(self, path: Path) -> RunFolder:
        """Run what is not in the folder yet; answers with the folder, closed.

        Raises:
            ConfigError: the folder holds results of another run.
            SourceError: samples cannot be read, or are not those that were run before.
            StoreError: the folder cannot be written; what was written before is as it was.
        """
        plan, digests = self._plan()
        self._remark(_said_of_stand_ins(self._wishes.tasks, self._files))
        self._last.place = path / READING
        with RunFolder(path, self._described(digests)) as folder, closing(self._last):
            _check_same_samples(plan, folder)
            if self._wishes.retry_failed:
                folder.forget_failed(plan)
            to_do = {key: one for key, one in plan.items() if not folder.is_done(key)}
            if to_do and folder.results and folder.other_code:
                self._remark(f"{path}: {folder.other_code}")
            pace = Pace(
                [(key.row, one.num_chars) for key, one in to_do.items()], num_done=len(plan) - len(to_do)
            )
            self._run(to_do, folder, pace)
            folder.finish()
            self._last.discard()
        return folder

    def _remark(self, said: str) -> None:
        if said and self._on_remark is not None:
            self._on_remark(said)

    def _plan(self) -> tuple[Plan, dict[str, list[str]]]:
        """What this shard is to run, and the digests of the samples in all shards, by task.

        All samples are made once before the first is run: what is wrong with them shows at once, and the
        time left can be told.
        """
        wishes = self._wishes
        plan: Plan = {}
        digests: dict[str, list[str]] = {}
        for task in wishes.tasks:
            seen: set[str] = set()
            digests[task.name] = []
            for index, sample in self._samples(task):
                if sample.sample_id in seen:
                    raise SourceError(f"task {task.name}: two samples are called {sample.sample_id!r}")
                seen.add(sample.sample_id)
                text, num_chars = text_digest(sample), len(sample.before) + len(sample.text)
                digests[task.name].append(sample_digest(sample, text))
                if index % wishes.shards == wishes.shard:
                    for row in wishes.rows_of(task):
                        key = Key(task.name, sample.sample_id, row.name)
                        plan[key] = Planned(index, num_chars, text, row)
            if not seen:
                raise SourceError(f"task {task.name}: no samples")
        return plan, digests

    def _samples(self, task: Task) -> Generator[tuple[int, Sample], None, None]:
        """The samples with their numbers.

        Raises:
            SourceError: they cannot be had; for want of a file it names the tasks that have theirs.
        """
        try:
            yield from self._made(task)
        except NoSuchFileError as error:
            there = [other.name for other in self._wishes.tasks if other != task and self._has_files(other)]
            hint = f"; of these tasks, {', '.join(there)} have their files (--tasks)" if there else ""
            raise SourceError(f"task {task.name}: {error}{hint}") from error

    def _has_files(self, task: Task) -> bool:
        try:
            return next(self._made(task), None) is not None
        except SourceError:
            return False

    def _made(self, task: Task) -> Iterator[tuple[int, Sample]]:
        needs = replace(self._needs, on_file=self._files[task.name].append)
        made = samples_function(task.samples)(task, needs)
        if task.samples not in BY_LENGTH:
            made = islice(made, self._wishes.limit)
        most = self._wishes.questions
        return enumerate(replace(sample, questions=sample.questions[:most]) for sample in made)

    def _described(self, digests: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """What ``run.json`` says."""
        geometry, wishes = self._lm.geometry, self._wishes
        most = wishes.questions
        model = {"trained_tokens": geometry.trained_tokens, "num_layers": geometry.num_layers}
        return {
            **surroundings(self._lm),
            "commands": [self._command],
            "seed": wishes.seed,
            "lengths": list(wishes.lengths),
            "num_samples": wishes.num_samples,
            "limit": wishes.limit,
            "shards": wishes.shards,
            "shard": wishes.shard,
            "rows": {row.name: row.described(wishes.settings, **model) for row in wishes.rows},
            "tasks": {
                task.name: _task_described(task, digests[task.name], self._files[task.name], most)
                for task in wishes.tasks
            },
        }

    def _run(self, to_do: Plan, folder: RunFolder, pace: Pace) -> None:
        """Everything that is missing, text by text, and within a text row by row."""
        for samples in self._by_text({Place(key.task, one.index): one.text for key, one in to_do.items()}):
            for row in self._wishes.rows:
                for task, sample in samples:
                    planned = to_do.get(Key(task.name, sample.sample_id, row.name))
                    if planned is not None:
                        self._run_one(task, sample, planned, folder, pace)

    def _by_text(self, texts: Mapping[Place, str]) -> Iterator[list[tuple[Task, Sample]]]:
        """These samples, those with one text together; a task's files are let go after its last sample."""
        tasks = {task.name: task for task in self._wishes.tasks}
        made = {name: self._samples(task) for name, task in tasks.items()}
        num_left = Counter(place.task for place in texts)
        for places in reading_order(texts.items()):
            yield [(tasks[at.task], _sample_at(made[at.task], at, texts[at])) for at in places]
            num_left.subtract(place.task for place in places)
            for task in {place.task for place in places if not num_left[place.task]}:
                made.pop(task).close()

    def _run_one(self, task: Task, sample: Sample, planned: Planned, folder: RunFolder, pace: Pace) -> None:
        index, row = planned.index, planned.row
        show = self._shown(f"{task.name} {index + 1}, {row.name}", pace)
        show(None)
        begun = time.perf_counter()
        result, costs = self._answered(task, index, sample, row, show)
        folder.write(result, costs)
        seconds = time.perf_counter() - begun
        pace.done(row.name, planned.num_chars, seconds, failed=result["failed"] is not None)
        show(None)

    def _shown(self, place: str, pace: Pace) -> Callable[[ReadProgress | None], None]:
        def show(reading: ReadProgress | None) -> None:
            if self._on_step is not None:
                self._on_step(pace.step(place, reading))

        return show

    def _answered(
        self, task: Task, index: int, sample: Sample, row: Row, progress: ProgressCallback
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The lines of results and of costs.

        Raises:
            StoreError: a text is read into a folder, and the disk is full or fails.
            MissingExtraError: the row or the metric needs something that is not installed.
        """
        self._meter.start()
        try:
            outcome = self._answerers[row.name].answer(task, sample, progress=progress)
            result = result_line(task, index, sample, row.name, outcome)
        except (MissingExtraError, StoreError):
            raise
        except MemoryError as error:
            is_full, reason = True, f"out of memory: {error}".rstrip(": ")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is written down
            is_full, reason = False, f"{type(error).__name__}: {error}"
        else:
            return result, costs_line(task, sample, row.name, outcome, self._meter.peaks())
        if is_full:  # the error is gone, and with it all that its frames held
            self._last.close()
            gc.collect()
        return (
            failed_line(task, index, sample, row.name, reason),
            costs_line(task, sample, row.name, None, self._meter.peaks()),
        )


def _sample_at(made: Iterator[tuple[int, Sample]], place: Place, text: str) -> Sample:
    """The sample at a place, of those that are still to come.

    Raises:
        SourceError: it is not there any more, or has another text than when all samples were looked at.
    """
    sample = next((sample for number, sample in made if number == place.number), None)
    if sample is None or text_digest(sample) != text:
        raise SourceError(f"task {place.task}: sample {place.number} is another by now; the data changed")
    return sample


def _said_of_stand_ins(tasks: Sequence[Task], files: Mapping[str, Sequence[str]]) -> str:
    """One line that names the files that were read in place of the benchmarks' own, or nothing."""
    read = Counter((name, task.suite) for task in tasks for name in set(stand_ins(task, files[task.name])))
    said = [f"{name} ({num} of the tasks of {suite})" for (name, suite), num in read.items()]
    return f"not the benchmarks' own files are read but {', '.join(said)}" if said else ""


def _task_described(
    task: Task, samples: Sequence[str], files: Sequence[str], questions: int | None
) -> dict[str, Any]:
    """What ``run.json`` says of a task; the digest changes with anything in its file.

    Args:
        samples: their digests, of which one changes with anything in the sample.
        files: that were read, each once or more often, relative to the data folder.
    """
    return {
        "metric": task.metric,
        "suite": task.suite,
        "category": task.category,
        "answer_tokens": task.answer_tokens,
        "num_samples": len(samples),
        "questions": questions,
        "digest": hashlib.sha256(repr(task).encode()).hexdigest()[:16],
        "samples": " ".join(samples),
        "files": list(dict.fromkeys(files)),
        "libraries": library_versions(task.metric),
    }


def _check_same_samples(plan: Plan, folder: RunFolder) -> None:
    """Refuse to go on with samples that are not those of the results, of runs without their digests too.

    Raises:
        SourceError: another sample stands at an index that was run.
    """
    known = {(line["task"], line["index"]): line["sample"] for line in folder.results}
    for key, one in plan.items():
        before = known.get((key.task, one.index), key.sample)
        if before != key.sample:
            raise SourceError(
                f"{folder.path}: sample {one.index} of {key.task} was {before!r} and is {key.sample!r} now; "
                "the data differ, or another limit numbers samples of several lengths anew"
            )
