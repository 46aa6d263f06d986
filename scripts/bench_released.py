"""Reading speed with the settings at which the paper's released code was timed on a CPU.

The released code's figures (float32, 2 threads, one undisturbed 2-core machine): S 721, SM 629 and SM+C 652
tokens/s over tokens 2,048 to 16,384, on a machine whose 2048 x 2048 float32 matrix product ran at about 325
GFLOP/s. This program makes a model of the same shape with random weights, reads the same span with the same
settings, and prints tokens/s, the machine's own matrix speed in the same run, and the ratio scaled for it.
It also prints how fast the model alone reads chunks of that length over a window of that width: no memory can
be faster.

    python scripts/bench_released.py [--dtype float32]
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from emllm import EpisodicLM, MemoryConfig
from emllm.machine import keep_freed_memory
from emllm.models.windowed import windowed_cache
from emllm.reading import read_tokens

RELEASED = {"S": (721, 322), "SM": (629, 326), "SM+C": (652, 328)}
FIRST, LAST = 2048, 16384
SINKS, LOCAL, RECALLED, CHUNK = 64, 1024, 1024, 256


def make_model(dtype: torch.dtype) -> LlamaForCausalLM:
    """56.4 M parameters, random weights of deviation 0.05."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=1408, rope_theta=1e4, max_position_embeddings=32768, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    return model.to(dtype)


def calibrate(repeats: int = 10) -> float:
    """GFLOP/s of a 2048 x 2048 float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    begun = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return 2 * 2048**3 * repeats / (time.perf_counter() - begun) / 1e9


def read_speed(lm: EpisodicLM, config: MemoryConfig, ids: list[int]) -> float:
    """Tokens per second from `FIRST` to `LAST`."""
    marks = {}
    memory = lm.memory(config=config)
    read_tokens(
        lm.model, lm.cache(memory), ids, chunk_tokens=config.chunk_tokens,
        progress=lambda step: marks.__setitem__(step.num_read, step.seconds),
    )  # fmt: skip
    return (LAST - FIRST) / (marks[LAST] - marks[FIRST])


@torch.no_grad()
def bare_speed(model: LlamaForCausalLM, ids: list[int]) -> float:
    """Tokens per second of the model alone, over a window as wide as all that a memory shows it."""
    cache = windowed_cache(model.config.num_hidden_layers, SINKS + LOCAL + RECALLED)
    chunks = torch.tensor([ids]).split(CHUNK, dim=1)
    for chunk in chunks[: FIRST // CHUNK]:
        model(input_ids=chunk, past_key_values=cache, use_cache=True)
    begun = time.perf_counter()
    for chunk in chunks[FIRST // CHUNK :]:
        model(input_ids=chunk, past_key_values=cache, use_cache=True)
    return (LAST - FIRST) / (time.perf_counter() - begun)


def main() -> None:
    """Print a line for the model alone, and one for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    model = make_model(getattr(torch, arguments.dtype))
    ids = torch.randint(0, 32000, (LAST,), generator=torch.Generator().manual_seed(1)).tolist()
    print(f"dtype {arguments.dtype}, {arguments.threads} threads, tokens {FIRST:,} to {LAST:,}")
    print(f"model alone, windowed forwards: {bare_speed(model, ids):.0f} tokens/s")
    lm = EpisodicLM(model)
    for variant, (released, released_gflops) in RELEASED.items():
        config = MemoryConfig.preset(
            "em-llm", variant=variant, sink_tokens=SINKS, local_tokens=LOCAL, recall_tokens=RECALLED,
            chunk_tokens=CHUNK, min_event_tokens=8, max_event_tokens=64, refine_from_layer=4,
            surprise_window_tokens=768,
        )  # fmt: skip
        before = calibrate()
        speed = read_speed(lm, config, ids)
        gflops = (before + calibrate()) / 2
        scaled = (speed / gflops) / (released / released_gflops)
        print(
            f"{variant:5s} {speed:6.0f} tokens/s, {gflops:.0f} GFLOP/s; "
            f"released {released} at {released_gflops}: "
            f"ratio {speed / released:.2f}, per GFLOP/s {scaled:.2f}"
        )


if __name__ == "__main__":
    main()
