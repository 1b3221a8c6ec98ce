"""Arguments of static analyses: taken, or refused in one sentence before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from moe_probe.errors import NoSuchName, OutOfRange, WrongType


def check_name(kind: str, given: object, literal: Any) -> None:
    """Refuse a name that a `Literal` type does not list.

    Raises:
        NoSuchName: it does not.
    """
    if given not in get_args(literal):
        raise NoSuchName.among(kind, given, get_args(literal))


def check_workers(n_jobs: object) -> None:
    """Refuse what is no number of workers.

    Raises:
        WrongType: it is no whole number.
        OutOfRange: it is 0.
    """
    if not isinstance(n_jobs, int) or isinstance(n_jobs, bool):
        raise WrongType(f"n_jobs={n_jobs!r} is no number of workers; pass a whole number, or -1 for all cores.")
    if n_jobs == 0:
        raise OutOfRange("n_jobs=0 leaves no worker; pass 1 or more, or -1 for all cores.")


def check_flags(**flags: object) -> None:
    """Refuse arguments that are neither True nor False.

    Raises:
        WrongType: one is something else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise WrongType(f"{name}={value!r} is neither True nor False; pass one of them.")


def as_list(name: str, given: object) -> list[Any]:
    """A name or number, or several, as a list.

    Raises:
        WrongType: it is neither.
    """
    if isinstance(given, str | int):
        return [given]
    if not isinstance(given, Iterable):
        raise WrongType(f"{name}={given!r} is no list; pass a list of names, or one name.")
    return list(given)
