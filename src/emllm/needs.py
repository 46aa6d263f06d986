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
from emllm.store.sizes import PAGE_TOKENS, most_raw_tokens, segment_tokens

if TYPE_CHECKING:
    from emllm.attention.geometry import LayerGeometry
    from emllm.models.outline import Outline

#: Mean length of an event with the default settings, in books and code.
MEAN_EVENT_TOKENS = 22.0

#: Python with torch, transformers and an attached model of no size (resident, measured).
PROCESS_BYTES = 420_000_000
#: A token of the text that is being read: its ids as Python numbers and what the tokenizer returns with
#: them (measured), and its letters.
TOKENISING_BYTES = 590
#: A token in RAM beside its keys and values: id (int64) and surprise (float32).
LOG_BYTES = 12
#: A token on disk beside its keys and values: id (int32) and surprise (float32).
SCALAR_BYTES = 8
#: An event in RAM beside its keys: start, size and age.
EVENT_BYTES = 32
#: A tensor in the header of a file, and the tensors of a file: two or three per layer and two more.
HEADER_BYTES, TENSORS_PER_LAYER = 110, 3
#: The catalogue: empty, and for each event (its span), commit (a row) and page (its checksum).
CATALOGUE_BYTES, SPAN_BYTES, COMMIT_BYTES, CHECKSUM_BYTES = 20_480, 16, 32, 4
#: Context buffers of a layer: the present ones and the ones being laid out, each with some room to grow.
CONTEXT_COPIES = 2 * 9 / 8
#: Rows of logits that are in float32 at a time while surprise is computed, twice.
SURPRISE_ROWS = 2 * 16


@dataclass(frozen=True)
class Workload:
    """What is to be read.

    Attributes:
        num_tokens: of all documents together.
        longest_tokens: of the longest document; each is tokenised at once.
        tokens_per_second: speed of reading.
        mean_event_tokens: mean length of an event.
        page_tokens: tokens of a page.
    """

    num_tokens: int
    longest_tokens: int
    tokens_per_second: float
    mean_event_tokens: float = MEAN_EVENT_TOKENS
    page_tokens: int = PAGE_TOKENS


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
    def segment_tokens(self) -> int:
        """Tokens of a segment."""
        return segment_tokens(self.kv_bytes_per_token, page_tokens=self.work.page_tokens)

    @property
    def sealed_tokens(self) -> int:
        """Tokens in segments when all is read."""
        left = self.work.num_tokens - self.config.local_tokens - self.work.mean_event_tokens
        return max(int(left) // self.segment_tokens, 0) * self.segment_tokens

    @property
    def index_bytes(self) -> int:
        """Of the event keys, which are on disk as they are in RAM."""
        if not 0 < self.config.recall_tokens < UNLIMITED_TOKENS:
            return 0
        is_exact = self.config.index_precision == "exact"
        feature, scale = (self.model.geometry.dtype.itemsize, 0) if is_exact else (1, 4)
        keys = self.config.representatives * feature
        return self.num_events * sum(
            layer.num_kv_heads * (keys * layer.head_dim + scale) for layer in self._full_layers
        )

    @property
    def catalogue_bytes(self) -> int:
        """Of the SQLite file."""
        chunks = -(-self.work.num_tokens // self.config.chunk_tokens)
        pages = self.sealed_tokens // self.work.page_tokens * self.model.geometry.num_layers
        counted = self.num_events * SPAN_BYTES + chunks * COMMIT_BYTES + pages * CHECKSUM_BYTES
        return CATALOGUE_BYTES + counted

    def pages_bytes(self, codec: str) -> int:
        """Encoded pages of the sealed tokens, all layers."""
        num_pages = self.sealed_tokens // self.work.page_tokens
        return num_pages * page_bytes(self.model, codec, self.work.page_tokens)

    def disk_bytes(self, codec: str) -> int:
        """The folder of the memory."""
        num_segments = self.sealed_tokens // self.segment_tokens
        tensors = TENSORS_PER_LAYER * self.model.geometry.num_layers + 2
        raw = (self.work.num_tokens - self.sealed_tokens) * self.kv_bytes_per_token
        scalars = self.work.num_tokens * SCALAR_BYTES
        headers = num_segments * tensors * HEADER_BYTES
        return self.pages_bytes(codec) + self.index_bytes + self.catalogue_bytes + raw + scalars + headers

    @property
    def activation_bytes(self) -> int:
        """What a chunk needs while the model computes."""
        chunk, geometry = min(self.config.chunk_tokens, self.work.num_tokens), self.model.geometry
        itemsize = geometry.dtype.itemsize
        logits = chunk * geometry.vocab_size * itemsize + SURPRISE_ROWS * geometry.vocab_size * 4
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
        """Raw tokens at most."""
        most = most_raw_tokens(
            segment_tokens=self.segment_tokens,
            local_tokens=self.config.local_tokens,
            recall_tokens=min(self.config.recall_tokens, self.work.num_tokens),
            chunk_tokens=self.config.chunk_tokens,
        )
        return min(most, self.work.num_tokens) * self.kv_bytes_per_token

    @property
    def log_bytes(self) -> int:
        """Beside keys and values, for all that was read."""
        return self.work.num_tokens * LOG_BYTES + self.num_events * EVENT_BYTES

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
        return PROCESS_BYTES + self.text_bytes + self.log_bytes

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
