"""Which settings find and use a planted fact: a small experiment on real text, for choosing defaults.

Five facts are planted at different depths of a book and each is asked with its own question, in five
texts. For every configuration the program prints how many answers hold the key word, the rank of the fact's
event in the layers' consensus, and the reading speed. Not a benchmark: five facts, one model.

    python scripts/needles.py BOOK.txt --tokens 12000 --set event_key=spread,scorer=votes --set ...
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from emllm import EpisodicLM, MemoryConfig, Sampling

#: Depth in the text, the fact, the question, and the word that an answer must hold.
FACTS = [
    (
        0.15,
        "The secret ingredient of Marta's soup is saffron.",
        "What is the secret ingredient of the soup?",
        "saffron",
    ),
    (0.30, "The blue bicycle belongs to Doctor Osei.", "To whom does the blue bicycle belong?", "Osei"),
    (0.45, "The pass key is 71432.", "What is the pass key?", "71432"),
    (0.60, "Captain Ibsen hid the map inside a violin case.", "Where did Ibsen hide the map?", "violin"),
    (0.75, "The festival in Lorvão begins in October.", "When does the festival begin?", "October"),
]


def planted(text: str, num_chars: int) -> str:
    """The beginning of a text with each fact as a paragraph of its own at its depth."""
    text = text[:num_chars]
    for depth, fact, _, _ in reversed(FACTS):
        cut = text.find("\n", int(depth * len(text)))
        cut = int(depth * len(text)) if cut < 0 else cut
        text = f"{text[:cut]}\n\n{fact}\n\n{text[cut:]}"
    return text


def run(lm: EpisodicLM, text: str, config: MemoryConfig, label: str) -> None:
    """Read once, ask every question, print a line."""
    memory = lm.memory(config=config)
    begun = time.perf_counter()
    memory.read(text)
    seconds = time.perf_counter() - begun
    hits, ranks = 0, []
    for _, _, question, key in FACTS:
        answer = lm.ask(
            memory, question, sampling=Sampling(max_new_tokens=32), num_evidence=memory.num_events
        )
        ranks.append(next((i for i, item in enumerate(answer.evidence) if key in item.text), -1))
        hits += key in answer.text
    print(
        f"{label:60s} answered {hits}/5 ranks {ranks} of {memory.num_events} events, "
        f"{memory.num_tokens / seconds:.0f} tokens/s",
        flush=True,
    )


def main() -> None:
    """Compare configurations given as comma-separated settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book", type=Path)
    parser.add_argument("--tokens", type=int, default=12000)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    lm = EpisodicLM.from_pretrained(arguments.model)
    text = planted(arguments.book.read_text(), arguments.tokens * 4)
    for line in arguments.settings or [""]:
        settings = dict(item.split("=") for item in line.split(",") if item)
        preset = settings.pop("preset", "default")
        typed = {k: int(v) if v.isdigit() else float(v) if v[0].isdigit() else v for k, v in settings.items()}
        run(lm, text, MemoryConfig.preset(preset, **typed), line or "default")


if __name__ == "__main__":
    main()
