"""Which model families a memory takes over exactly: measures them all and writes docs/models.md.

    python scripts/supported_models.py

Every family is a tiny random model, the default model is itself; what is compared are the logits of 90
tokens, read in chunks through a memory whose budget covers them, and the text of a greedy ``generate()``,
with the stock model's.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.exactness import exactness_of  # noqa: E402
from tests.support.families import FAMILIES, tiny_model, token_ids  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from emllm.models.load import DEFAULT_MODEL_TITLE, load_model  # noqa: E402

HEADER = """# Models that a memory takes over exactly

A table made by `python scripts/supported_models.py`, {date}, with transformers {transformers}, torch {torch},
float32 on a CPU. Not a list that is looked up: attaching runs a self-check on the model at hand and refuses,
with the reason, what does not pass. Tiny random models say that the arithmetic is the same, not that a model
answers well. `default` is the embedded model itself, {default}, with logits up to {largest:.0f};
`tests/test_default_model.py` holds it against its stock model on 3,000 tokens of a book, too.

"Difference" is the largest absolute difference of any logit to the stock model's, over 90 tokens read in
chunks of 33, 17, 1 and 39, with a budget that covers them. "Greedy text" compares 12 tokens of `generate()`
after a prompt of 40. "Layers" counts those with memory and those with a plain window of their own. A window
as wide as what the model was trained on, as Phi-3-mini-128k has, is none. A model whose layers all have a
narrower one (Mistral-7B-v0.1) recalls nothing, and the command line says so. A model that makes its queries
the larger the later they stand (Ministral 3) does so up to the length that it was trained on; after that they
stay as they are at its end, where the stock model's grow without bound.

| family | class | layers with memory + window | rotation | difference | greedy text |
|---|---|---|---|---|---|
"""

REFUSED = """
## What is refused

Models without rotary positions (gpt2, opt, bloom, mpt), with attention that transformers does not let others
take over, with recurrent layers, with keys shared between layers, or that attend to compressed or masked
keys: `UnsupportedModelError`, with the layer and the reason, and the model as it was. So is a model that
`torch.compile` has compiled: attach first, compile after it, and compile anew after detaching.
"""


def row(name: str, model: PreTrainedModel) -> str:
    """Measure one model."""
    found = exactness_of(model)
    geometry = found.geometry
    windows = sum(layer.window_tokens is not None for layer in geometry.layers)
    rotations = sorted({layer.rotation.convention for layer in geometry.layers})
    same = "the same" if found.is_same_text else "DIFFERENT"
    layers = f"{geometry.num_layers - windows} + {windows}"
    return (
        f"| {name} | {type(model).__name__} | {layers} | {', '.join(rotations)} "
        f"| {found.difference:.1e} | {same} |"
    )


def main() -> None:
    """Write the table."""
    transformers.logging.set_verbosity_error()
    default, _ = load_model("default", device="cpu", dtype="float32")
    with torch.no_grad():
        largest = float(default(token_ids(default, 90)).logits.abs().max())
    head = HEADER.format(
        default=DEFAULT_MODEL_TITLE,
        largest=largest,
        date=datetime.date.today().isoformat(),
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
    )
    rows = [row("default", default), *(row(name, tiny_model(name)) for name in sorted(FAMILIES))]
    path = ROOT / "docs" / "models.md"
    path.write_text(head + "\n".join(rows) + "\n" + REFUSED, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}: {len(rows)} models")


if __name__ == "__main__":
    main()
