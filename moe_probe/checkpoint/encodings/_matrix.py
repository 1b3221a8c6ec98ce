"""A matrix that is stored in encoded form, and is decoded in whole blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Typed, kind_of
from moe_probe.checkpoint.slices import aligned, as_slice, within

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch


class PackedMatrix(Typed, ABC):
    """The source of a matrix (..., rows, columns) that other tensors encode.

    Attributes:
        form: description of the stored form, such as `int4 in groups of 128 (GPTQ)`.
        parts: the stored tensors from which the values are computed.
        unit: rows and columns of a block, which is decoded whole; a slice decodes only the blocks that it touches.
    """

    def __init__(
        self,
        form: str,
        parts: Sequence[LazyTensor],
        shape: Sequence[int],
        dtype: torch.dtype | str,
        unit: tuple[int, int] = (1, 1),
    ):
        self.form, self.parts, self.unit = form, tuple(parts), unit
        self.shape, self.kind = Size(shape), kind_of(dtype)

    @abstractmethod
    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        """Returns the values of whole blocks (the last may be cut), in `dtype`; `lead` slices leading dimensions."""

    def read(self, index: Index) -> torch.Tensor:
        *lead, rows, columns = index
        row_blocks = aligned(rows, self.unit[0], self.shape[-2])
        column_blocks = aligned(columns, self.unit[1], self.shape[-1])
        values = self.decode(tuple(as_slice(part) for part in lead), row_blocks, column_blocks)
        outer = (0 if isinstance(part, int) else slice(None) for part in lead)
        return values[(*outer, within(rows, row_blocks), within(columns, column_blocks))]
