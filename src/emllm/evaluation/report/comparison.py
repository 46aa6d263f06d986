"""Run folders of one model laid together: which row answered which sample of which task.

Folders belong together if model, fingerprint, dtype and seed are the same, as shards of a run are; each other
model gets tables of its own, so that rows of two models never stand in one table. What contradicts inside one
comparison is refused: a row or task defined in two ways, a sample answered twice by a row.
This module does not know statistics or what a report shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emllm.errors import ConfigError, StoreError
from emllm.evaluation.agreement import GROWING, of_libraries, samples_of
from emllm.evaluation.report.records import PERPLEXITY, Cost, Record, RunFolder

#: The row that others are compared with unless one is asked for, the first that a run has.
REFERENCES = ("full", "default")

#: A question: its sample, and its number among the sample's questions.
Asked = tuple[str, int]


@dataclass(frozen=True)
class Comparison:
    """All that one model's runs say.

    Attributes:
        title: the model's name, with dtype and seed where another comparison has the same.
        tasks: what run.json says of each task, in its order.
        rows: what run.json says of each row, in its order.
        reference: the row that the others are compared with; None where there is none.
        records: of a task and row, its records in the samples' order.
        costs: of a row, all its costs.
        remarks: what a reader must know: a missing shard, an incomplete line.
    """

    title: str
    runs: tuple[RunFolder, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]
    reference: str | None
    records: Mapping[tuple[str, str], tuple[Record, ...]]
    costs: Mapping[str, tuple[Cost, ...]]
    remarks: tuple[str, ...]

    @property
    def model(self) -> str:
        """Name of the model that all rows ran on."""
        return str(self.runs[0].about["model"])

    @property
    def seed(self) -> int:
        """Seed of the runs, and of every resampling."""
        return int(self.runs[0].about.get("seed") or 0)

    def is_perplexity(self, task: str) -> bool:
        """Whether the task's scores are nats per token, lower is better."""
        return self.tasks[task].get("metric") == PERPLEXITY

    def suite(self, task: str) -> str:
        """The benchmark that a task belongs to."""
        return str(self.tasks[task].get("suite") or task.partition("/")[0])

    def suites(self) -> list[str]:
        """The benchmarks, in the order of their tasks."""
        return list(dict.fromkeys(self.suite(task) for task in self.tasks))

    def scores(self, task: str, row: str) -> dict[Asked, float]:
        """Score of each question that the row answered, in order; a text's surprise counts as one."""
        return {
            (record.sample, number): score
            for record in self.records.get((task, row), ())
            for number, score in enumerate(record.scores)
        }

    def read_tokens(self, task: str, row: str) -> dict[str, int]:
        """Tokens of each sample that the row read."""
        return {record.sample: record.read_tokens for record in self.records.get((task, row), ())}

    def is_one_text(self, task: str) -> bool:
        """Whether the task is several questions about one text: then it is questions that are drawn again."""
        texts = self._texts(task)
        answered = {
            (record.sample, number)
            for row in self.rows_of(task)
            for record in self.records[task, row]
            for number, _ in enumerate(record.answers)
        }
        is_one = len(set(texts.values())) == 1 and len(texts) >= self.tasks[task].get("num_samples", 1)
        return len(answered) > 1 and is_one and not self.is_perplexity(task)

    def clusters(self, task: str, questions: Iterable[Asked]) -> list[Hashable]:
        """What is drawn together with each of these questions: its text's others, or none of one text."""
        if self.is_one_text(task):
            return [(task, *asked) for asked in questions]
        texts = self._texts(task)
        return [texts[sample] for sample, _ in questions]

    def _texts(self, task: str) -> dict[str, str]:
        """What names the text of each sample; of older runs the sample itself."""
        records = [record for row in self.rows_of(task) for record in self.records[task, row]]
        told = {record.sample: record.text for record in records if record.text is not None}
        return {record.sample: told.get(record.sample, record.sample) for record in records}

    def rows_of(self, task: str) -> list[str]:
        """The rows that were asked the task."""
        return [row for row in self.rows if (task, row) in self.records]

    def shared_samples(self, task: str) -> list[str]:
        """Samples that every row that was asked the task answered."""
        answered = [
            dict.fromkeys(sample for sample, _ in self.scores(task, row)) for row in self.rows_of(task)
        ]
        return [sample for sample in answered[0] if all(sample in other for other in answered)]

    def num_samples(self, task: str) -> int:
        """Samples that any row was asked."""
        return len({record.sample for row in self.rows_of(task) for record in self.records[task, row]})


def comparisons(runs: Sequence[RunFolder], *, reference: str | None = None) -> list[Comparison]:
    """The folders by model, in the order given.

    Raises:
        ConfigError: there is no folder, or no run has the row `reference`.
        StoreError: two folders contradict each other.
    """
    if not runs:
        raise ConfigError("a report needs at least one run folder, got none")
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    if reference is not None and not any(reference in run.about["rows"] for run in runs):
        known = dict.fromkeys(row for run in runs for row in run.about["rows"])
        raise ConfigError(f"the reference must be one of {', '.join(known)}, got {reference!r}")
    names = Counter(str(group[0].about["model"]) for group in groups.values())
    return [_comparison(group, names, reference) for group in groups.values()]


def _identity(run: RunFolder) -> str:
    names = ("model", "fingerprint", "dtype", "seed")
    return json.dumps([run.about.get(name) for name in names], sort_keys=True)


def _comparison(runs: list[RunFolder], names: Counter[str], reference: str | None) -> Comparison:
    rows, tasks = _merged(runs, "rows"), _merged(runs, "tasks")
    about = runs[0].about
    name = str(about["model"])
    title = str(about.get("model_title") or name)
    if names[name] > 1:
        fingerprint = json.dumps(about.get("fingerprint"), sort_keys=True)
        title += f" ({about.get('dtype')}, seed {about.get('seed')}, {fingerprint:.60})"
    records: dict[tuple[str, str], list[Record]] = {}
    for record in (record for run in runs for record in run.records):
        records.setdefault((record.task, record.row), []).append(record)
    _refuse_other_samples(runs)
    for (task, row), found in records.items():
        _refuse_twice(task, row, found, runs)
        found.sort(key=lambda record: (record.index, record.sample))
    latest = {(cost.task, cost.sample, cost.row): cost for run in runs for cost in run.costs}
    costs: dict[str, list[Cost]] = {}
    for cost in latest.values():
        costs.setdefault(cost.row, []).append(cost)
    found_reference = reference if reference in rows else next((it for it in REFERENCES if it in rows), None)
    return Comparison(
        title=title,
        runs=tuple(runs),
        tasks={task: facts for task, facts in tasks.items() if any((task, row) in records for row in rows)},
        rows=rows,
        reference=found_reference,
        records={key: tuple(found) for key, found in records.items()},
        costs={row: tuple(found) for row, found in costs.items()},
        remarks=tuple(
            dict.fromkeys(
                [*_missing_shards(runs), *_states_of_code(runs), *_not_alike(runs), *_own_remarks(runs)]
            )
        ),
    )


def _merged(runs: Iterable[RunFolder], kind: str) -> dict[str, Mapping[str, Any]]:
    """The rows, or the tasks, of all runs; of a task one may have more samples, as of other lengths."""
    merged: dict[str, Mapping[str, Any]] = {}
    first: dict[str, RunFolder] = {}
    for run in runs:
        for name, value in run.about[kind].items():
            known = merged.setdefault(name, value)
            differs = of_libraries(value, known) if kind == "tasks" else None
            if differs is not None or _settled(known) != _settled(value):
                one, other = first[name].folder, run.folder
                why = f": it {differs}" if differs else ""
                raise StoreError(f"{kind[:-1]} {name!r} is not the same in {one} and {other}{why}")
            merged[name] = max(known, value, key=lambda it: it.get("num_samples", 0))
            first.setdefault(name, run)
    return merged


def _settled(value: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of a row or a task wherever it was run."""
    return {name: it for name, it in value.items() if name not in GROWING and it is not None}


def _refuse_other_samples(runs: Iterable[RunFolder]) -> None:
    """Samples of one name are one text: another number of samples, or other data, makes others."""
    known: dict[tuple[str, str], tuple[str, RunFolder]] = {}
    for run in runs:
        digests = {task: samples_of(facts) for task, facts in run.about["tasks"].items()}
        for record in run.records:
            of_task = digests.get(record.task, [])
            if record.index >= len(of_task):  # older runs do not tell
                continue
            digest, first = known.setdefault((record.task, record.sample), (of_task[record.index], run))
            if digest != of_task[record.index]:
                raise StoreError(
                    f"{record.task} / {record.sample} is another text in {run.folder} than in "
                    f"{first.folder}: they were run with other data, or another number of samples"
                )


def _refuse_twice(task: str, row: str, records: list[Record], runs: list[RunFolder]) -> None:
    counts = Counter(record.sample for record in records)
    sample, count = counts.most_common(1)[0]
    if count > 1:
        folders = [
            str(run.folder)
            for run in runs
            if any((it.task, it.row, it.sample) == (task, row, sample) for it in run.records)
        ]
        raise StoreError(f"{task} / {sample} / {row} is in more than one folder: {', '.join(folders)}")


def _own_remarks(runs: list[RunFolder]) -> list[str]:
    return [remark for run in runs for remark in run.remarks]


def _states_of_code(runs: list[RunFolder]) -> list[str]:
    codes = dict.fromkeys(str(code) for run in runs for code in run.about.get("code") or ())
    if len(codes) < 2:
        return []
    return [f"The code changed while this was run ({', '.join(codes)}): results may differ for that reason."]


def _not_alike(runs: list[RunFolder]) -> list[str]:
    """A remark where runs differ in what a merge would refuse: kinds of device, versions of packages."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        device = str(run.about.get("device") or "").partition(":")[0]
        for name, value in {"device": device, **(run.about.get("versions") or {})}.items():
            if value:  # older runs do not tell
                found.setdefault(name, {}).setdefault(str(value), []).append(run.folder.name)
    differing = [
        f"{name} " + " and ".join(f"{value} in {', '.join(folders)}" for value, folders in values.items())
        for name, values in found.items()
        if len(values) > 1
    ]
    if not differing:
        return []
    return [f"These runs were not made alike: {'; '.join(differing)}. Results may differ for that reason."]


def _missing_shards(runs: list[RunFolder]) -> list[str]:
    shards = {int(run.about.get("shards") or 1) for run in runs}
    remarks = []
    for total in sorted(shards - {1}):
        here = {run.about.get("shard") for run in runs if run.about.get("shards") == total}
        if not all(isinstance(shard, int) for shard in here):  # shards merged into one folder
            continue
        missing = sorted(set(range(total)) - here)
        if missing:
            numbers = ", ".join(map(str, missing))
            remarks.append(f"Of {total} shards these are missing: {numbers} (counted from 0).")
    return remarks
