"""The replay is the released code's run, so what is shown on it is shown about that code."""

from __future__ import annotations

import pytest
import torch
from tests.conformance.replay import HEAD_DIM, LAYERS, VARIANTS, turn

#: The golden data's own tolerance on logits and surprise.
ATOL = 3e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_replay_gives_the_recorded_attention_and_logits(replayed, variant):
    run, again = replayed(variant)
    for name, recorded in run.tensors.items():
        if name.startswith("attn_step"):
            step = int(name.removeprefix("attn_step"))
            for idx in range(LAYERS):
                torch.testing.assert_close(again.attention[step, idx], recorded[idx], atol=ATOL, rtol=0)
        if name.startswith("logits_step"):
            start, stop = run.span(int(name.removeprefix("logits_step")))
            torch.testing.assert_close(again.logits[start:stop], recorded, atol=ATOL, rtol=0)
    last = run["step_start"] + run["step_len"] - 1
    torch.testing.assert_close(again.logits[last.long()], run["last_logits"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_replay_gives_the_recorded_queries(replayed, variant):
    run, again = replayed(variant)
    for row, step in enumerate(run["query_mean_steps"].tolist()):
        start, stop = run.span(step)
        for idx in range(LAYERS):
            query = turn(again.queries[idx][:, start:stop], run.config.n_local - 1, alike=True).mean(1)
            recorded = run["query_mean"][row, idx].view(-1, HEAD_DIM)
            torch.testing.assert_close(query, recorded, atol=ATOL, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_replayed_continuation_is_the_recorded_one(replayed, variant):
    run, again = replayed(variant)
    first = run.meta["n_prompt"] - 1
    assert again.logits[first:-1].argmax(-1).tolist() == run["output_ids"].tolist()
