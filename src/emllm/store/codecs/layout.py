"""Where the arrays of a page lie in its bytes.

This module does not know what the arrays mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Sections begin at multiples of it, so that every dtype can be viewed in place. Part of the format.
ALIGNMENT = 16


@dataclass(frozen=True)
class Section:
    """An array in C order at a fixed place of every page."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the array, without those that fill up to the next section."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, pages: Tensor) -> Tensor:
        """The array of each page, ``[n, *shape]``: a view into ``pages [n, page_bytes]``."""
        taken = pages[:, self.offset : self.offset + self.num_bytes]
        return taken.view(self.dtype).view(len(pages), *self.shape)


class Layout:
    """Sections placed one after another. `num_bytes` is the size of the page so far."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def add(self, dtype: torch.dtype, *shape: int) -> Section:
        """Place an array after those that are there."""
        section = Section(self.num_bytes, shape, dtype)
        self.num_bytes += -(-section.num_bytes // ALIGNMENT) * ALIGNMENT
        return section
