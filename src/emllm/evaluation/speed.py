"""Speed and memory of reading and decoding, beside the stock model in the same process.

The baseline is plain transformers forwards over chunks of the same length, with a sliding window as wide
as the three views of the memory together, and all logits, as surprise needs them. The two take turns, a few
seconds each, because the speed of a machine can change by a half within a minute. This module does not know
how results are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any

import torch

from emllm.answers import peak_rss_bytes
from emllm.config import MemoryConfig
from emllm.errors import ConfigError
from emllm.evaluation.probe import synchronise
from emllm.evaluation.turns import MemoryReader, StockReader
from emllm.lm import EpisodicLM
from emllm.memory import EpisodicMemory
from emllm.models.windowed import windowed_cache

#: Tokens that a memory reads before it is the stock model's turn, and that this reads then.
TURN_TOKENS = 4096
STOCK_TURN_TOKENS = 1024
#: Turns of decoding, and tokens of one: a recall falls into each.
DECODE_TURNS = 4
DECODE_TURN_TOKENS = 16
#: Tokens that are read with and without refinement, by turns of `REFINE_TURN_TOKENS`.
REFINE_TOKENS = 24_576
REFINE_TURN_TOKENS = 2048

Report = Callable[[str], None]


@dataclass(frozen=True)
class ReadingSpeed:
    """Reading one length of text.

    Attributes:
        tokens_per_second: over the whole text.
        last_tokens_per_second: over its last eighth.
        baseline_tokens_per_second: of the stock model in the turns between.
        ratio: of both.
    """

    name: str
    num_tokens: int
    tokens_per_second: float
    last_tokens_per_second: float
    baseline_tokens_per_second: float
    ratio: float


@dataclass(frozen=True)
class DecodingSpeed:
    """Decoding after reading.

    Attributes:
        milliseconds: mean time of a token.
        ratio: of speeds, to stock cached decoding at the same width.
    """

    num_tokens_read: int
    milliseconds: float
    baseline_milliseconds: float
    ratio: float


@dataclass
class SpeedReport:
    """All that one run measured."""

    model: str
    dtype: str
    device: str
    threads: int
    width_tokens: int
    kv_bytes_per_token: int
    settings: dict[str, Any]
    reading: list[ReadingSpeed] = field(default_factory=list)
    decoding: list[DecodingSpeed] = field(default_factory=list)
    refinement_cost: float | None = None
    peak_rss_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form that ``emllm bench --json`` prints."""
        return asdict(self)


class SpeedBench:
    """Measures one model with one configuration.

    Args:
        make_lm: attaches to the model anew; the bench detaches between its parts.
        model: the stock model.
        token_ids: a real text, long enough for the longest length.
        config: settings of the memory.
        report: told a line after each measurement.
    """

    def __init__(
        self,
        make_lm: Callable[[], EpisodicLM],
        model: Any,
        token_ids: Sequence[int],
        *,
        config: MemoryConfig,
        report: Report,
    ) -> None:
        self._make_lm = make_lm
        self._model = model
        self._token_ids = token_ids
        self._config = config
        self._report = report
        with self._make_lm() as lm:
            self._geometry = lm.geometry
            self._name = lm.name
        self._settings = config.resolve(
            trained_tokens=self._geometry.trained_tokens, num_layers=self._geometry.num_layers
        )
        self._width = self._settings.sink_tokens + self._settings.local_tokens + self._settings.recall_tokens

    def run(self, lengths: Sequence[int]) -> SpeedReport:
        """Read each length, decode after the first and the last, and time refinement.

        Raises:
            ConfigError: the text is shorter than a length.
        """
        if max(lengths) > len(self._token_ids):
            raise ConfigError(f"the text has {len(self._token_ids)} tokens; lengths must not exceed that")
        result = SpeedReport(
            model=self._name,
            dtype=str(self._geometry.dtype).removeprefix("torch."),
            device=str(self._geometry.layers[0].device),
            threads=torch.get_num_threads(),
            width_tokens=self._width,
            kv_bytes_per_token=self._geometry.kv_bytes_per_token,
            settings=asdict(self._settings),
        )
        for length in lengths:
            reading, decoding = self._measure(length)
            result.reading.append(reading)
            result.decoding.append(decoding)
            self._report(
                f"read {length:,} tokens at {reading.tokens_per_second:,.0f} tokens/s, stock "
                f"{reading.baseline_tokens_per_second:,.0f}, ratio {reading.ratio:.2f}; "
                f"decode {decoding.milliseconds:.1f} ms, stock {decoding.baseline_milliseconds:.1f} ms"
            )
        result.refinement_cost = self._refinement_cost(min(REFINE_TOKENS, lengths[-1]))
        result.peak_rss_bytes = peak_rss_bytes()
        return result

    def _measure(self, num_tokens: int) -> tuple[ReadingSpeed, DecodingSpeed]:
        """Read so much and decode after it; the memory is gone afterwards."""
        reading, memory = self._read(num_tokens)
        return reading, self._decode(memory, num_tokens)

    def _read(self, num_tokens: int) -> tuple[ReadingSpeed, EpisodicMemory]:
        """Read a text by turns with the stock model."""
        ours, stock = self._memory_reader(self._config), self._stock_reader()
        turn = self._whole_chunks(TURN_TOKENS)
        seconds = last_seconds = stock_seconds = 0.0
        num_stock = num_last = 0
        for start in range(0, num_tokens, turn):
            count = min(turn, num_tokens - start)
            took = ours.read(count)
            seconds += took
            if start + count > num_tokens * 7 / 8:
                last_seconds += took
                num_last += count
            num_stock += self._whole_chunks(STOCK_TURN_TOKENS)
            stock_seconds += stock.read(self._whole_chunks(STOCK_TURN_TOKENS))
        speed, baseline = num_tokens / seconds, num_stock / stock_seconds
        reading = ReadingSpeed(
            "default", num_tokens, speed, num_last / last_seconds, baseline, speed / baseline
        )
        return reading, ours.memory

    def _refinement_cost(self, num_tokens: int) -> float | None:
        """Share of reading time that refinement takes."""
        if self._config.refine == "none":
            return None
        readers = self._memory_reader(replace(self._config, refine="none")), self._memory_reader(self._config)
        seconds = [0.0, 0.0]
        turn = self._whole_chunks(REFINE_TURN_TOKENS)
        for start in range(0, num_tokens, turn):
            for i, reader in enumerate(readers):
                seconds[i] += reader.read(min(turn, num_tokens - start))
        share = seconds[1] / seconds[0] - 1
        self._report(f"refinement takes {share:.1%} more time")
        return share

    def _decode(self, memory: EpisodicMemory, num_tokens_read: int) -> DecodingSpeed:
        """Decode on a fork of the memory by turns with the stock model, recalls included."""
        fork, stock = memory.fork(), self._stock_reader()
        ours_last = stock_last = self._token_ids[:16]
        ours_seconds, stock_seconds = [], []
        for _ in range(DECODE_TURNS + 1):
            with self._make_lm() as lm:
                ours_last, took = self._time_steps(lm.cache(fork), ours_last)
            ours_seconds.append(took)
            stock_last, took = self._time_steps(stock.cache, stock_last)
            stock_seconds.append(took)
        ours, baseline = mean(ours_seconds[1:]), mean(stock_seconds[1:])  # the first turn reads the prompt
        return DecodingSpeed(num_tokens_read, ours * 1e3, baseline * 1e3, baseline / ours)

    @torch.no_grad()
    def _time_steps(self, cache: Any, prompt: Sequence[int]) -> tuple[list[int], float]:
        """The token after a turn of greedy decoding, and mean seconds of a step."""
        token = torch.tensor([list(prompt)], device=self._model.device)
        begun = time.perf_counter()
        for _ in range(DECODE_TURN_TOKENS):
            logits = self._model(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(dim=-1)
        synchronise(self._model.device)
        return token[0].tolist(), (time.perf_counter() - begun) / DECODE_TURN_TOKENS

    def _whole_chunks(self, num_tokens: int) -> int:
        """As many tokens in whole chunks, one at least."""
        chunk = self._settings.chunk_tokens
        return max(1, num_tokens // chunk) * chunk

    def _memory_reader(self, config: MemoryConfig) -> MemoryReader:
        return MemoryReader(
            self._make_lm, self._token_ids, config=config, chunk_tokens=self._settings.chunk_tokens
        )

    def _stock_reader(self) -> StockReader:
        """The stock model, its window filled."""
        reader = StockReader(
            self._model,
            windowed_cache(self._geometry.num_layers, self._width),
            self._token_ids,
            chunk_tokens=self._settings.chunk_tokens,
        )
        reader.read(self._whole_chunks(self._width + self._settings.chunk_tokens))
        return reader
