"""A layer's own rotation, left out where it turns nothing.

While a model is attached its rotary modules answer cos = 1 and sin = 0, and its layers multiply by ones and
add zeros: a twentieth of the time of reading. A layer whose ``forward`` turns by a function of its module
named as below gets a ``forward`` of its own, the same code, in which that name gives queries and keys back.
The first pass shows whether they would have come back unchanged, to the bit; where not, the model's own
function is called ever after. Other models of the same class are not concerned.

This module does not know what rotary modules answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

#: What transformers calls the function, in all but a few models.
NAME = "apply_rotary_pos_emb"


class CheckedRotation:
    """Stands in for a rotation: the model's own once, and nothing after that if it turned nothing.

    Args:
        own: the model's own function.
    """

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own
        self.turns_nothing: bool | None = None

    def __call__(self, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        """Queries and keys as the model's own function gives them."""
        if self.turns_nothing:
            return query, key
        answer = self._own(query, key, *args, **kwargs)
        if self.turns_nothing is None:
            self.turns_nothing = (
                isinstance(answer, tuple)
                and len(answer) == 2
                and all(_is_same(one, other) for one, other in zip(answer, (query, key), strict=True))
            )
        return answer


@contextmanager
def left_out(model: nn.Module) -> Iterator[list[CheckedRotation]]:
    """The rotations of all layers that can go without, until the end, when the layers are as they were."""
    replaced = [(module, rotation) for module in model.modules() if (rotation := _rotation_of(module))]
    for module, rotation in replaced:
        module.forward = MethodType(_forward_with(type(module).forward, rotation), module)
    try:
        yield [rotation for _, rotation in replaced]
    finally:
        for module, _ in replaced:
            module.__dict__.pop("forward", None)


def _rotation_of(module: nn.Module) -> CheckedRotation | None:
    """What stands in for the rotation that a module's `forward` calls; None if it calls none by that name."""
    forward = type(module).forward
    is_plain = isinstance(forward, FunctionType) and "forward" not in module.__dict__
    if not is_plain or NAME not in forward.__code__.co_names or NAME not in forward.__globals__:
        return None
    return CheckedRotation(forward.__globals__[NAME])


def _forward_with(forward: Any, rotation: CheckedRotation) -> FunctionType:
    """The same function, for which the name means something else."""
    names = {**forward.__globals__, NAME: rotation}
    # A code object of its own: torch.compile keeps what it compiles by code, with the names of one layer.
    copied = FunctionType(
        forward.__code__.replace(), names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    copied.__dict__.update(forward.__dict__)
    return copied


def _is_same(one: Any, other: Any) -> bool:
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.dtype == other.dtype
        and torch.equal(one, other)
    )
