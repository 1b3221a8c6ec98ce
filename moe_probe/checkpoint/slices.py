"""Slices of an encoded tensor, and what they need of its parts."""

from __future__ import annotations


def as_slice(part: int | slice) -> slice:
    """`part` as a slice of length 1 where it is a number."""
    return slice(part, part + 1) if isinstance(part, int) else part


def covering(part: int | slice, size: int) -> slice:
    """The blocks of `size` entries that `part` touches."""
    part = as_slice(part)
    return slice(part.start // size, -(-part.stop // size))


def aligned(part: int | slice, unit: int, size: int) -> slice:
    """The entries of a dimension of `size` that whole blocks of `unit` entries around `part` have."""
    blocks = covering(part, unit)
    return slice(blocks.start * unit, min(blocks.stop * unit, size))


def within(part: int | slice, outer: slice) -> int | slice:
    """`part` counted from the start of `outer`."""
    if isinstance(part, int):
        return part - outer.start
    return slice(part.start - outer.start, part.stop - outer.start)
