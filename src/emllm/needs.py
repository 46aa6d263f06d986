"""What reading a text with a model needs: one formula for each figure of a plan.

Pure arithmetic on a model's measures, the settings and the length of a text, so that measurement can be held
against it. This module does not know the machine, nor how anything is stored or computed; what was measured
elsewhere stands here as a constant.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emllm.config import UNLIMITED_TOKENS, ResolvedConfig
from emllm.store.sizes import PAGE_TOKENS, most_raw_tokens

if TYPE_CHECKING:
    from emllm.attention.geometry import LayerGeometry
    from emllm.models.outline import Outline

#: Mean length of an event with the default settings: 17.8 in War and Peace (770 events in 13,683 tokens).
MEAN_EVENT_TOKENS = 18.0

#: Python with torch, transformers and an attached model of no size (resident, measured).
PROCESS_BYTES = 420_000_000
#: What the allocator and the libraries of matrix products hold on to once a model computes, beyond all else
#: that is counted: 150 and 200 MB (measured, 21,306 tokens and the default model).
WORKING_BYTES = 150_000_000
#: A token of the text that is being read: its ids as Python numbers and what the tokenizer returns with
#: them (measured), and its letters.
TOKENISING_BYTES = 590
#: A token in RAM beside its keys and values: id (int64) and surprise (float32).
LOG_BYTES = 12
#: A token on disk beside its keys and values: id (int32) and surprise (float32).
SCALAR_BYTES = 8
#: An event in RAM beside its keys: start, size and age.
EVENT_BYTES = 32
#: An event in RAM in each layer that ranks: its habit (sum and age), with room to grow.
HABIT_BYTES = 24
#: A tensor in the header of a file, and the tensors of a unit's file beside the pages of each layer: ids,
#: surprise, event keys and scales, and three of recalls.
HEADER_BYTES, UNIT_TENSORS = 75, 7
#: A recall on disk, and each event that it recalled.
RECALL_BYTES, RECALLED_BYTES = 24, 12
#: The catalogue: empty, and for each layer (header and state), event (its span), unit (the rows of its file
#: and its commit) and checksum; rows fill SQLite's pages to about three quarters.
CATALOGUE_BYTES, LAYER_BYTES, SPAN_BYTES, UNIT_BYTES, CHECKSUM_BYTES = 24_576, 500, 16, 106, 4
CATALOGUE_FILL = 0.75
#: Context buffers of a layer: the present ones and the ones being laid out, each with some room to grow.
CONTEXT_COPIES = 2 * 9 / 8
#: Logits that are in float32 at a time while surprise is computed (`segmentation.surprise.BLOCK_LOGITS`), but
#: two rows at least.
SURPRISE_LOGITS = 3 << 17


@dataclass(frozen=True)
class Workload:
    """What is to be read.

    Attributes:
        num_tokens: of all documents together.
        longest_tokens: of the longest document; each is tokenised at once.
        tokens_per_second: speed of reading.
        mean_event_tokens: mean length of an event.
        page_tokens: tokens of a page.
        num_documents: each of which ends with a unit, and a page, that may be short.
    """

    num_tokens: int
    longest_tokens: int
    tokens_per_second: float
    mean_event_tokens: float = MEAN_EVENT_TOKENS
    page_tokens: int = PAGE_TOKENS
    num_documents: int = 1


@dataclass(frozen=True)
class Needs:
    """The formulae, for one model, settings and text. See `Plan` for each."""

    model: Outline
    config: ResolvedConfig
    work: Workload

    @property
    def kv_bytes_per_token(self) -> int:
        """See `Plan`, as all that follow."""
        return self.model.geometry.kv_bytes_per_token

    @property
    def num_events(self) -> int:
        """Events, those still open included."""
        return round(self.work.num_tokens / self.work.mean_event_tokens)

    @property
    def unit_tokens(self) -> int:
        """Tokens of a unit, which is one file: a chunk."""
        return self.config.chunk_tokens

    @property
    def num_units(self) -> int:
        """Files at the end, but for that of the state; at most, where there are several documents."""
        return -(-self.work.num_tokens // self.unit_tokens) + self.work.num_documents - 1

    @property
    def sealed_tokens(self) -> int:
        """Tokens of the units that have left the window before the last chunk is read."""
        num_tokens = self.work.num_tokens
        last_chunk = (num_tokens - 1) % self.unit_tokens + 1
        views = max(self.config.local_tokens + self.work.mean_event_tokens, self._sliding_tokens)
        left = int(num_tokens - last_chunk - views)
        return max(left // self.unit_tokens, 0) * self.unit_tokens

    @property
    def index_bytes(self) -> int:
        """Of the event keys, which are on disk as they are in RAM."""
        if not self._has_index:
            return 0
        is_exact = self.config.index_precision == "exact"
        feature, scale = (self.model.geometry.dtype.itemsize, 0) if is_exact else (1, 4)
        keys = feature * self.config.num_keys
        return self.num_events * sum(
            layer.num_kv_heads * (keys * layer.head_dim + scale) for layer in self._full_layers
        )

    @property
    def recalls_bytes(self) -> int:
        """What each chunk recalled, which is kept on disk, from the first for which not everything fits."""
        if not self._has_index:
            return 0
        views = self.config.sink_tokens + self.config.local_tokens + self.config.recall_tokens
        num_first = 1 + int(views + self.work.mean_event_tokens) // self.unit_tokens
        num_recalls = max(self.num_units - num_first, 0) * len(self._full_layers)
        recalled = self.config.recall_tokens / self.work.mean_event_tokens
        return int(num_recalls * (RECALL_BYTES + recalled * RECALLED_BYTES))

    @property
    def state_bytes(self) -> int:
        """What one chunk leaves for the next: the last logits, and what the index took off in each layer."""
        geometry = self.model.geometry
        centres = sum(layer.num_kv_heads * layer.head_dim * 4 for layer in self._full_layers)
        is_centred = self._has_index and self.config.index_precision == "int8"
        return geometry.vocab_size * geometry.dtype.itemsize + is_centred * centres

    @property
    def catalogue_bytes(self) -> int:
        """Of the SQLite file."""
        num_layers = self.model.geometry.num_layers
        checksums = self._num_pages(self.work.num_tokens) * num_layers + self.num_units * (UNIT_TENSORS + 1)
        counted = self.num_events * SPAN_BYTES + self.num_units * UNIT_BYTES + checksums * CHECKSUM_BYTES
        return CATALOGUE_BYTES + num_layers * LAYER_BYTES + int(counted / CATALOGUE_FILL)

    def _num_pages(self, num_tokens: int) -> int:
        """Pages of a layer; the last of each unit is as large as the others."""
        num_whole, rest = divmod(num_tokens, self.unit_tokens)
        page_tokens = self.work.page_tokens
        whole = num_whole * -(-self.unit_tokens // page_tokens)
        return whole + -(-rest // page_tokens) + self.work.num_documents - 1

    def pages_bytes(self, codec: str) -> int:
        """Encoded pages of the sealed tokens, all layers."""
        num_pages = self._num_pages(self.sealed_tokens) if self.sealed_tokens else 0
        return num_pages * page_bytes(self.model, codec, self.work.page_tokens)

    def disk_bytes(self, codec: str) -> int:
        """The folder of the memory."""
        page_tokens, num_tokens = self.work.page_tokens, self.work.num_tokens
        num_sealed = self._num_pages(self.sealed_tokens) if self.sealed_tokens else 0
        num_raw = self._num_pages(num_tokens) - num_sealed
        raw = num_raw * page_bytes(self.model, "exact", page_tokens)
        scalars = num_tokens * SCALAR_BYTES
        headers = self.num_units * (self.model.geometry.num_layers + UNIT_TENSORS) * HEADER_BYTES
        kept = self.index_bytes + self.recalls_bytes + self.state_bytes + self.catalogue_bytes
        return self.pages_bytes(codec) + raw + kept + scalars + headers

    @property
    def activation_bytes(self) -> int:
        """What a chunk needs while the model computes."""
        chunk, geometry = min(self.config.chunk_tokens, self.work.num_tokens), self.model.geometry
        itemsize = geometry.dtype.itemsize
        logits = chunk * geometry.vocab_size * itemsize + max(2 * geometry.vocab_size, SURPRISE_LOGITS) * 4
        layer = chunk * (4 * self.model.hidden_size + 3 * self.model.inner_size) * itemsize
        widths = sum(layer.num_kv_heads * (layer.head_dim + layer.value_dim) for layer in self._full_layers)
        contexts = CONTEXT_COPIES * (self.attended_tokens + chunk) * widths * itemsize
        return logits + layer + int(contexts)

    @property
    def attended_tokens(self) -> int:
        """Sinks, recalled and local tokens."""
        views = self.config.sink_tokens + self.config.recall_tokens + self.config.local_tokens
        return min(views, self.work.num_tokens)

    @property
    def tail_bytes(self) -> int:
        """Raw tokens at most, those of a slab that are not needed any more, and a unit being written."""
        from emllm.store.log import PASSING_SLAB_TOKENS

        most = most_raw_tokens(
            local_tokens=max(self.config.local_tokens, self._sliding_tokens),
            recall_tokens=min(self.config.recall_tokens, self.work.num_tokens),
            chunk_tokens=self.config.chunk_tokens,
        )
        held = min(most + PASSING_SLAB_TOKENS, self.work.num_tokens)
        return (held + min(self.unit_tokens, self.work.num_tokens)) * self.kv_bytes_per_token

    @property
    def log_bytes(self) -> int:
        """Beside keys and values, for all that was read."""
        habits = len(self._full_layers) * HABIT_BYTES if self._has_index else 0
        return self.work.num_tokens * LOG_BYTES + self.num_events * (EVENT_BYTES + habits)

    @property
    def text_bytes(self) -> int:
        """Tokenising."""
        return self.work.longest_tokens * TOKENISING_BYTES

    @property
    def least_budget(self) -> int:
        """Decoded pages for one chunk."""
        recalled = min(self.config.recall_tokens, self.sealed_tokens)
        pages = recalled / self.work.mean_event_tokens + recalled / self.work.page_tokens
        return min(int(pages * self.work.page_tokens), self.sealed_tokens) * self.kv_bytes_per_token

    @property
    def computing_bytes(self) -> int:
        """What lies where the layers compute, whatever the budgets."""
        return self.model.weight_bytes + self.activation_bytes + self.tail_bytes + self.index_bytes

    @property
    def hosting_bytes(self) -> int:
        """What lies in RAM in any case."""
        return self.process_bytes + self.text_bytes + self.log_bytes

    @property
    def process_bytes(self) -> int:
        """The same for every model and text."""
        return PROCESS_BYTES + WORKING_BYTES

    @property
    def flops_per_token(self) -> float:
        """Two for each weight, and two for each feature of each attended key and value of each head."""
        chunk = min(self.config.chunk_tokens, self.work.num_tokens)
        seen = self.attended_tokens + (chunk + 1) / 2
        attention = sum(
            2 * layer.num_heads * (layer.head_dim + layer.value_dim) * min(seen, layer.window_tokens or seen)
            for layer in self.model.geometry.layers
        )
        return 2 * self.model.active_params + attention

    @property
    def _has_index(self) -> bool:
        return 0 < self.config.recall_tokens < UNLIMITED_TOKENS

    @property
    def _sliding_tokens(self) -> int:
        """Of the widest layer that sees a window only."""
        return max((layer.window_tokens or 0 for layer in self.model.geometry.layers), default=0)

    @property
    def _full_layers(self) -> list[LayerGeometry]:
        return [layer for layer in self.model.geometry.layers if layer.window_tokens is None]


def page_bytes(model: Outline, codec: str, page_tokens: int) -> int:
    """Bytes of a page of every layer together."""
    import torch

    from emllm.store.codecs import make_codec
    from emllm.store.log import LayerShape

    dtype, cpu = model.geometry.dtype, torch.device("cpu")
    shapes = Counter(
        LayerShape(layer.num_kv_heads, layer.head_dim, layer.value_dim, dtype, cpu)
        for layer in model.geometry.layers
    )
    return sum(num * make_codec(codec, shape, page_tokens).page_bytes for shape, num in shapes.items())
