"""The letters of every tensor shape in this package, and the tensor types made of them.

| letter | meaning |
|---|---|
| T | tokens of the present chunk |
| S | attended (or stored) tokens |
| N | events |
| R | representatives of an event |
| L | layers |
| H | query heads |
| K | key-value heads |
| G | query heads per key-value head (H = K * G) |
| D | head dimension |
| V | vocabulary |
| C | refinement candidates |

Spans are half-open, ``[start, stop)``; token indices are absolute positions in the log, from 0.
This module does not know any tensor, model or setting.
"""

from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "T V"]
TokenIds = Int[Tensor, " T"]
Surprise = Float[Tensor, " T"]  # nats
Queries = Float[Tensor, "H T D"]
ChunkKeys = Float[Tensor, "K T D"]
Keys = Float[Tensor, "K S D"]
EventKeys = Float[Tensor, "K N R D"]
Scores = Float[Tensor, " N"]
