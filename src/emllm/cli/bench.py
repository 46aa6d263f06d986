"""``emllm bench``: reading and decoding speed beside the stock model, in one run.

This module does not know how anything is measured (`emllm.evaluation.speed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from emllm.cli import options
from emllm.cli.settings import with_settings
from emllm.cli.sources import load_one
from emllm.cli.terminal import remark, say, say_json, working
from emllm.config import MemoryConfig
from emllm.errors import ConfigError

if TYPE_CHECKING:
    from emllm.evaluation.speed import SpeedReport


@with_settings
def command(
    source: Annotated[
        str | None,
        typer.Argument(help="A long text to read; by default the sources of Python's own library."),
    ] = None,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tokens to read, ascending.")
    ] = "16384,131072",
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    *,
    config: MemoryConfig,
) -> None:
    """Time reading, refinement and decoding, each as a ratio to plain windowed forwards of the same model."""
    wanted = parse_lengths(lengths)
    if config.recall_tokens == "all":
        raise ConfigError("bench holds a memory against a window as wide, got recall_tokens=all")
    text = library_text(max(wanted) * 8) if source is None else load_one(source, command="bench").text
    with working("loading the model"):
        from emllm.evaluation.speed import SpeedBench
        from emllm.lm import EpisodicLM
        from emllm.models.load import load_model

        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        ids = tokenizer(text[: max(wanted) * 16], add_special_tokens=False, verbose=False)["input_ids"]
        bench = SpeedBench(
            lambda: EpisodicLM(loaded, tokenizer, name=model), loaded, ids, config=config, report=remark
        )
    result = bench.run(wanted)
    if json:
        say_json(result.to_json())
    else:
        for line in lines(result):
            say(line)


def parse_lengths(text: str) -> list[int]:
    """Lengths in tokens.

    Raises:
        ConfigError: not ascending whole numbers of at least 2,048.
    """
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"lengths must be whole numbers with commas, got {text!r}") from error
    if lengths != sorted(set(lengths)) or lengths[0] < 2048:
        raise ConfigError(f"lengths must ascend from 2048 or more, got {text!r}")
    return lengths


def library_text(num_chars: int) -> str:
    """A long real text that every machine has: the modules of Python's library, in order."""
    import sysconfig
    from pathlib import Path

    pieces: list[str] = []
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        pieces.append(path.read_text("utf-8", errors="replace"))
        total += len(pieces[-1])
        if total >= num_chars:
            break
    return "\n".join(pieces)


def lines(result: SpeedReport) -> list[str]:
    """The report for a person."""
    shown = [
        f"{result.model}, {result.dtype} on {result.device}, {result.threads} threads, "
        f"{result.width_tokens:,} tokens attended, {result.kv_bytes_per_token:,} KV bytes per token",
        f"{'read':>10} {'tokens/s':>10} {'last 1/8':>10} {'stock':>10} {'ratio':>7} "
        f"{'decode ms':>10} {'stock ms':>10} {'ratio':>7}",
    ]
    for reading, decoding in zip(result.reading, result.decoding, strict=True):
        shown.append(
            f"{reading.num_tokens:>10,} {reading.tokens_per_second:>10,.0f} "
            f"{reading.last_tokens_per_second:>10,.0f} {reading.baseline_tokens_per_second:>10,.0f} "
            f"{reading.ratio:>7.2f} {decoding.milliseconds:>10.1f} "
            f"{decoding.baseline_milliseconds:>10.1f} {decoding.ratio:>7.2f}"
        )
    first, last = result.reading[0], result.reading[-1]
    if len(result.reading) > 1:
        drift = (last.ratio / first.ratio) - 1
        shown.append(
            f"{last.num_tokens:,} against {first.num_tokens:,} tokens, as ratios to stock: {drift:+.1%}"
        )
    if result.refinement_cost is not None:
        shown.append(f"refinement takes {result.refinement_cost:+.1%} of reading time")
    shown.append(f"peak RSS {result.peak_rss_bytes / 1e9:.2f} GB")
    return shown
