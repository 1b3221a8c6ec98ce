"""Checks of the arguments of public functions, which raise an error in one sentence before any work.

The annotation alone says what an argument may be: `check_types` refuses every value of another type, `check_number`
every number out of range.
"""

from __future__ import annotations

import inspect
import math
import operator
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Union, get_args, get_origin

import numpy as np
import typeguard
from typeguard import CollectionCheckStrategy, TypeCheckError

from moe_probe.errors import NoSuchName, OutOfRange, WrongType
from moe_probe.progress import quiet
from moe_probe.shown import brief

P = ParamSpec("P")
Result = TypeVar("Result")
NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    bytes: "bytes",
    Path: "a path",
    np.ndarray: "an array",
    NoneType: "None",
}
LONGEST = 80  # characters of a value in a sentence


def check_number(name: str, value: Any, least: float, most: float | None = None, whole: bool = True) -> None:
    """Raises an error if a number is outside its range.

    Raises:
        WrongType: the value is not a number, or not a whole one.
        OutOfRange: the number is below `least`, above `most`, or not finite.
    """
    if not _is_number(value) or (whole and not _is_whole(value)):
        raise WrongType(f"{name} is {value_shown(value)}; pass a {'whole ' if whole else ''}number.")
    if not (least <= value < math.inf) or (most is not None and value > most):
        span = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise OutOfRange(f"{name} is {value_shown(value)}; pass a {'whole ' if whole else ''}number {span}.")


def whole_numbers(layers: Iterable[int] | int) -> tuple[int, ...]:
    """Returns one layer, or several, as a tuple of whole numbers.

    Raises:
        WrongType: one of them is not a whole number.
    """
    try:
        if isinstance(layers, str | bytes | bool):
            raise TypeError
        return tuple(operator.index(index) for index in (layers if isinstance(layers, Iterable) else [layers]))
    except TypeError:
        raise WrongType(f"layers={layers!r} is not a list of whole numbers; pass one, such as 3, or [0, 3].") from None


def check_jobs(n_jobs: object) -> None:
    """Raises an error if `n_jobs` is not a number of workers.

    Raises:
        WrongType: the value is not a whole number.
        OutOfRange: the number is 0, or more negative than any number of cores.
    """
    check_number("n_jobs", n_jobs, -(1 << 15), 1 << 15)
    if n_jobs == 0:
        raise OutOfRange("n_jobs is 0; pass 1 or more workers, or -1 for one per core.")


def check_choice(kind: str, given: object, names: Iterable[str]) -> None:
    """Raises an error if a name is not one of `names`.

    Raises:
        WrongType: the value is not a string.
        NoSuchName: the name is not one of them.
    """
    known = list(names)
    if not isinstance(given, str):
        raise WrongType(f"The {kind} is {value_shown(given)}; pass one of {', '.join(known)}.")
    if given not in known:
        raise NoSuchName.among(kind, given, known)


def check_call(name: str, function: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raises an error if arguments are unknown, missing, or of another type than a function takes.

    Args:
        name: of the function, for the message.
        function: the called function; its signature says what it takes.
        positional: arguments by position.
        named: arguments by name.

    Raises:
        NoSuchName: an argument has a name that the function does not take.
        WrongType: an argument is missing, superfluous, or of another type.
    """
    parameters = inspect.signature(function).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        for key in named:
            if key not in parameters:
                raise NoSuchName.among(f"option of {name}", key, parameters)
    by_place = [
        key for key, each in parameters.items() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    arguments = {*by_place[: len(positional)], *named}
    lacking = [key for key, each in parameters.items() if _is_required(each) and key not in arguments]
    if lacking:
        raise WrongType(f"{name} needs {' and '.join(lacking)}; pass {', '.join(f'{key}=' for key in lacking)}.")
    try:
        bound = inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        raise WrongType(f"{name} was called with {error}; pass {', '.join(parameters) or 'nothing'}.") from None
    check_types(function, bound.arguments)


def check_types(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raises an error if a value is not of the type of its parameter.

    Args:
        function: a function or a dataclass; the annotations of its parameters say what they take.
        values: by parameter.

    Raises:
        WrongType: a value is of another type.
        NoSuchName: a name is not among those of the annotation's `Literal`.
    """
    hints = _hints(function)
    for name, value in values.items():
        hint = hints.get(name, Any)
        if _fits(value, hint):
            continue
        if isinstance(value, str) and (names := _names(hint)):
            raise NoSuchName.among(f"value of {name}" if name.endswith("s") else name, value, names)
        raise WrongType(f"{name} is {value_shown(value)}; pass {' or '.join(dict.fromkeys(_nouns(hint)))}.")


def checked(function: Callable[P, Result]) -> Callable[P, Result]:
    """Wraps a function so that it checks the types of its arguments, and shows no progress with `progress=False`."""

    @wraps(function)
    def checking(*positional: P.args, **named: P.kwargs) -> Result:
        check_call(function.__name__, function, positional, named)
        with quiet(named.get("progress") is False):  # what it calls shows progress by default
            return function(*positional, **named)

    return checking


class Checked:
    """A metaclass that checks the types of the arguments with which instances are made."""

    def __new__(cls, *positional: object, **named: object) -> Self:
        check_call(cls.__name__, cls, positional, named)
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self),), vars(self).copy()


def _blank(kind: type) -> Any:
    return object.__new__(kind)


def value_shown(value: object) -> str:
    """Returns a value as an error shows it: short and on one line, or its type if it has no short text.

    Examples:
        >>> value_shown("x" * 200)[:5], value_shown(object()), value_shown({})
        ("'xxxx", 'an object', '{}')
    """
    if not isinstance(value, str | bytes | int | float | list | tuple | dict | set | NoneType | Path | np.generic):
        kind = type(value).__name__
        return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write very long numbers out
        return f"a number of {value.bit_length()} bits"
    text = ascii(value) if isinstance(value, bytes) else repr(value.item() if isinstance(value, np.generic) else value)
    return brief(text, LONGEST)


@cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Types by parameter; empty if one of them cannot be resolved."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # annotations of others' analyses may name anything
        return {}


def _is_required(parameter: inspect.Parameter) -> bool:
    several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not several


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)
    return scalar and not isinstance(value, bool | np.bool_) and hasattr(value, "__float__")


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") or (math.isfinite(value) and int(value) == value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; NumPy's numbers and arrays count as Python's, but True and False not as numbers."""
    if isinstance(value, bool | np.bool_) and bool not in _leaves(hint) and hint is not Any:
        return False
    listed = getattr(value, "tolist", None)
    plain = value if listed is None else listed()
    for form in (value, plain, tuple(plain) if isinstance(plain, list) else plain):
        with suppress(TypeCheckError):
            typeguard.check_type(form, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            return True
    return False


def _leaves(hint: Any) -> list[Any]:
    parts = get_args(hint)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [hint]


def _names(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(part) for part in get_args(hint)]
    return [name for part in get_args(hint) for name in _names(part)] if get_origin(hint) in (Union, UnionType) else []


def _nouns(hint: Any) -> list[str]:
    """The values that a type takes, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return [noun for part in parts for noun in _nouns(part)]
    if origin is Literal:
        return [f"one of {', '.join(map(str, parts))}"]
    if origin is tuple and Ellipsis not in parts:
        return [f"({', '.join(_nouns(part)[0] for part in parts)})"]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return ["a mapping"]
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return [f"a list, each item {' or '.join(_nouns(parts[0]))}" if parts else "a list"]
    noun = getattr(hint, "__name__", str(hint))
    return [NOUNS.get(hint, f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}")]
