"""Reading one document to see its events: a fresh memory without template or sinks, and its boundaries.

The document stands alone in the log, so events partition it, and the boundaries that still wait for tokens
at its end are settled as if the text ended there; the memory itself is not finished. This module does not
know files, nor what becomes of a segmented text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emllm.analysis.segmented import SegmentedText
from emllm.config import UNLIMITED_TOKENS, MemoryConfig
from emllm.documents.document import Document
from emllm.errors import InputError, ModelError
from emllm.lm import EpisodicLM
from emllm.models.load import DEFAULT_MODEL, DEFAULT_MODEL_TITLE
from emllm.reading import ProgressCallback, check_fits, read_tokens
from emllm.segmentation.threshold import boundary_flags


def segment(
    lm: EpisodicLM,
    document: Document,
    config: MemoryConfig | None = None,
    progress: ProgressCallback | None = None,
) -> SegmentedText:
    """The document as the model's tokens, their surprise, and its events.

    Args:
        lm: the model that reads.
        document: what is read, from an empty memory on.
        config: settings; `sink_tokens` is taken as 0, because events begin after the sinks and here they
            must begin with the text.
        progress: called after each chunk.

    Raises:
        InputError: the text has no token in this model's vocabulary.
        SourceError: its keys and values will not fit.
        ModelError: no tokenizer, or logits that are not finite.
    """
    if lm.tokenizer is None:
        raise ModelError("this model has no tokenizer; give one to EpisodicLM(model, tokenizer)")
    check_fits(len(document.text.encode()), lm.geometry, name=document.name)
    memory = lm.memory(config=dataclasses.replace(config or MemoryConfig(), sink_tokens=0))
    token_ids, pieces = tokens_and_pieces(lm.tokenizer, document.text)
    if not token_ids:
        raise InputError(f"{document.name}: the text has no token in the vocabulary of {lm.name}")
    read_tokens(
        lm.model,
        lm.cache(memory),
        token_ids,
        chunk_tokens=memory.config.chunk_tokens,
        progress=progress,
    )
    surprise = memory.surprise()
    boundaries = [event.start for event in memory.events()] + memory.closing_boundaries()
    return SegmentedText(
        document=document.name,
        model=shown_name(lm.name),
        pieces=pieces,
        surprise=surprise,
        threshold=_threshold(surprise, memory.config),
        boundaries=boundaries,
        settings=plain_settings(memory.config),
    )


def shown_name(name: str) -> str:
    """A model's name for readers: what the default is, and of a folder or file not the whole path."""
    if name == DEFAULT_MODEL:
        return DEFAULT_MODEL_TITLE
    return Path(name).name if Path(name).exists() else name


def tokens_and_pieces(tokenizer: Any, text: str) -> tuple[list[int], list[str]]:
    """Token ids of a text and the text of each, which joined are the text, character for character.

    A tokenizer that knows where its tokens stand is asked for that: its vocabulary need not have every
    character, and it may have normalised some. A character of several tokens belongs to the first of them.
    With other tokenizers the pieces are what the tokens decode to, and belong to the last.
    """
    is_fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=is_fast, verbose=False)
    token_ids = list(encoded["input_ids"])
    if not is_fast:
        return token_ids, decoded_pieces(tokenizer, token_ids)
    stops = np.maximum.accumulate([0, *(stop for _, stop in encoded["offset_mapping"])])
    if token_ids:
        stops[-1] = len(text)
    return token_ids, [text[start:stop] for start, stop in pairwise(stops.tolist())]


def decoded_pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text; nothing while a character is not whole.

    Each token is decoded behind a few before it, since a tokenizer may drop the space before the first word.
    """
    pieces: list[str] = []
    context, shown = 0, 0
    for token_idx in range(len(token_ids)):
        known = tokenizer.decode(token_ids[context:shown])
        longer = tokenizer.decode(token_ids[context : token_idx + 1])
        is_last = token_idx == len(token_ids) - 1
        if len(longer) > len(known) and (is_last or not longer.endswith("\ufffd")):
            pieces.append(longer[len(known) :])
            context, shown = shown, token_idx + 1
        else:
            pieces.append("")
    return pieces


def plain_settings(config: MemoryConfig) -> dict[str, Any]:
    """The settings as JSON values; an unlimited budget is ``all``, as the user writes it."""
    settings = dataclasses.asdict(config)
    if settings["recall_tokens"] == UNLIMITED_TOKENS:
        settings["recall_tokens"] = "all"
    return settings


def _threshold(surprise: Float[np.ndarray, " T"], config: MemoryConfig) -> Float[np.ndarray, " T"]:
    """Nats of surprise above which a token was proposed as a boundary; NaN if surprise did not decide."""
    if config.segmenter != "surprise":
        return np.full(len(surprise), np.nan)
    values = surprise.astype(np.float64)
    return boundary_flags(values, gamma=config.gamma, window_tokens=config.surprise_window_tokens)[1]
