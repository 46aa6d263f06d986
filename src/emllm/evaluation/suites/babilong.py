"""BABILong: the facts of a bAbI story scattered over book text, and the story's question.

Source: Kuratov et al. 2024; stories from Weston et al. 2015. A story with several questions is one story for
each, with the facts up to that question. The facts stand whole and in order between sentences of the
background, at places drawn uniformly over its tokens.

**Deviation.** A length is that of the whole prompt and the answer (BABILong leaves 300 tokens for the
instructions), and places are drawn among tokens, not among sentences. A story has at most one fact for eight
tokens, as in BABILong. The same stories are told at every length that they fit.

Without a data folder the published samples of the hub are read, of the nearest length that is not longer.
This module does not know how an answer is compared with the right one.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.background import background, fitting, planted, planting_tokens
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.files import records
from emllm.evaluation.suites.made import sample_name
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

LENGTHS = (4096, 8192, 16384, 32768, 65536)
_HUB_LENGTHS = {
    **{f"{thousands}k": thousands * 1000 for thousands in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)},
    "1M": 1_000_000,
    "10M": 10_000_000,
}
_SEAMS = 8


@dataclass(frozen=True)
class Story:
    """Facts, a question about them, its answer, and which of the facts (from 0) say so."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """`num_wanted` samples of each length, shortest first as the lengths are given.

    Raises:
        SourceError: the stories or the books are not there, or a line of a story is not bAbI's.
        ConfigError: a length that no story fits.
    """
    if needs.data is None:
        yield from _published(task, needs)
        return
    place = needs.data, task.source["file"], task.source["member"]
    needs.on_file(babi_file(*place).relative_to(needs.data).as_posix())
    stories = read_stories(babi_text(*place))
    Random(f"{needs.seed} {task.name}").shuffle(stories)
    for length in needs.lengths or LENGTHS:
        for index, story in enumerate(_short_enough(task, needs, stories, length)):
            yield _made(task, needs, story, length, index)


def babi_file(data: Path, name: str, member: str) -> Path:
    """The archive of that name, or the file of it that one unpacked beside it."""
    archive = data / name
    return min((path for path in archive.parent.rglob(member) if path.is_file()), default=archive)


def babi_text(data: Path, name: str, member: str) -> str:
    """The text of a file of bAbI: from an archive, or where one unpacked it beside the archive.

    Raises:
        SourceError: neither is there, or it cannot be read.
    """
    place = babi_file(data, name, member)
    try:
        if place.name == member:
            return place.read_text("utf-8")
        with tarfile.open(place) as found:
            for entry in found:
                if Path(entry.name).name == member and (content := found.extractfile(entry)):
                    return content.read().decode("utf-8")
    except FileNotFoundError:
        raise SourceError(
            f"there is neither {name} nor {member} in the data folder {data} (--data)"
        ) from None
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise SourceError(f"{place}: cannot be read: {error}") from error
    raise SourceError(f"{place}: holds no {member}")


def read_stories(text: str) -> list[Story]:
    """One story a question, from bAbI's own lines ``ID text`` and ``ID question<TAB>answer<TAB>ids``.

    Raises:
        SourceError: a line that is neither.
    """
    stories: list[Story] = []
    facts: list[str] = []
    fact_of: dict[int, int] = {}
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            line_id, _, rest = line.strip().partition(" ")
            if line_id == "1":
                facts, fact_of = [], {}
            if "\t" in rest:
                question, answer, ids = rest.split("\t")
                supporting = sorted(fact_of[int(fact_id)] for fact_id in ids.split())
                stories.append(Story(tuple(facts), question.strip(), answer.strip(), tuple(supporting)))
            elif rest:
                fact_of[int(line_id)] = len(facts)
                facts.append(rest)
        except (ValueError, KeyError):
            wrong = f"line {number} of a bAbI file is neither a fact nor a question: {line.strip()!r}"
            raise SourceError(wrong) from None
    return stories


def _short_enough(task: Task, needs: SampleNeeds, stories: list[Story], length: int) -> list[Story]:
    """The first stories that leave room, each once, as many as are wanted."""
    fit = (s for s in stories if len(s.facts) <= length // 8 and _room(task, needs, s, length) >= 0)
    found = list(islice(fit, needs.num_wanted))
    if not found:
        raise ConfigError(f"lengths of {task.name} must leave room for the prompt and a story, got {length}")
    return found


def _room(task: Task, needs: SampleNeeds, story: Story, length: int) -> int:
    """Tokens of background beside the prompt and the facts."""
    before, after = task.split_prompt(question=story.question)
    used = needs.count_tokens(before) + needs.count_tokens(after) + task.answer_tokens + _SEAMS
    return length - used - planting_tokens(story.facts, needs.count_tokens)


def _made(task: Task, needs: SampleNeeds, story: Story, length: int, index: int) -> Sample:
    draw = Random(f"{needs.seed} {task.name} {length} {index}")
    room = _room(task, needs, story, length)
    pieces = fitting(background(needs, task.source["books"]).pieces(draw), room, needs.count_tokens)
    text = planted(pieces, story.facts, sorted(draw.random() for _ in story.facts))
    asked = _question(task, story, placed([100 * text.depths[idx] for idx in story.supporting]))
    positions = [text.starts[idx] for idx in story.supporting]
    facts = {"length": length, "facts": len(story.facts), "positions": positions}
    return Sample(
        sample_name(task, length, index), task.split_prompt()[0], text.text.rstrip(), (asked,), facts
    )


def _question(task: Task, story: Story, facts: dict[str, object]) -> Question:
    labels = {"task": task.name.rpartition("/")[2], "labels": list(task.source["labels"])}
    after = task.split_prompt(question=story.question)[1]
    return Question(after, (story.answer,), query=story.question, facts=labels | facts)


def _published(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    for length in needs.lengths or LENGTHS:
        names = [name for name, tokens in _HUB_LENGTHS.items() if tokens <= length]
        if not names:
            raise ConfigError(f"lengths of {task.name} without a data folder must be >= 1000, got {length}")
        there = replace(task, source={**task.source, "subset": names[-1]})
        for index, record in enumerate(islice(records(there, needs), needs.num_wanted)):
            asked = _question(task, Story((), record["question"], record["target"], ()), {})
            before = task.split_prompt()[0]
            yield Sample(
                sample_name(task, length, index), before, record["input"], (asked,), {"length": length}
            )
