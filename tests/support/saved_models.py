"""A tiny model in a folder, with a tokenizer, as a user has one."""

from __future__ import annotations

from pathlib import Path

import torch
from families import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(num_words: int, **settings: str) -> PreTrainedTokenizerFast:
    """The words w0, w1, ... are the tokens 0, 1, ..., parted by spaces."""
    words = {f"w{i}": i for i in range(num_words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", **settings)


def save_tiny_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A llama and its tokenizer; gives the folder back."""
    tiny_model("llama", dtype=dtype).save_pretrained(folder)
    word_tokenizer(131).save_pretrained(folder)
    return folder
