"""What a samples function is given besides its task. This module does not know any suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emllm.evaluation.samples import Sample
from emllm.evaluation.task import Task


@dataclass(frozen=True)
class SampleNeeds:
    """Places, sizes and the seed of a run.

    Attributes:
        data: folder of benchmark files; None: from the hub.
        count_tokens: how many tokens the model's tokenizer makes of a text, for samples of a wanted length.
        lengths: in tokens, for suites that are made to any length; empty: the suite's own.
        num_samples: of each task and length, for suites that are made; others yield all they have.
        limit: of each length at most, the first ones, for suites with lengths (`suites.BY_LENGTH`).
        seed: of samples that are drawn or made.
        on_file: told the name of each file of records that is read, relative to `data`.
    """

    data: Path | None
    count_tokens: Callable[[str], int]
    lengths: tuple[int, ...] = ()
    num_samples: int = 20
    limit: int | None = None
    seed: int = 0
    on_file: Callable[[str], object] = lambda name: None

    @property
    def num_wanted(self) -> int:
        """Samples of each length that are to be made."""
        return self.num_samples if self.limit is None else min(self.num_samples, self.limit)


SamplesFunction = Callable[[Task, SampleNeeds], Iterator[Sample]]
