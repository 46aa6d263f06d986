"""What each codec costs: bytes, precision, answers and speed, on a real text with a real model.

    python scripts/codecs.py BOOK [--model default] [--tokens 12000]

Reads the text once per codec, then one more chunk and some questions, each on a fork; everything is compared
with the codec `exact` in the same run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from emllm import Document, EpisodicLM, EpisodicMemory, MemoryConfig, Sampling
from emllm.config import CODECS
from emllm.store.codecs import make_codec

QUESTIONS = (
    "Who is speaking at the beginning?",
    "What is the name of the main character?",
    "Where does the story take place?",
    "What happened at the party?",
    "Who came to the house?",
    "What did they talk about?",
    "Who is rich?",
    "What letter arrived?",
    "Who is ill?",
    "What war is being discussed?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--tokens", type=int, default=12_000)
    args = parser.parse_args()
    text = args.book.read_text("utf-8")
    with EpisodicLM.from_pretrained(args.model) as lm:
        ids = lm.chat_format.encode(text[: 8 * args.tokens])[: args.tokens + 512]
        read, after = ids[: args.tokens], torch.tensor([ids[args.tokens :]])
        warm_up = lm.memory(config=MemoryConfig())
        warm_up.read(Document("text", lm.chat_format.decode(read[:2048])))
        exact: tuple[torch.Tensor, list[str]] | None = None
        print(
            "| codec | bytes a token | largest logit error | mean | KL | same next | same answers | reading |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for codec in CODECS:
            memory = lm.memory(config=MemoryConfig(codec=codec))
            begun = time.perf_counter()
            memory.read(Document("text", lm.chat_format.decode(read)))
            speed = memory.read_tokens / (time.perf_counter() - begun)
            logits, answers = next_logits(lm, memory, after), asked(lm, memory)
            exact = exact or (logits, answers)
            error = (logits - exact[0]).abs()
            log_probs, true = logits.log_softmax(-1), exact[0].log_softmax(-1)
            divergence = (true.exp() * (true - log_probs)).sum(-1).mean()
            same = (logits.argmax(-1) == exact[0].argmax(-1)).float().mean()
            words = sum(agreement(a, b) for a, b in zip(answers, exact[1], strict=True)) / len(answers)
            print(
                f"| `{codec}` | {bytes_per_token(memory):,.0f} | {error.max():.3f} | {error.mean():.4f} "
                f"| {divergence:.5f} | {same:.1%} | {words:.0%} | {speed:.0f} tokens/s |",
                flush=True,
            )


@torch.no_grad()
def next_logits(lm: EpisodicLM, memory: EpisodicMemory, ids: torch.Tensor) -> torch.Tensor:
    """Predictions for the text that follows, on a fork."""
    cache = lm.cache(memory.fork())
    return lm.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0].float()


def asked(lm: EpisodicLM, memory: EpisodicMemory) -> list[str]:
    """Greedy answers."""
    return [lm.ask(memory, one, sampling=Sampling(max_new_tokens=24)).text for one in QUESTIONS]


def agreement(one: str, other: str) -> float:
    """Share of the words that two answers begin with alike."""
    ours, theirs = one.split(), other.split()
    alike = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return alike / max(len(ours), len(theirs), 1)


def bytes_per_token(memory: EpisodicMemory) -> float:
    """Of encoded keys and values, all layers."""
    log = memory._log
    name, page = memory.config.codec, 64
    return sum(make_codec(name, shape, page).page_bytes for shape in log.shapes) / page


if __name__ == "__main__":
    main()
