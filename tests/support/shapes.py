"""The checker of shapes that the tests run under: beartype, for the first calls of each test.

What is wrong with a shape is wrong from the first calls on; to check the hundreds of thousands of a long test
takes longer than all that it does besides. This module is imported by its bare name: jaxtyping finds it so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

#: Checks of a test that are made, two for each call of a function.
MOST_CHECKS = 8_000

_num_checks = 0


def count_anew() -> None:
    """A test begins: its calls are checked again."""
    global _num_checks
    _num_checks = 0
    jaxtyping.config.update("jaxtyping_disable", False)


def first_calls_checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and its result checked, as long as few were in this test."""
    checked = beartype(fn)

    @functools.wraps(fn)
    def counted(*args: Any, **kwargs: Any) -> Any:
        global _num_checks
        _num_checks += 1
        if _num_checks >= MOST_CHECKS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return checked(*args, **kwargs)

    return counted
