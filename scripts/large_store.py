"""Read millions of tokens into a stored memory with a small random model, timing chunks as the log grows.

    python scripts/large_store.py FOLDER --tokens 10000000 --tokenizer FOLDER --text BOOK... [--plot PICTURE]

The model is random and small, so that ten million tokens fit on a disk; its tokenizer is that of any
model's folder. Run it again after an interruption and it goes on; when all is read, it reopens the memory
and asks it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from emllm import Document, EpisodicLM, MemoryConfig, Sampling
from emllm.answers import peak_rss_bytes
from emllm.memory.layer import MemoryLayer
from emllm.reading import ReadProgress

SECONDS: dict[str, float] = defaultdict(float)


def timed(owner: type, name: str, label: str) -> None:
    """Add up the time that a method takes."""
    inner = getattr(owner, name)

    def outer(*args: object, **kwargs: object) -> object:
        begun = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            SECONDS[label] += time.perf_counter() - begun

    setattr(owner, name, outer)


def small_model(tokenizer: object) -> LlamaForCausalLM:
    """Four layers with one key-value head of 32 features: 512 bytes a token in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    log = args.folder.with_suffix(".jsonl")
    timed(MemoryLayer, "_recall", "ranking")
    config = MemoryConfig(chunk_tokens=2048, device_budget=256 << 20)
    text = "\n\n".join(path.read_text("utf-8") for path in args.text)
    with EpisodicLM(small_model(tokenizer), tokenizer, name="small-random") as lm:
        with lm.memory(args.folder, config) as memory, log.open("a") as lines:
            read(memory, text, args.tokens, lines)
        begun = time.perf_counter()
        with lm.memory(args.folder, read_only=True) as memory:
            opened = time.perf_counter() - begun
            answer = lm.ask(memory, "Who came to the house?", sampling=Sampling(max_new_tokens=8))
            asked = time.perf_counter() - begun - opened
            print(
                f"{memory.num_tokens:,} tokens, {memory.num_events:,} events: opened in {opened:.1f} s, "
                f"answered in {asked:.1f} s with {len(answer.evidence)} pieces of evidence, "
                f"peak RSS {peak_rss_bytes() / 1e9:.2f} GB"
            )
    if args.plot:
        plot(log, args.plot)


def read(memory: object, text: str, num_tokens: int, lines: object) -> None:
    """Read pieces of the text, over and over, until there are so many tokens."""
    size = 4_000_000
    number = len(memory.documents) - (memory.document_being_read is not None)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    while memory.num_tokens < num_tokens:
        last = {"time": time.perf_counter(), "ranking": SECONDS["ranking"], "tokens": memory.num_tokens}

        def progress(now: ReadProgress, last: dict[str, float] = last) -> None:
            if memory.num_tokens - last["tokens"] < 50_000:
                return
            here = time.perf_counter()
            chunks = (memory.num_tokens - last["tokens"]) / memory.config.chunk_tokens
            entry = {
                "tokens": memory.num_tokens,
                "events": memory.num_events,
                "chunk_ms": 1e3 * (here - last["time"]) / chunks,
                "ranking_ms": 1e3 * (SECONDS["ranking"] - last["ranking"]) / chunks,
                "peak_rss": peak_rss_bytes(),
            }
            last.update(time=here, ranking=SECONDS["ranking"], tokens=memory.num_tokens)
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

        memory.read(Document(f"part-{number:03d}", pieces[number % len(pieces)]), progress=progress)
        number += 1


def plot(log: Path, picture: Path) -> None:
    """Time per chunk, and how much of it is ranking, against the log's length."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    millions = [row["tokens"] / 1e6 for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(millions, [row["chunk_ms"] for row in rows], label="a chunk of 2,048 tokens")
    axes.plot(millions, [row["ranking_ms"] for row in rows], label="of it, ranking events")
    axes.set(xlabel="million tokens in the memory", ylabel="milliseconds", ylim=(0, None))
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
