"""What the golden runs recorded about representatives, and our attention mass over the same steps."""

from __future__ import annotations

import torch
from tests.conformance.replay import GROUP, HEAD_DIM, Replay, Run, turn
from torch import Tensor

from emllm.recall.event_keys import PaddedEvents
from emllm.recall.weights import attention_mass


def accumulated_mass(run: Run, again: Replay, layer_idx: int, *, per_query_head: bool) -> Tensor:
    """`attention_mass`, summed over the steps of a run: one row per query head, or per KV head."""
    num_local, key = run.config.n_local, again.keys[layer_idx]
    if per_query_head:
        key = key.repeat_interleave(GROUP, 0)
    total = torch.zeros(key.shape[:2])
    for step in range(len(run["step_start"])):
        start, stop = run.span(step)
        first = max(0, start - num_local)  # one key more than any query sees
        total[:, first:stop] += attention_mass(
            turn(again.queries[layer_idx][:, start:stop], start - first),
            turn(key[:, first:stop], 0),
            again.normalisers[layer_idx][:, start:stop],
            scaling=HEAD_DIM**-0.5,
            local_tokens=num_local,
        )
    return total


def recorded_events(run: Run) -> tuple[slice, PaddedEvents]:
    """Where the recorded events lie, and their sizes as rows."""
    sizes = run["block_end"] - run["block_start"]
    return slice(int(run["block_start"][0]), int(run["block_end"][-1])), PaddedEvents(sizes.long())
