"""Arguments by name, checked before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from moe_probe.errors import InputError


def check_arguments(name: str, function: Callable[..., Any], given: Iterable[str], besides: Iterable[str] = ()) -> None:
    """Refuse what a function does not take, `besides` counting as not taken.

    Raises:
        InputError: one of the arguments is not known; the sentence lists those that are.
    """
    takes = [key for key in inspect.signature(function).parameters if key not in besides]
    wrong = [key for key in given if key not in takes]
    if wrong:
        raise InputError(f"{name} takes no {wrong[0]!r}; it takes {', '.join(takes) or 'no options'}.")
