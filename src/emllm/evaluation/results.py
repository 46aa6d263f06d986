"""The folder of a run: what was run, one line a result, one line of costs.

Lines are appended one by one and durable before the next sample begins, so a run that is killed at any
instant has lost the sample under way and nothing else; a line that was not finished is dropped when the
folder is opened again. `results.jsonl` holds nothing that differs between two runs, `costs.jsonl` all that
does. This module does not know how anything is answered or scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.agreement import combined, first_difference, other_code
from emllm.store import disk
from emllm.store.locks import write_lock

RUN, RESULTS, COSTS, LOCK = "run.json", "results.jsonl", "costs.jsonl", "write.lock"
FORMAT = 1

#: What run.json must say for runs to be held against each other; of each row, and of each task.
_NEEDED: dict[str, type] = {
    **{"model": str, "fingerprint": dict, "versions": dict, "device": str, "dtype": str, "seed": int},
    **{"lengths": list, "num_samples": int, "shards": int, "shard": int, "rows": dict, "tasks": dict},
}
_NEEDED_OF_EACH: dict[str, dict[str, type]] = {
    "rows": {"kind": str, "settings": dict},
    "tasks": {"metric": str, "num_samples": int},
}


class Key(NamedTuple):
    """What a line is about."""

    task: str
    sample: str
    row: str


def key_of(line: Mapping[str, Any]) -> Key:
    """What this line is about."""
    return Key(line["task"], line["sample"], line["row"])


def encoded(line: Mapping[str, Any]) -> bytes:
    """One line of a file, ended."""
    return (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        ConfigError: the folder holds no results, or results of another format.
        SourceError: the file is damaged.
    """
    path = folder / RUN
    if not path.is_file():
        raise ConfigError(f"{folder}: {'no results in it' if folder.is_dir() else 'no such folder'}")
    with disk.translated("read", path):
        data = path.read_bytes()
    try:
        run = json.loads(data)
    except ValueError as error:
        raise SourceError(f"{path}: not the description of a run: {error}") from error
    if isinstance(run, dict) and run.get("format") != FORMAT:
        raise ConfigError(f"{path}: format must be {FORMAT}, got {run.get('format')!r:.40}")
    wrong = _wrong_in(run)
    if wrong is not None:
        raise SourceError(f"{path}: not the description of a run: {wrong}")
    return dict(run)


def _wrong_in(run: Any) -> str | None:
    """What a description of a run lacks, or has of another kind, in words."""
    if (wrong := _lacking(run, _NEEDED)) is not None:
        return wrong
    for kind, needed in _NEEDED_OF_EACH.items():
        for name, one in run[kind].items():
            if (wrong := _lacking(one, needed)) is not None:
                return f"{kind[:-1]} {name}: {wrong}"
    return None


def _lacking(value: Any, needed: Mapping[str, type]) -> str | None:
    if not isinstance(value, dict):
        return f"must be an object, got {value!r:.40}"
    wrong = next((name for name, kind in needed.items() if not isinstance(value.get(name), kind)), None)
    return wrong and f"{wrong} must be {needed[wrong].__name__}, got {value.get(wrong)!r:.40}"


def dtype_of_run(folder: Path, given: str) -> str:
    """The dtype that the user names, or the one that the run in this folder was begun with, if there is one.

    Raises:
        ConfigError, SourceError: as `read_run`.
    """
    if given != "auto" or not (folder / RUN).is_file():
        return given
    return str(read_run(folder).get("dtype", given))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that was not finished is left out.

    Raises:
        SourceError: a line that is not the last is no result.
    """
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines, and the bytes that they take."""
    with disk.translated("read", path):
        data = path.read_bytes() if path.exists() else b""
    lines: list[dict[str, Any]] = []
    num_bytes = 0
    pieces = data.split(b"\n")
    for number, piece in enumerate(pieces[:-1], start=1):
        try:
            line = json.loads(piece)
            key_of(line)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(pieces) - 1 and not pieces[-1]:
                break  # the disk kept its length, not its content
            raise SourceError(f"{path}, line {number}: not a line of a run ({piece[:40]!r})") from error
        lines.append(line)
        num_bytes += len(piece) + 1
    return lines, num_bytes


def in_order(lines: Iterable[dict[str, Any]], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results task by task, sample by sample, row by row, in the order of ``run.json``."""
    tasks, rows = list(run["tasks"]), list(run["rows"])
    return sorted(lines, key=lambda line: (tasks.index(line["task"]), line["index"], rows.index(line["row"])))


def costs_of(results: Iterable[Mapping[str, Any]], costs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The costs of these results, in their order: of several lines about one the last."""
    last = {key_of(line): line for line in costs}
    return [last[key] for key in map(key_of, results) if key in last]


class RunFolder:
    """A run's folder, open for writing until `close`. Nobody else writes to it meanwhile.

    Args:
        path: of the folder; made where there is none.
        run: what is about to be run, as ``run.json`` has it.

    Attributes:
        other_code: one line where the folder was begun with other code.

    Raises:
        ConfigError: the folder holds something else, or results of other settings.
        SourceError: a file in it is damaged.
        StoreError: it cannot be written, or somebody else writes to it.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        with disk.translated("make", path):
            path.mkdir(parents=True, exist_ok=True)
        self._check_own()
        self._lock = write_lock(path / LOCK)
        try:
            self.run = dict(run)
            self.other_code: str | None = None
            if (path / RUN).exists():
                before = read_run(path)
                difference = first_difference(before, run)
                if difference is not None:
                    raise ConfigError(f"{path} holds results of another run: {difference}")
                self.other_code = other_code(before, run)
                self.run = combined(before, run)
            self.results = self._recovered()
            self._publish(RUN, (json.dumps(self.run, indent=1, allow_nan=False) + "\n").encode())
            for name in (RESULTS, COSTS):
                with disk.translated("write", path / name):
                    (path / name).touch()
        except BaseException:
            self._lock.release()
            raise
        self._done = {key_of(line) for line in self.results}

    def _check_own(self) -> None:
        """A folder with files and without `run.json` is somebody else's."""
        own = {RUN, LOCK}
        names = {entry.name for entry in self.path.iterdir() if entry.suffix != disk.TEMPORARY_SUFFIX}
        if RUN not in names and names - own:
            raise ConfigError(f"{self.path}: holds {min(names - own)} and no results; name a new folder")

    def _recovered(self) -> list[dict[str, Any]]:
        """The results that were written whole; a line begun is cut off, costs without a result too."""
        results, num_bytes = _parsed(self.path / RESULTS)
        self._cut(RESULTS, num_bytes)
        costs, num_bytes = _parsed(self.path / COSTS)
        done = {key_of(line) for line in results}
        if len({key_of(line) for line in costs}) != len(costs) or any(key_of(c) not in done for c in costs):
            last = {key_of(line): line for line in costs}
            self._publish(COSTS, b"".join(encoded(line) for key, line in last.items() if key in done))
        else:
            self._cut(COSTS, num_bytes)
        return results

    def _cut(self, name: str, num_bytes: int) -> None:
        path = self.path / name
        with disk.translated("write", path):
            if path.exists() and path.stat().st_size > num_bytes:
                disk.step("truncate", path)
                os.truncate(path, num_bytes)

    def _publish(self, name: str, data: bytes) -> None:
        with disk.translated("write", self.path / name):
            disk.publish_bytes(self.path / name, data)

    def is_done(self, key: Key) -> bool:
        """Whether there is a result, or a failure, for it."""
        return key in self._done

    def forget_failed(self, among: Collection[Key]) -> int:
        """Drop those of these results that failed, so that they are run again; answers with how many."""
        kept = [line for line in self.results if line["failed"] is None or key_of(line) not in among]
        num_failed = len(self.results) - len(kept)
        if num_failed:
            self._publish(RESULTS, b"".join(map(encoded, kept)))
            self.results, self._done = kept, {key_of(line) for line in kept}
            self._recovered()
        return num_failed

    def write(self, result: dict[str, Any], costs: Mapping[str, Any]) -> None:
        """Write down one result, durable when this returns; costs first, so that a result always has some.

        Raises:
            StoreError: the disk is full or fails; what was written before is as it was.
        """
        self._append(COSTS, encoded(costs))
        self._append(RESULTS, encoded(result))
        self.results.append(result)
        self._done.add(key_of(result))

    def _append(self, name: str, data: bytes) -> None:
        path = self.path / name
        with disk.translated("write", path):
            disk.step("append", path)
            with open(path, "ab", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
                disk.step("fsync", path)
                os.fsync(file.fileno())

    def finish(self) -> None:
        """Put the results in order, and the costs in that of the results."""
        ordered = in_order(self.results, self.run)
        if ordered != self.results:
            costs = costs_of(ordered, read_lines(self.path / COSTS))
            self._publish(COSTS, b"".join(map(encoded, costs)))
            self._publish(RESULTS, b"".join(map(encoded, ordered)))
            self.results = ordered

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
