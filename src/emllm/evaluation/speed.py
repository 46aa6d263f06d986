"""Speed and memory of reading and decoding, beside the stock model in the same process.

The baseline is plain transformers forwards over chunks of the same length, with a sliding window as wide
as the three views of the memory together, and all logits, as surprise needs them. Every figure of ours is
a ratio to a baseline measured just before and after it, because machines drift. This module does not know
how results are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

import torch

from emllm.answers import peak_rss_bytes
from emllm.config import MemoryConfig
from emllm.errors import ConfigError
from emllm.evaluation.probe import synchronise
from emllm.lm import EpisodicLM
from emllm.models.windowed import windowed_cache
from emllm.reading import read_tokens

#: Tokens of a baseline reading: enough to fill the window many times over.
BASELINE_TOKENS = 8192
DECODE_TOKENS = 64

Report = Callable[[str], None]


@dataclass(frozen=True)
class ReadingSpeed:
    """Reading one length of text.

    Attributes:
        tokens_per_second: over the whole text.
        last_tokens_per_second: over its last eighth.
        ratio: of `tokens_per_second` to the baseline's around it.
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
        with self._attached() as lm:
            self._geometry = lm.geometry
            self._name = lm.name
        self._settings = config.resolve(
            trained_tokens=self._geometry.trained_tokens, num_layers=self._geometry.num_layers
        )
        self._width = self._settings.sink_tokens + self._settings.local_tokens + self._settings.recall_tokens

    @contextmanager
    def _attached(self) -> Iterator[EpisodicLM]:
        lm = self._make_lm()
        try:
            yield lm
        finally:
            lm.close()

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
        self._read_baseline(2048)
        before = self._read_baseline(BASELINE_TOKENS)
        for length in lengths:
            speed, last, lm_memory = self._read(self._config, length, keep=True)
            stock = self._decode_baseline()
            ours = self._decode(*lm_memory)
            after = self._read_baseline(BASELINE_TOKENS)
            baseline = 2 / (1 / before + 1 / after)
            before = after
            result.reading.append(ReadingSpeed("default", length, speed, last, baseline, speed / baseline))
            result.decoding.append(DecodingSpeed(length, ours * 1e3, stock * 1e3, stock / ours))
            self._report(
                f"read {length:,} tokens at {speed:,.0f} tokens/s, stock {baseline:,.0f}, "
                f"ratio {speed / baseline:.2f}; decode {ours * 1e3:.1f} ms, stock {stock * 1e3:.1f} ms"
            )
        result.refinement_cost = self._refinement_cost(min(BASELINE_TOKENS, lengths[0]))
        result.peak_rss_bytes = peak_rss_bytes()
        return result

    def _refinement_cost(self, num_tokens: int) -> float | None:
        """Share of reading time that refinement takes; runs alternate, as the machine drifts."""
        settings = {name: getattr(self._config, name) for name in self._config.__dataclass_fields__}
        if settings["refine"] == "none":
            return None
        plain = MemoryConfig(**{**settings, "refine": "none"})
        shares = []
        for _ in range(3):
            without = self._read(plain, num_tokens)[0]
            with_it = self._read(self._config, num_tokens)[0]
            shares.append(without / with_it - 1)
        self._report(f"refinement takes {mean(shares):.1%} more time")
        return mean(shares)

    def _read(self, config: MemoryConfig, num_tokens: int, keep: bool = False) -> tuple[float, float, Any]:
        """Tokens per second over all and over the last eighth; the memory, if it is wanted."""
        with self._attached() as lm:
            memory = lm.memory(config=config)
            marks: list[tuple[int, float]] = []
            begun = time.perf_counter()
            read_tokens(
                self._model,
                lm.cache(memory),
                self._token_ids[:num_tokens],
                chunk_tokens=self._settings.chunk_tokens,
                progress=lambda step: marks.append((step.num_read, step.seconds)),
            )
            seconds = time.perf_counter() - begun
            tail = next(mark for mark in marks if mark[0] >= num_tokens * 7 / 8)
            last = (
                (num_tokens - tail[0]) / (seconds - tail[1]) if num_tokens > tail[0] else num_tokens / seconds
            )
            return num_tokens / seconds, last, (memory,) if keep else None

    @torch.no_grad()
    def _read_baseline(self, num_tokens: int) -> float:
        """Tokens per second of the stock model over a window of the same width."""
        cache = windowed_cache(self._geometry.num_layers, self._width)
        ids = torch.tensor(self._token_ids[:num_tokens])[None].to(self._model.device)
        begun = time.perf_counter()
        for chunk in ids.split(self._settings.chunk_tokens, dim=1):
            self._model(input_ids=chunk, past_key_values=cache, use_cache=True)
        synchronise(self._model.device)
        return num_tokens / (time.perf_counter() - begun)

    @torch.no_grad()
    def _decode(self, memory: Any) -> float:
        """Mean seconds of a decoded token on a fork of the memory."""
        with self._attached() as lm:
            return self._time_steps(lm.cache(memory.fork()))

    @torch.no_grad()
    def _decode_baseline(self) -> float:
        cache = windowed_cache(self._geometry.num_layers, self._width)
        ids = torch.tensor(self._token_ids[: self._width])[None].to(self._model.device)
        for chunk in ids.split(self._settings.chunk_tokens, dim=1):
            self._model(input_ids=chunk, past_key_values=cache, use_cache=True)
        return self._time_steps(cache)

    def _time_steps(self, cache: Any) -> float:
        """Mean seconds of a decoded token, recalls included; the first step reads a short prompt."""
        token = torch.tensor([self._token_ids[:16]], device=self._model.device)
        seconds = []
        for _ in range(DECODE_TOKENS + 1):
            begun = time.perf_counter()
            logits = self._model(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(dim=-1)
            synchronise(self._model.device)
            seconds.append(time.perf_counter() - begun)
        return mean(seconds[1:])
