"""The event keys of one layer, growing as events leave the local window.

A fork shares what was there and adds to a part of its own. Only `append`, `append_encoded` and `adopt` write.
Keys are stored by representative, so that a ranking that looks at the first few of them reads no more than
those. In precision `int8` a key is one byte per feature: ranking is bound by how much of the index is read,
and integer dot products are exact, so a ranking does not depend on how the index is cut into parts. This
module does not know how keys are made or compared, nor where parts lie that it is given.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from emllm.dims import EventKeys

#: A slab that holds fewer events is made anew, twice as large; later slabs hold as much as all before.
FIRST_EVENTS = 256
LARGEST_COPIED = 4096


@dataclass(frozen=True)
class IndexPart:
    """The keys of some consecutive events, as views; not to be written to.

    Attributes:
        keys: as stored, int8 or the dtype of the model.
        scales: of int8 keys: what a key's features are multiplied with, one per KV head and event.
    """

    keys: Shaped[Tensor, "K R N D"]
    scales: Float[Tensor, "K N"] | None = None

    @property
    def num_events(self) -> int:
        """Events in this part."""
        return self.keys.shape[2]

    def first(self, num_representatives: int) -> IndexPart:
        """The same events with the first of their keys only."""
        return IndexPart(self.keys[:, :num_representatives], self.scales)

    def events(self, start: int, stop: int) -> IndexPart:
        """Some of the events."""
        scales = None if self.scales is None else self.scales[:, start:stop]
        return IndexPart(self.keys[:, :, start:stop], scales)

    def floats(self) -> EventKeys:
        """The keys as numbers, but for what all keys of a head have in common."""
        keys = self.keys.transpose(1, 2)
        return keys if self.scales is None else keys.float() * self.scales[:, :, None, None]


class LatePart:
    """The keys of some consecutive events, read when somebody first looks at them; forks share it.

    Args:
        num_events: in it.
        read: gives the part; what it raises is raised again whenever somebody looks.
    """

    def __init__(self, num_events: int, read: Callable[[], IndexPart]) -> None:
        self.num_events = num_events
        self._read = read
        self._part: IndexPart | None = None
        self._lock = threading.Lock()

    def part(self) -> IndexPart:
        """The keys."""
        with self._lock:
            if self._part is None:
                self._part = self._read()
            return self._part


class Exact:
    """Keys as they are."""

    def encode(self, event_keys: EventKeys) -> IndexPart:
        """Nothing is lost."""
        return IndexPart(event_keys.transpose(1, 2))

    def state(self) -> Tensor | None:
        """Nothing needs to be kept."""
        return None


class Int8:
    """Keys less the rough mean key of the first event, with one scale per KV head and event.

    What all keys have in common moves every event's score alike (a query's logits by one constant), and in
    models with biased keys it is most of a key; taking it off leaves the byte to what tells events apart.
    The mean is rounded to quarters of its largest feature: enough for a bias, and next to nothing is left
    of the first event when that is forgotten.
    """

    def __init__(self, centre: Float[Tensor, "K 1 D"] | None = None) -> None:
        self._centre = centre

    def encode(self, event_keys: EventKeys) -> IndexPart:
        """Round to 127 steps of the largest feature of the event's keys."""
        if self._centre is None:
            mean = event_keys[:, 0].float().mean(dim=1, keepdim=True)
            step = mean.abs().amax(dim=-1, keepdim=True) / 4
            self._centre = torch.where(step > 0, (mean / step).round() * step, 0.0)
        centred = event_keys.float() - self._centre[:, None]
        scales = centred.abs().amax(dim=(2, 3)) / 127
        scales = torch.where(scales > 0, scales, 1.0)
        steps = (centred / scales[:, :, None, None]).round_().to(torch.int8)
        return IndexPart(steps.transpose(1, 2), scales)

    def state(self) -> Tensor | None:
        """What was taken off, once it is known."""
        return self._centre


PRECISIONS: Mapping[str, Callable[..., Exact | Int8]] = {"exact": Exact, "int8": Int8}


class EventIndex:
    """Event keys of one layer, as a short list of parts in time order.

    Args:
        precision: `exact` or `int8`.
    """

    def __init__(self, precision: str = "exact") -> None:
        self._encoder = PRECISIONS[precision]()
        self._inherited: tuple[IndexPart | LatePart, ...] = ()
        self._slabs: list[IndexPart] = []
        self._num_last = 0
        self._num_events = 0

    def __len__(self) -> int:
        return self._num_events

    @property
    def centre(self) -> Tensor | None:
        """What an encoder took off all keys."""
        return self._encoder.state()

    def append(self, event_keys: EventKeys) -> None:
        """Add events, later than all that are here."""
        self._append(self._encoder.encode(event_keys))

    def append_encoded(self, part: IndexPart, centre: Tensor | None) -> None:
        """Add events as `parts` of another index gave them, with its `centre`."""
        if centre is not None:
            self._encoder = Int8(centre)
        self._append(part)

    def adopt(self, part: LatePart, centre: Tensor | None) -> None:
        """Add events where they lie, with the `centre` of the index that they come from."""
        if centre is not None:
            self._encoder = Int8(centre)
        self._inherited = (*self._pieces(), part)
        self._slabs, self._num_last = [], 0
        self._num_events += part.num_events

    def _append(self, part: IndexPart) -> None:
        done = 0
        while done < part.num_events:
            slab = self._open_slab(part, part.num_events - done)
            taken = min(part.num_events - done, slab.num_events - self._num_last)
            piece = part.events(done, done + taken)
            target = slab.events(self._num_last, self._num_last + taken)
            target.keys.copy_(piece.keys)
            if target.scales is not None:
                assert piece.scales is not None
                target.scales.copy_(piece.scales)
            done += taken
            self._num_last += taken
            self._num_events += taken

    def _open_slab(self, like: IndexPart, num_new: int) -> IndexPart:
        """The slab that takes the next event: the last one, a larger copy of it, or a new one."""
        last = self._slabs[-1] if self._slabs else None
        if last is not None and self._num_last < last.num_events:
            return last
        if last is not None and len(self._slabs) == 1 and last.num_events < LARGEST_COPIED:
            capacity = max(2 * last.num_events, self._num_last + num_new)
            larger = _empty_slab(like, min(capacity, max(LARGEST_COPIED, last.num_events)))
            larger.keys[:, :, : self._num_last].copy_(last.keys)
            if larger.scales is not None and last.scales is not None:
                larger.scales[:, : self._num_last].copy_(last.scales)
            self._slabs[-1] = larger
            return larger
        capacity = FIRST_EVENTS if last is None else sum(slab.num_events for slab in self._slabs)
        self._slabs.append(_empty_slab(like, capacity))
        self._num_last = 0
        return self._slabs[-1]

    def parts(self) -> tuple[IndexPart, ...]:
        """All event keys, as views in time order; not to be written to."""
        return tuple(_looked_at(piece) for piece in self._pieces())

    def _pieces(self) -> tuple[IndexPart | LatePart, ...]:
        if not self._slabs:
            return self._inherited
        *full, last = self._slabs
        return (*self._inherited, *full, last.events(0, self._num_last))

    def between(self, start: int, stop: int) -> list[IndexPart]:
        """Some of the events, as views in time order; not to be written to."""
        pieces, first = [], 0
        for piece in self._pieces():
            low, high = max(start - first, 0), min(stop - first, piece.num_events)
            if low < high:
                pieces.append(_looked_at(piece).events(low, high))
            first += piece.num_events
        return pieces

    def fork(self) -> EventIndex:
        """An index that begins with everything in this one."""
        child = EventIndex()
        child._encoder = copy.copy(self._encoder)
        child._inherited = self._pieces()
        child._num_events = self._num_events
        return child


def _looked_at(piece: IndexPart | LatePart) -> IndexPart:
    return piece if isinstance(piece, IndexPart) else piece.part()


def joined(parts: Sequence[IndexPart]) -> IndexPart | None:
    """Several parts as one; None of none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    keys = torch.cat([part.keys for part in parts], dim=2)
    scales = [part.scales for part in parts if part.scales is not None]
    return IndexPart(keys, torch.cat(scales, dim=1) if scales else None)


def _empty_slab(like: IndexPart, num_events: int) -> IndexPart:
    num_kv_heads, num_representatives, _, head_dim = like.keys.shape
    with torch.inference_mode(False):
        keys = like.keys.new_empty(num_kv_heads, num_representatives, num_events, head_dim)
        if like.scales is None:
            return IndexPart(keys)
        return IndexPart(keys, like.scales.new_empty(num_kv_heads, num_events))
