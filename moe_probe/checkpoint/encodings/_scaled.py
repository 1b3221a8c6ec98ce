"""8-bit codes times scales: of the whole matrix, of rows, columns, groups or blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

FP8 = {"float8_e4m3fn": "fp8 e4m3", "float8_e5m2": "fp8 e5m2"}
CODES = {**FP8, "int8": "int8"}


class Scaled(PackedMatrix):
    """A matrix of 8-bit codes, minus a zero point if it has one, times one scale per block of rows x columns.

    The values are `(code[i, j] - zero[i // rows, j // columns]) * scale[i // rows, j // columns]`, in float32, rounded
    to the scales' dtype if that is bfloat16 or float16, and otherwise to bfloat16, which DeepSeek's own conversion
    writes. Leading dimensions (fused experts) have their own scales.
    """

    def __init__(
        self,
        form: str,
        codes: LazyTensor,
        scale: LazyTensor,
        block: tuple[int, int],
        zero: LazyTensor | None = None,
        factor: float = 1.0,
    ):
        self.codes, self.scale, self.zero, self.block, self.factor = codes, scale, zero, block, factor
        narrow = scale.kind in ("bfloat16", "float16")
        parts = [codes, scale, *([] if zero is None else [zero])]
        super().__init__(form, parts, codes.shape, scale.kind if narrow else "bfloat16")

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        place = (*lead, covering(rows, self.block[0]), covering(columns, self.block[1]))
        values = _numbers(self.codes[(*lead, rows, columns)].read())
        scale = as_float32(self.scale[place].read())
        if self.factor != 1.0:
            scale = scale * self.factor
        start = rows.start % self.block[0], columns.start % self.block[1]
        if self.zero is not None:
            by_block(values, as_float32(self.zero[place].read()), self.block, start, torch.Tensor.sub_)
        return by_block(values, scale, self.block, start, torch.Tensor.mul_).to(self.dtype)


def _numbers(codes: torch.Tensor) -> torch.Tensor:
    """Returns codes as float32; fp8 through a table, because torch converts fp8 one value at a time."""
    if codes.dtype == torch.int8:
        return codes.to(torch.float32)
    return _values(codes.dtype).index_select(0, codes.view(torch.uint8).flatten().long()).view(codes.shape)


@cache
def _values(dtype: torch.dtype) -> torch.Tensor:
    """Returns the value of each of the 256 bytes in a dtype, float32."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)


def as_float32(scale: torch.Tensor) -> torch.Tensor:
    """Returns scales as float32; bytes are exponents (E8M0)."""
    return (scale.view(torch.float8_e8m0fnu) if scale.dtype == torch.uint8 else scale).to(torch.float32)


def by_block(
    values: torch.Tensor,
    of_blocks: torch.Tensor,
    block: tuple[int, int],
    start: tuple[int, int],
    act: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Applies `act` in place to each block of values and its entry of `of_blocks`; returns the values.

    `start` is the row and column of the first value within its block.
    """
    rows, columns = values.shape[-2:]
    if block[0] > 1 and of_blocks.shape[-2] > 1:
        of_blocks = of_blocks.repeat_interleave(block[0], -2)[..., start[0] : start[0] + rows, :]
    if of_blocks.shape[-1] == 1:
        act(values, of_blocks)
    elif start[1] == 0 and columns % block[1] == 0:
        act(values.unflatten(-1, (-1, block[1])), of_blocks.unsqueeze(-1))
    else:
        act(values, of_blocks.repeat_interleave(block[1], -1)[..., start[1] : start[1] + columns])
    return values


def groups_of(columns: slice, size: int, order: LazyTensor | None) -> tuple[slice, torch.Tensor | None]:
    """Returns the groups of some columns as a slice, and each column's group within it (None without `order`)."""
    if order is None:
        return covering(columns, size), None
    stated = order[columns].read().long()
    groups = slice(int(stated.min()), int(stated.max()) + 1)
    return groups, stated - groups.start


def shifted(
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    size: int,
    start: int = 0,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns `(code - zero) * scale` in the scales' dtype, rounded once: float32 holds differences of codes exactly.

    Args:
        codes: uint8 (..., rows, columns).
        zeros, scales: uint8 and floats (..., rows, groups); zeros may have one row for all.
        size: columns per group.
        start: position of the first column in its group.
        order: the group of each column, if groups are not runs of columns.
    """
    values = codes.to(torch.float32)
    for factors, act in ((zeros, torch.Tensor.sub_), (scales, torch.Tensor.mul_)):
        if order is None:
            by_block(values, factors.to(torch.float32), (1, size), (0, start), act)
        else:
            act(values, factors.to(torch.float32).index_select(-1, order))
    return values.to(scales.dtype)


def scaled(
    name: str,
    codes: LazyTensor,
    scale: LazyTensor,
    *,
    block: Sequence[int] | None = None,
    zero: LazyTensor | None = None,
    method: str = "",
    factor: float = 1.0,
) -> LazyTensor:
    """Returns `codes` times `scale`, unread; the shape of the scales determines which values each one multiplies.

    Args:
        name: key of the matrix, for errors.
        codes: fp8 or int8, (..., rows, columns).
        scale: one number; or (rows,), (rows, 1), (1, columns), (rows, groups); or one per block of the size `block`.
        block: rows and columns of a block, if the configuration states them.
        zero: zero points, of the same shape as `scale`.
        method: name of the quantization method, which the form has in parentheses.
        factor: multiplies every scale.

    Raises:
        DamagedFile: the codes are not a matrix, or the scales do not fit.
    """
    if codes.ndim < 2 or codes.kind not in CODES:
        raise DamagedFile(
            f"{name!r} is stored as {codes.kind} of shape {tuple(codes.shape)} with scales, expected a matrix of fp8 "
            "or int8; download the file again."
        )
    *lead, rows, columns = codes.shape
    fit = _fit(codes.shape, scale.shape, block)
    if fit is None or (zero is not None and zero.shape != scale.shape):
        wanted = (
            (*lead, -(-rows // block[0]), -(-columns // block[1])) if block else f"{(*lead, rows, 1)} or one number"
        )
        stated = f" for blocks of {block[0]} x {block[1]}" if block else ""
        raise DamagedFile(
            f"{name!r} of shape {tuple(codes.shape)} has scales of shape {tuple(scale.shape)}, expected {wanted}"
            f"{stated}; download the file again."
        )
    size, words = fit
    shape = (*lead, -(-rows // size[0]), -(-columns // size[1]))
    spread = [1] * len(lead) if scale.numel() == 1 else lead
    shape = (*spread, *shape[len(lead) :])
    form = f"{CODES[codes.kind]} with {words} scales" + (f" ({method})" if method else "")
    tensors = [None if part is None else _shaped(part, shape, lead) for part in (scale, zero)]
    assert tensors[0] is not None
    return Stored(Scaled(form, codes, tensors[0], size, tensors[1], factor))


def _shaped(scale: LazyTensor, shape: Sequence[int], lead: Sequence[int]) -> LazyTensor:
    if tuple(scale.shape) == tuple(shape):
        return scale
    one = scale.numel() == 1 and lead and list(shape[: len(lead)]) != list(lead)
    return Stored(Everywhere(scale, (*lead, 1, 1))) if one else Stored(Same(scale, shape))


class Same(Typed):
    """The source of a small tensor in another shape."""

    def __init__(self, base: LazyTensor, shape: Sequence[int]):
        self.base, self.parts = base, (base,)
        self.shape, self.kind = Size(shape), base.kind

    def read(self, index: Index) -> torch.Tensor:
        return self.base.read().reshape(self.shape)[index]


class Everywhere(Same):
    """The source of one number that is repeated over a whole shape."""

    def read(self, index: Index) -> torch.Tensor:
        return self.base.read().reshape(()).expand(self.shape)[index]


def _fit(codes: Size, scale: Size, block: Sequence[int] | None) -> tuple[tuple[int, int], str] | None:
    """Returns the size of the block of each scale, and the name of such scales; None if the scales do not fit."""
    *lead, rows, columns = codes
    numbers = Size(lead).numel()
    if block is not None:
        if tuple(scale) == (*lead, -(-rows // block[0]), -(-columns // block[1])):
            return (block[0], block[1]), "block"
    elif scale.numel() == 1 or (scale.numel() == numbers and list(scale)[: len(lead)] == lead):
        return (rows, columns), "tensor" if scale.numel() == 1 else "matrix"
    elif tuple(scale) in ((*lead, rows), (*lead, rows, 1)):
        return (1, columns), "row"
    elif tuple(scale) == (*lead, 1, columns):
        return (rows, 1), "column"
    elif list(scale[:-1]) == [*lead, rows] and columns % scale[-1] == 0:
        return (1, columns // scale[-1]), "group"
    return None


def first(tensors: Mapping[str, LazyTensor], names: Sequence[str]) -> str | None:
    """Returns the first of some keys that `tensors` has, or None."""
    return next((name for name in names if name in tensors), None)
