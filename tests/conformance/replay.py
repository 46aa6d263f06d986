"""The golden runs once more: a tiny Llama in plain torch with the attention that their README documents.

Teacher-forced: at every step the recorded events, remainder and sinks are attended to, in the recorded
way, peculiarities included, so every layer's queries and keys and all logits of a run are those of the
released code. This module knows nothing of emllm; it exists so that emllm can be compared with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

HEADS, KV_HEADS, HEAD_DIM, LAYERS, EPS, THETA = 8, 4, 16, 4, 1e-5, 1e4
GROUP = HEADS // KV_HEADS
#: The recorded runs, by whether their boundaries were refined.
UNREFINED = ("F", "S", "S_C", "S_Cabs", "S_Cdup", "S_init40_k2", "S_gamma2", "S_decode192", "S_short100")
REFINED = ("SM", "SC", "SI", "SM_C", "SC_C", "SM_nobuf")
VARIANTS = UNREFINED + REFINED


class Run:
    """A recorded run: its tensors as attributes, its settings, and rows of its ragged fields."""

    def __init__(self, golden: Path, variant: str) -> None:
        folder = golden / f"llama-{variant}"
        self.tensors = load_file(folder / "data.safetensors")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.config = SimpleNamespace(**self.meta["config"])
        self.token_ids = torch.cat([self["input_ids"], self["output_ids"]])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def row(self, name: str, step: int, layer_idx: int) -> list:
        """One step's and layer's entries of a ragged field."""
        row = step * LAYERS + layer_idx
        ids = "sim_values" if name == "sim" else f"{name}_ids"
        start, stop = self[f"{name}_ptr"][row : row + 2].tolist()
        return self[ids][start:stop].tolist()

    def span(self, step: int) -> tuple[int, int]:
        start = int(self["step_start"][step])
        return start, start + int(self["step_len"][step])

    def far_tokens(self, step: int, layer_idx: int) -> list[int]:
        """Tokens outside the local window that the step attends to, as often as it does."""
        starts, stops = self["block_start"].tolist(), self["block_end"].tolist()
        far: list[int] = []
        for event in sorted(self.row("used", step, layer_idx)):
            far += range(starts[event], stops[event])
        _, stop = self.span(step)
        remainder_stop = stop - self.config.n_local
        remainder = range(remainder_stop - int(self["rem_len"][step]), remainder_stop)
        return [*far, *range(int(self["init_len"][step])), *remainder]


@dataclass
class Replay:
    """What a run computed, per layer where a list."""

    logits: Tensor
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    normalisers: list[Tensor]
    attention: dict[tuple[int, int], Tensor]


def angles(num_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of positions 0, 1, ...; one column per pair of features."""
    rates = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    table = torch.arange(num_tokens)[:, None] * rates
    return table.cos(), table.sin()


def turn(x: Tensor, first: int, *, alike: bool = False) -> Tensor:
    """Tokens turned as at positions first, first + 1, ... (or all as at `first`)."""
    cos, sin = (t[first:] for t in angles(first + (1 if alike else x.shape[-2])))
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def logits_of(query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products ``[H, T, S]``."""
    return query @ key.repeat_interleave(GROUP, 0).transpose(1, 2) / HEAD_DIM**0.5


def window(start: int, stop: int, local_tokens: int) -> tuple[int, Tensor]:
    """First key of a step's local part, and which keys each query sees."""
    first = max(0, start - local_tokens + 1)
    distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)
    return first, (distance >= 0) & (distance < local_tokens)


@torch.no_grad()
def replay(golden: Path, run: Run, *, num_steps: int | None = None) -> Replay:
    """Run the first steps (all, if not told) of a recorded run."""
    weights = load_file(golden / "models" / "llama" / "model.safetensors")
    steps = len(run["step_start"]) if num_steps is None else num_steps
    keys: list[Tensor] = [torch.zeros(KV_HEADS, 0, HEAD_DIM)] * LAYERS
    values, queries = list(keys), [torch.zeros(HEADS, 0, HEAD_DIM)] * LAYERS
    normalisers, outputs = [torch.zeros(HEADS, 0)] * LAYERS, {}
    logits = []
    for step in range(steps):
        start, stop = run.span(step)
        first, sees = window(start, stop, run.config.n_local)
        x = embedding(run.token_ids[start:stop], weights["model.embed_tokens.weight"])
        for idx in range(LAYERS):
            w = {k.split(".", 3)[3]: v for k, v in weights.items() if f".layers.{idx}." in k}
            normed = rms_norm(x, x.shape[-1:], w["input_layernorm.weight"], EPS)
            query, key, value = (
                linear(normed, w[f"self_attn.{c}_proj.weight"]).unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1)
                for c in "qkv"
            )
            keys[idx], values[idx] = torch.cat([keys[idx], key], 1), torch.cat([values[idx], value], 1)
            queries[idx] = torch.cat([queries[idx], query], 1)
            near = logits_of(turn(query, start - first), turn(keys[idx][:, first:], 0))
            far_idx = run.far_tokens(step, idx)
            far = logits_of(turn(query, run.config.n_local - 1, alike=True), keys[idx][:, far_idx])
            joint = torch.cat([near.masked_fill(~sees, -torch.inf), far], dim=-1)
            attended = torch.cat([values[idx][:, first:], values[idx][:, far_idx]], 1)
            mixed = joint.softmax(-1) @ attended.repeat_interleave(GROUP, 0)
            normalisers[idx] = torch.cat([normalisers[idx], joint.logsumexp(-1)], 1)
            outputs[step, idx] = mixed.transpose(0, 1).flatten(1)
            x = x + linear(outputs[step, idx], w["self_attn.o_proj.weight"])
            normed = rms_norm(x, x.shape[-1:], w["post_attention_layernorm.weight"], EPS)
            gate, up = linear(normed, w["mlp.gate_proj.weight"]), linear(normed, w["mlp.up_proj.weight"])
            x = x + linear(silu(gate) * up, w["mlp.down_proj.weight"])
        x = rms_norm(x, x.shape[-1:], weights["model.norm.weight"], EPS)
        logits.append(linear(x, weights["lm_head.weight"]))
    return Replay(torch.cat(logits), queries, keys, values, normalisers, outputs)
