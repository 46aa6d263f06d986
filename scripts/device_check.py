"""Checks, times and profiles emllm on one device, a GPU above all, and writes what it found as Markdown.

    python scripts/device_check.py --device cuda --out docs/benchmarks/DATE-gpu.md
    python scripts/device_check.py --device cpu --lengths 4096 --families llama,gemma2 --out /tmp/check.md

1. Exactness: tiny random models of many families, read through a memory that covers the text, against their
   stock forward passes. 2. Where pages lie: a memory in RAM against ones in a folder with small budgets,
   reopened, and with each codec, bit for bit. 3. Speed: `emllm bench`. 4. Where a chunk's time goes.
Exit code 1 if a check fails; what was measured until then is written all the same.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.exactness import exactness_of  # noqa: E402
from tests.support.families import FAMILIES, tiny_model, token_ids  # noqa: E402

from emllm import EpisodicLM, MemoryConfig  # noqa: E402
from emllm.cli.bench import library_text, lines, parse_lengths  # noqa: E402
from emllm.evaluation.speed import SpeedBench  # noqa: E402
from emllm.memory import EpisodicMemory  # noqa: E402
from emllm.models.load import load_model  # noqa: E402
from emllm.reading import read_tokens  # noqa: E402
from emllm.store.codecs import CODECS  # noqa: E402

#: Largest difference of any logit to the stock model's in float32; in bfloat16 rounding flips routers too.
TOLERANCE = 2e-4
PROFILED_CHUNKS = 4


class Page:
    """Markdown that is written as it comes, and what failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self.failures: list[str] = []

    def add(self, text: str) -> None:
        """Lines at the end, on the screen and in the file."""
        print(text, flush=True)
        self._text += text + "\n"
        self._path.write_text(self._text, "utf-8")

    def check(self, what: str, *, is_right: bool) -> str:
        """What to say of a check."""
        if not is_right:
            self.failures.append(what)
        return "yes" if is_right else "**NO**"

    def part(self, title: str, run: Callable[[Page], None]) -> None:
        """A part of the page; the next one is tried even if this one breaks."""
        self.add(f"\n## {title}\n")
        try:
            run(self)
        except Exception as error:  # noqa: BLE001 - a lease of a GPU is too dear to end at the first error
            traceback.print_exc()
            self.failures.append(f"{title}: {type(error).__name__}: {error}")
            self.add(f"**FAILED**: {type(error).__name__}: {error}")


def exactness(page: Page, device: torch.device, families: list[str]) -> None:
    """Logits and greedy text of every family; in bfloat16 beside what chunks change in the stock model."""
    page.add("| family | float32, to stock | within 2e-4 | same greedy text | bfloat16 | stock, in chunks |")
    page.add("|---|---|---|---|---|---|")
    for name in families:
        fine = exactness_of(tiny_model(name).to(device))
        coarse = exactness_of(tiny_model(name, dtype=torch.bfloat16).to(device))
        within = page.check(f"{name}: {fine.difference:.1e}", is_right=fine.difference <= TOLERANCE)
        said = page.check(f"{name}: text", is_right=fine.is_same_text)
        page.add(
            f"| {name} | {fine.difference:.1e} | {within} | {said} "
            f"| {coarse.difference:.1e} | {coarse.in_chunks:.1e} |"
        )


def memories(lm: EpisodicLM, folder: Path) -> Iterator[tuple[str, MemoryConfig, Path | None]]:
    """Ways to keep the same tokens that must not differ, codec by codec."""
    for codec in CODECS:
        common = {"local_tokens": 64, "recall_tokens": 128, "chunk_tokens": 64, "codec": codec}
        yield f"{codec}, RAM", MemoryConfig(**common), None
        for budget in (0, 200_000):
            for host in (0, 200_000):
                config = MemoryConfig(**common, device_budget=budget, host_budget=host)
                yield (
                    f"{codec}, folder, budgets {budget} and {host}",
                    config,
                    folder / f"{codec}{budget}{host}",
                )


def placement(page: Page, device: torch.device) -> None:
    """The same logits wherever pages lie, and after reopening."""
    lm = EpisodicLM(tiny_model("llama", dtype=torch.bfloat16).to(device))
    ids = token_ids(lm.model, 1500)[0].tolist()
    page.add("| memory | logits after 1,400 tokens as in RAM | after reopening |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, torch.Tensor] = {}
        for what, config, path in memories(lm, Path(folder)):
            with lm.memory(path, config) as memory:
                read_tokens(lm.model, lm.cache(memory), ids[:1400], chunk_tokens=64)
                found = [ahead(lm, memory, ids[1400:])]
            if path is not None:
                with lm.memory(path, config) as memory:
                    found.append(ahead(lm, memory, ids[1400:]))
            known = expected.setdefault(config.codec, found[0])
            said = [page.check(what, is_right=torch.equal(known, one)) for one in found]
            page.add(f"| {what} | {' | '.join(said)}{' | –' if path is None else ''} |")
    lm.close()


def ahead(lm: EpisodicLM, memory: EpisodicMemory, ids: list[int]) -> torch.Tensor:
    """Logits of the next tokens, on a fork."""
    row = torch.tensor([ids], device=lm.model.device)
    return lm.model(row, past_key_values=lm.cache(memory.fork())).logits[0]


def speed(page: Page, name: str, device: str, lengths: list[int]) -> None:
    """`emllm bench`, and a profile of single chunks at the longest length."""
    model, tokenizer = load_model(name, device=device)
    text = library_text(max(lengths) * 8)
    ids = tokenizer(text[: max(lengths) * 16], add_special_tokens=False, verbose=False)["input_ids"]
    bench = SpeedBench(
        lambda: EpisodicLM(model, tokenizer, name=name), model, ids, config=MemoryConfig(), report=print
    )
    page.add("\n".join(["```", *lines(bench.run(lengths)), "```"]))
    page.add(f"\nA chunk after {lengths[0]:,} tokens, {PROFILED_CHUNKS} of them profiled:\n")
    with EpisodicLM(model, tokenizer, name=name) as lm:
        memory = lm.memory()
        chunk = memory.config.chunk_tokens
        read_tokens(model, lm.cache(memory), ids[: lengths[0] - PROFILED_CHUNKS * chunk], chunk_tokens=chunk)
        activities = [torch.profiler.ProfilerActivity.CPU]
        is_gpu = torch.device(model.device).type == "cuda"
        if is_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            rest = ids[lengths[0] - PROFILED_CHUNKS * chunk : lengths[0]]
            read_tokens(model, lm.cache(memory), rest, chunk_tokens=chunk)
    order = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
    page.add(
        "```\n" + profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50) + "```"
    )


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type != "cuda":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"


@torch.no_grad()
def main() -> int:
    """Everything; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="default")
    parser.add_argument("--lengths", type=parse_lengths, default=[16384, 131072], metavar="N,N,...")
    parser.add_argument("--families", default=",".join(sorted(FAMILIES)), metavar="NAME,NAME,...")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args()
    families = args.families.split(",")
    if unknown := [name for name in families if name not in FAMILIES]:
        parser.error(f"families must be among {', '.join(sorted(FAMILIES))}, got {unknown[0]}")
    transformers.logging.set_verbosity_error()
    device = torch.device(args.device)
    page = Page(args.out)
    page.add(f"# emllm on {hardware(device)}, {datetime.date.today().isoformat()}\n")
    page.add(f"    python scripts/device_check.py {' '.join(sys.argv[1:])}\n")
    page.add(f"torch {torch.__version__}, transformers {transformers.__version__}.")
    page.part("Exactness", lambda it: exactness(it, device, families))
    page.part("Where pages lie", lambda it: placement(it, device))
    page.part("Speed", lambda it: speed(it, args.model, args.device, args.lengths))
    page.add(
        f"\n{len(page.failures)} checks failed{': ' if page.failures else ''}{'; '.join(page.failures)}."
    )
    return int(bool(page.failures))


if __name__ == "__main__":
    sys.exit(main())
