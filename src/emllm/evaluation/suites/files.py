"""Records of a benchmark: JSON lines or a JSON list of the data folder, or a data set of the hub.

``[source]`` of a task file says where:

- ``file``: one name, or several of which the first that exists is read, relative to the data folder; it may
  lie there compressed or not. The first is the benchmark's own file, the others stand in for it;
- where there is no data folder, ``hub``, ``subset`` and ``split``, which `datasets` loads; or ``hub_file``,
  one file of that hub repository as it is (with ``member``, a file in that zip), for data sets that came with
  a loading script: `datasets` no longer runs those.

This module does not know what the records mean.
"""

from __future__ import annotations

import json
import lzma
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from emllm.errors import SourceError
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

_RECORD_ENDINGS = (".jsonl.xz", ".jsonl", ".json", ".json.xz")
_TEXT_ENDINGS = (".txt.xz", ".txt")


class NoSuchFileError(SourceError):
    """A file that the data folder does not have."""


def records(task: Task, needs: SampleNeeds) -> Iterator[dict[str, Any]]:
    """The records of a task's source, in the order of the file or the data set.

    Raises:
        SourceError: no data folder, no such file in it, a line that is no JSON object, no `datasets`, or the
            hub gave nothing.
    """
    source = task.source
    if needs.data is not None and "file" in source:
        path = _records_file(task, needs.data)
        needs.on_file(path.relative_to(needs.data).as_posix())
        yield from _file_records(path)
    elif "hub_file" in source:
        yield from _hub_file_records(source["hub"], source["hub_file"], source.get("member"))
    elif "hub" in source:
        yield from _hub_records(source["hub"], source.get("subset"), source.get("split", "test"))
    elif needs.data is None:
        raise SourceError(f"task {task.name} needs a data folder: it is not on the hub (--data DIR)")
    else:
        raise SourceError(f"task {task.name} names neither a file nor a data set of the hub")


def has_records(task: Task, needs: SampleNeeds) -> bool:
    """Whether `records` has a place to read from: a file of the data folder, or without one the hub."""
    if needs.data is None:
        return "hub" in task.source
    try:
        return _records_file(task, needs.data).is_file()
    except NoSuchFileError:
        return False


def _records_file(task: Task, data: Path) -> Path:
    """The file of the data folder that holds a task's records, under the first of its names that is there."""
    return _found(data, _file_names(task), _RECORD_ENDINGS)


def _file_names(task: Task) -> list[str]:
    names = task.source.get("file", ())
    return [names] if isinstance(names, str) else list(names)


def stand_ins(task: Task, read: Iterable[str]) -> list[str]:
    """Those of the files read for a task that stand in for the benchmark's own."""
    others = {_stem(name, _RECORD_ENDINGS) for name in _file_names(task)[1:]}
    return [name for name in read if _stem(name, _RECORD_ENDINGS) in others]


def text_of(needs: SampleNeeds, name: str) -> str:
    """A whole text of the data folder, ``name`` ending in ``.txt`` or ``.txt.xz``, whichever is there.

    Raises:
        SourceError: no data folder, no such file in it, or the file cannot be read.
    """
    if needs.data is None:
        raise SourceError(f"{name} is read from a data folder: none was given (--data DIR)")
    path = _found(needs.data, [name], _TEXT_ENDINGS)
    try:
        with _opened(path) as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def text_names(data: Path, folder: str) -> list[str]:
    """The texts of a subfolder of the data folder, as `text_of` wants them named.

    Raises:
        SourceError: there is none.
    """
    found = {
        path.name.removesuffix(".xz") for end in _TEXT_ENDINGS for path in (data / folder).glob(f"*{end}")
    }
    if not found:
        raise SourceError(f"there is no .txt or .txt.xz file in {data / folder} (--data)")
    return [f"{folder}/{name}" for name in sorted(found)]


def require(task: Task, record: Mapping[str, Any], *names: str) -> None:
    """A check that a record has these fields.

    Raises:
        SourceError: it lacks one.
    """
    missing = [name for name in names if record.get(name) is None]
    if missing:
        which = record.get("_id", record.get("id", "without an id"))
        raise SourceError(f"task {task.name}: record {which} has no {', '.join(missing)}")


def lacking(error: KeyError | TypeError | AttributeError) -> str:
    """What is wrong with a record, in words."""
    return f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _found(folder: Path, names: list[str], endings: tuple[str, ...]) -> Path:
    """The first file of these names that is in the folder, with any of the endings."""
    if not folder.is_dir():
        raise SourceError(f"there is no data folder {folder} (--data)")
    for name in names:
        for ending in _endings_of(name, endings):
            path = folder / (_stem(name, endings) + ending)
            if path.is_file():
                return path
    raise NoSuchFileError(f"there is no {' or '.join(names)} in the data folder {folder} (--data)")


def _stem(name: str, endings: tuple[str, ...]) -> str:
    for ending in endings:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def _endings_of(name: str, endings: tuple[str, ...]) -> list[str]:
    """The endings to look for, the one that the name has first."""
    own = name.removeprefix(_stem(name, endings))
    return sorted(endings, key=lambda ending: ending != own)


def _opened(path: Path) -> TextIOWrapper:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _file_records(path: Path) -> Iterator[dict[str, Any]]:
    is_list = path.name.removesuffix(".xz").endswith(".json")
    try:
        with _opened(path) as file:
            yield from _list_records(path, file.read()) if is_list else _line_records(path, file)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def _line_records(path: Path | str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{path}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise SourceError(f"{path}, line {number}: not a JSON object")
        yield record


def _list_records(path: Path, text: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(found, list):
        raise SourceError(f"{path}, line 1: not a JSON list of objects")
    for number, record in enumerate(found, start=1):
        if not isinstance(record, dict):
            raise SourceError(f"{path}, entry {number}: not a JSON object")
        yield record


def _hub_records(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise SourceError(f"reading {name} from the hub needs an extra: pip install 'emllm[eval]'") from error
    wanted = " ".join(part for part in (name, subset, split) if part)
    try:
        found = load_dataset(name, subset, split=split)
    except Exception as error:  # of any library between here and the hub
        raise _not_from_hub(wanted, error) from error
    yield from map(dict, found)


def _hub_file_records(name: str, file: str, member: str | None) -> Iterator[dict[str, Any]]:
    place = "/".join(part for part in (name, file, member) if part)
    try:
        path = Path(import_module("huggingface_hub").hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:  # of any library between here and the hub
        raise _not_from_hub(place, error) from error
    if member is None:
        yield from _file_records(path)
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as lines:
            yield from _line_records(place, TextIOWrapper(lines, encoding="utf-8"))
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise SourceError(f"{place}: cannot be read: {error}") from error


def _not_from_hub(wanted: str, error: Exception) -> SourceError:
    what = str(error).partition("\n")[0]
    return SourceError(f"{wanted}: not to be had from the hub: {what} (or give --data DIR)")
