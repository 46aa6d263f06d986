"""What a catalogue says about a memory at one moment, and a change from one moment to the next.

Numbers that each may be right can contradict each other; `Contents.contradictions` finds that. This module
does not know how they are stored, nor what an event is beyond its span.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emllm.errors import StoreError
from emllm.store.record import LARGEST, FileRecord

Spans = NDArray[np.int64]


@dataclass(frozen=True)
class DocumentRecord:
    """A document that was read, or is being read while ``stop < start + num_tokens``.

    Attributes:
        name: what the user knows it by.
        start: its first token in the log.
        stop: one past the last token that was read.
        num_tokens: tokens of all of it.
        sha256: of its text.
        kind: of its source.
        num_bytes: of its source.
        read_seconds: time spent reading so far.
    """

    name: str
    start: int
    stop: int
    num_tokens: int
    sha256: str
    kind: str
    num_bytes: int
    read_seconds: float

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.sha256, self.kind)):
            raise StoreError(f"document {self.name!r}: name, sha256 and kind must be text")
        try:
            (self.name + self.sha256 + self.kind).encode()
        except UnicodeEncodeError:
            raise StoreError(f"document {self.name!r}: its name cannot be written as UTF-8") from None
        for number in (self.start, self.stop, self.num_tokens, self.num_bytes):
            if type(number) is not int or not 0 <= number < LARGEST:
                raise StoreError(f"document {self.name!r}: is recorded with the number {number!r}")
        if not self.start <= self.stop <= self.start + self.num_tokens:
            raise StoreError(
                f"document {self.name!r}: tokens {self.start} to {self.stop} of {self.num_tokens} cannot be"
            )
        if not isinstance(self.read_seconds, int | float) or not math.isfinite(self.read_seconds):
            raise StoreError(f"document {self.name!r}: read_seconds is {self.read_seconds!r}")


@dataclass(frozen=True)
class Change:
    """What one commit changes.

    Attributes:
        num_tokens: tokens of the log after it.
        new_files: files that exist from now on.
        dropped_files: names of those that do not any more.
        first_new_event: index of the first of `new_events`: the number of events so far, or less where
            events are replaced.
        new_events: spans `[n, 2]`.
        documents: all of them, or None where they stay as they are.
        state: of the memory, as JSON.
        events_replaced: events from `first_new_event` on make way for the new ones.
        header: keys of the header that change with it; None takes one out.
    """

    num_tokens: int
    new_files: Sequence[FileRecord]
    dropped_files: Sequence[str]
    first_new_event: int
    new_events: Spans
    documents: Sequence[DocumentRecord] | None
    state: dict[str, Any]
    events_replaced: bool = False
    header: dict[str, Any] | None = None


@dataclass(frozen=True)
class Contents:
    """All that a catalogue says but for its header.

    Attributes:
        files: of the log, in its order, segments then recent ones.
        index: files of kind `index`, in log order; what they hold, segments hold too.
    """

    num_tokens: int
    documents: list[DocumentRecord]
    files: list[FileRecord]
    events: Spans
    state: dict[str, Any]
    index: list[FileRecord] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Contents:
        """Of a memory that has read nothing."""
        return cls(0, [], [], np.zeros((0, 2), dtype=np.int64), {})

    @property
    def all_files(self) -> list[FileRecord]:
        """Every file there is."""
        return [*self.files, *self.index]

    def after(self, *changes: Change) -> Contents:
        """What changes make of this, one after the other.

        Raises:
            StoreError: a change does not begin where what is before it ends.
        """
        files = {record.name: record for record in self.all_files}
        events, documents = [self.events], self.documents
        num_events, last = len(self.events), changes[-1]
        for change in changes:
            check_event_order(change, num_events=num_events)
            for name in change.dropped_files:
                if name not in files:
                    raise StoreError(f"{name}: cannot be dropped, the catalogue does not name it")
                del files[name]
            files.update({record.name: record for record in change.new_files})
            if change.first_new_event < num_events:
                events = [np.concatenate(events)[: change.first_new_event]]
            events.append(change.new_events.reshape(-1, 2))
            num_events = change.first_new_event + len(change.new_events)
            documents = documents if change.documents is None else list(change.documents)
        log, index = apart(list(files.values()))
        return Contents(last.num_tokens, documents, log, np.concatenate(events), last.state, index)

    def contradictions(self) -> list[str]:
        """What cannot be all true, one line each."""
        return [*self._file_contradictions(), *self._event_contradictions(), *self._document_contradictions()]

    def _file_contradictions(self) -> list[str]:
        problems = []
        stop = 0
        for record in self.files:
            if record.start != stop:
                problems.append(
                    f"{record.name}: begins at token {record.start}, the file before ends at {stop}"
                )
            stop = record.stop
        if stop != self.num_tokens:
            problems.append(f"the files end at token {stop}, the log at {self.num_tokens}")
        if len({record.name for record in self.files}) != len(self.files):
            problems.append("a file is named twice")
        num_events = sum(record.num_events for record in self.files)
        if num_events != len(self.events):
            problems.append(
                f"the files hold keys of {num_events} events, the catalogue names {len(self.events)}"
            )
        return [*problems, *self._index_contradictions()]

    def _index_contradictions(self) -> list[str]:
        problems = []
        num_keys, stop = {0: 0}, 0
        for record in self.files:
            if record.kind == "segment":
                num_keys[record.stop] = num_keys.get(record.start, 0) + record.num_events
        for record in self.index:
            first, last = num_keys.get(record.start), num_keys.get(record.stop)
            if first is None or last is None or last - first != record.num_events or record.start < stop:
                problems.append(f"{record.name}: is not what the segments of its tokens hold")
            stop = record.stop
        return problems

    def _event_contradictions(self) -> list[str]:
        starts, stops = self.events[:, 0], self.events[:, 1]
        is_wrong = (starts < 0) | (stops < starts) | (stops > self.num_tokens)
        is_wrong[1:] |= starts[1:] < stops[:-1]
        return [
            f"event {i}: tokens {starts[i]} to {stops[i]} do not follow the event before within "
            f"{self.num_tokens} tokens"
            for i in np.flatnonzero(is_wrong)[:10]
        ]

    def _document_contradictions(self) -> list[str]:
        return document_contradictions(self.documents, num_tokens=self.num_tokens)


@dataclass(frozen=True)
class Ledger:
    """What a change that only adds is held against: as strict as `Contents.contradictions`, at its own cost.

    Attributes:
        sealed_stop: first token that is in no segment.
        recents: the other files, in log order.
        num_tokens: of the log.
        num_events: of the catalogue.
        num_keys: events whose keys are in a segment.
        last_stop: first token after the last event.
    """

    sealed_stop: int
    recents: tuple[FileRecord, ...]
    num_tokens: int
    num_events: int
    num_keys: int
    last_stop: int

    @classmethod
    def of(cls, contents: Contents) -> Ledger:
        """Of a memory as it is."""
        segments = [record for record in contents.files if record.kind == "segment"]
        events = contents.events
        return cls(
            sealed_stop=segments[-1].stop if segments else 0,
            recents=tuple(record for record in contents.files if record.kind != "segment"),
            num_tokens=contents.num_tokens,
            num_events=len(events),
            num_keys=sum(record.num_events for record in segments),
            last_stop=int(events[-1, 1]) if len(events) else 0,
        )

    def after(self, change: Change) -> Ledger:
        """What a change makes of this; it drops no segment and replaces no events.

        Raises:
            StoreError: it contradicts itself, or what was there before.
        """
        check_event_order(change, num_events=self.num_events)
        dropped = set(change.dropped_files)
        unknown = dropped - {record.name for record in self.recents}
        if unknown:
            raise StoreError(f"{min(unknown)}: cannot be dropped, the catalogue does not name it")
        left = [record for record in self.recents if record.name not in dropped]
        files = in_log_order([*left, *change.new_files])
        segments = [record for record in files if record.kind == "segment"]
        recents = tuple(record for record in files if record.kind != "segment")
        stop = self.sealed_stop
        for record in files:
            if record.start != stop:
                raise StoreError(
                    f"{record.name}: begins at token {record.start}, the file before ends at {stop}"
                )
            stop = record.stop
        if stop != change.num_tokens:
            raise StoreError(f"the files end at token {stop}, the log at {change.num_tokens}")
        num_keys = self.num_keys + sum(record.num_events for record in segments)
        num_all_keys = num_keys + sum(record.num_events for record in recents)
        num_events = self.num_events + len(change.new_events)
        if num_all_keys != num_events:
            raise StoreError(
                f"the files hold keys of {num_all_keys} events, the catalogue names {num_events}"
            )
        edges = np.concatenate([[self.last_stop], change.new_events.reshape(-1), [change.num_tokens]])
        if (np.diff(edges) < 0).any():
            raise StoreError(f"the new events do not follow one another within {change.num_tokens} tokens")
        if change.documents is not None:
            for problem in document_contradictions(change.documents, num_tokens=change.num_tokens):
                raise StoreError(problem)
        return Ledger(
            segments[-1].stop if segments else self.sealed_stop,
            recents,
            change.num_tokens,
            num_events,
            num_keys,
            int(edges[-2]),
        )


def document_contradictions(documents: Sequence[DocumentRecord], *, num_tokens: int) -> list[str]:
    """Documents that overlap or end after the log, one line each."""
    documents = sorted(documents, key=lambda document: (document.start, document.stop))
    problems = [
        f"document {document.name!r}: ends at token {document.stop}, the log at {num_tokens}"
        for document in documents
        if document.stop > num_tokens
    ]
    problems += [
        f"document {after.name!r}: begins at token {after.start}, inside of {before.name!r}"
        for before, after in pairwise(documents)
        if after.start < before.stop
    ]
    return problems


def apart(files: Sequence[FileRecord]) -> tuple[list[FileRecord], list[FileRecord]]:
    """Files of the log, and index files, each in log order."""
    log = [record for record in files if record.kind != "index"]
    return in_log_order(log), in_log_order([record for record in files if record.kind == "index"])


def in_log_order(files: Sequence[FileRecord]) -> list[FileRecord]:
    """Segments, then recent files, each in the order of their tokens."""
    return sorted(files, key=lambda one: (one.kind != "segment", one.start, one.stop, one.name))


def check_event_order(change: Change, *, num_events: int) -> None:
    """Refuses new events that neither follow those that there are nor replace some.

    Raises:
        StoreError: they leave a gap, or would cover events without saying so.
    """
    first = change.first_new_event
    if not 0 <= first <= num_events or (first < num_events and not change.events_replaced):
        raise StoreError(f"new events must begin at {num_events}, the number of events, got {first}")
