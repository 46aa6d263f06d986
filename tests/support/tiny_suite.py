"""A tiny suite whose samples are made on the spot, and a tiny random model that has a tokenizer."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from families import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from emllm import EpisodicLM
from emllm.evaluation.answering import Outcome, Reply
from emllm.evaluation.rows import Row
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites import SAMPLES, SampleNeeds
from emllm.evaluation.task import Task
from emllm.evaluation.wishes import RunWishes

STORY = "Lily had a red ball and a big dog called Max. Tom had a blue car and a small cat."
WORDS = STORY.split(" ")
#: Budgets that a model of 512 positions has room for.
SMALL: dict[str, Any] = {
    "sink_tokens": 4,
    "local_tokens": 48,
    "recall_tokens": 64,
    "max_event_tokens": 32,
    "chunk_tokens": 32,
    "surprise_window_tokens": 64,
}


def story(seed: int, num_words: int) -> str:
    """A text of so many words, another for every seed."""
    return " ".join(WORDS[(seed * 7 + i * (1 + seed % 3)) % len(WORDS)] for i in range(num_words))


def sample(index: int, *, num_words: int = 60, num_questions: int = 2) -> Sample:
    """One sample; its questions differ."""
    facts = {"depths": [49.5, 50.5], "words": ["none", "of", "them"]}
    questions = tuple(
        Question(f"\nWhat is thing {i} of {index}?\nAnswer:", ("a", "Max"), facts=facts | {"depth": 50.0 * i})
        for i in range(num_questions)
    )
    return Sample(
        f"s{index}", "Read this.\n", story(index, num_words), questions, facts={"length": num_words}
    )


def task(name: str = "one", **changes: Any) -> Task:
    """A task of the tiny suite."""
    known: dict[str, Any] = {"metric": "qa_f1", "answer_tokens": 5, "prompt": "{context}", "samples": "tiny"}
    return Task(name=f"tiny/{name}", suite="tiny", **{**known, **changes})


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Three samples, or as many as the task's source says; those that it calls bad have an empty question."""
    for index in range(task.source.get("count", 3)):
        made = sample(index + needs.seed)
        if index in task.source.get("bad", ()):
            made = Sample(made.sample_id, made.before, made.text, (Question("", ("a",)),))
        if task.metric == "perplexity":
            made = Sample(made.sample_id, made.before, made.text, ())
        yield made


def wishes(tasks: Sequence[Task], rows: Sequence[Row], **changes: Any) -> RunWishes:
    """What is to be run, with budgets for a tiny model."""
    return RunWishes(tasks=tasks, rows=rows, **{"settings": SMALL, **changes})


def install(patch: pytest.MonkeyPatch) -> None:
    """Make the samples function `tiny` known."""
    patch.setitem(SAMPLES, "tiny", "tiny_suite_samples:samples")
    module = types.ModuleType("tiny_suite_samples")
    module.samples = samples  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "tiny_suite_samples", module)


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tokenizer(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level pairs, trained on the words of the suite; puts `<s>` before a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([" ".join(WORDS)], trainer)
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    return found


def tiny_lm(*, template: str | None = TEMPLATE) -> EpisodicLM:
    """A model of 512 positions and random weights."""
    words = tokenizer(template=template)
    return EpisodicLM(tiny_model("llama", vocab_size=len(words)), words, name="tiny")


class FakeAnswerer:
    """Answers at once, and always the same."""

    def __init__(self, lm: Any, row: Any, shared: Any, last: Any = None) -> None:
        self.row = row

    def answer(self, task: Task, sample: Sample, *, progress: Any = None) -> Outcome:
        if any(not question.text for question in sample.questions):
            raise ValueError("a question needs\nat least one token")
        replies = tuple(Reply(f"{self.row.name} says a", 3, (), None, 0.5, 0.1) for _ in sample.questions)
        surprise = 1.5 if task.metric == "perplexity" else None
        return Outcome(len(sample.text), len(sample.text), replies, surprise, 1.0, 64)
