"""Tensors whose values are read from their files on request.

A `LazyTensor` has a shape and a dtype, can be sliced, stacked, concatenated and transposed like a `torch.Tensor`, and
takes part in torch functions (`torch.stack`, `torch.cat`, `torch.transpose`, ...) through `__torch_function__`. So
transformers' own weight conversions run on it unchanged, and a slice of their result reads only the bytes that it
consists of:

    >>> expert_0, expert_1 = (Stored(InMemory(torch.full((2, 2), float(e)))) for e in range(2))
    >>> fused = torch.stack([expert_0, expert_1])  # nothing is read
    >>> fused[1].read()  # reads expert_1 only
    tensor([[1., 1.],
            [1., 1.]])
"""

from __future__ import annotations

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, cast, overload

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    from moe_probe.deferred import torch


Index = tuple[int | slice, ...]
BITS = re.compile(r"\d+")


class Size(tuple[int, ...]):
    """The shape of a tensor: like `torch.Size`, but without torch."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Size: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | Size:
        part = super().__getitem__(index)
        return Size(part) if isinstance(part, tuple) else part

    def numel(self) -> int:
        """Returns the number of values."""
        return math.prod(self)


class Typed:
    """Base class of anything with a dtype, known by name: torch is imported only when `dtype` is used.

    Attributes:
        kind: torch's name of the dtype, such as `bfloat16`.
    """

    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in torch."""
        return getattr(torch, self.kind)

    @property
    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating-point type."""
        return self.kind.startswith(("float", "bfloat"))


def kind_of(dtype: torch.dtype | str) -> str:
    """Returns the name of a dtype, such as `bfloat16`."""
    return dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")


def itemsize_of(kind: str) -> int:
    """Returns the bytes per value of a dtype, from the first digits in its name; 1 for `bool`."""
    bits = BITS.search(kind)
    return max(int(bits[0]) // 8, 1) if bits else 1


class TensorSource(Protocol):
    """Where the values of one stored tensor come from: an entry of a weight file, or a tensor in memory.

    A source with `kind`, the name of its dtype, can be described without torch. A source with `array(index)` returns
    integers as a numpy array.
    """

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, index: Index) -> torch.Tensor:
        """Returns the values at `index`: one int or slice (start and stop set, step 1) per dimension."""
        ...


def _type_of(source: TensorSource) -> torch.dtype | str:
    return getattr(source, "kind", None) or source.dtype


def _reshaped(sizes: Size, shape: Sequence[int]) -> list[int]:
    """Returns a shape with its one -1, if any, replaced by a size.

    Raises:
        ValueError: the shape has another number of values.
    """
    known = math.prod(size for size in shape if size != -1)
    filled = [size if size != -1 else sizes.numel() // max(known, 1) for size in shape]
    if math.prod(filled) != sizes.numel():
        raise ValueError(f"a tensor of shape {tuple(sizes)} cannot be reshaped to {tuple(shape)}")
    return filled


def _several(numbers: tuple[Any, ...]) -> tuple[int, ...]:
    """Returns numbers as a tuple, given one by one or as one tuple or list."""
    one = numbers[0] if len(numbers) == 1 else numbers
    return tuple(one) if isinstance(one, tuple | list) else numbers


class LazyTensor(Typed, ABC):
    """A tensor whose shape and dtype are known, but whose values are not read; `read()` returns them.

    Attributes:
        shape: shape of the `torch.Tensor` that `read` returns.
        kind: torch's name of the dtype, such as `bfloat16`; `dtype` is the dtype itself.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype | str):
        self.shape = Size(shape)
        self.kind = kind_of(dtype)

    @abstractmethod
    def read(self) -> torch.Tensor:
        """Returns the values, as a view of the mapped file if the format allows it."""

    @abstractmethod
    def sources(self) -> Iterator[TensorSource]:
        """Yields the sources of the values; an encoded tensor yields those of its stored parts."""

    @abstractmethod
    def _select(self, dim: int, index: int) -> LazyTensor:
        """Implements `select`, with both arguments nonnegative and in range."""

    @abstractmethod
    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        """Implements `narrow`, with `dim` and `start` nonnegative and in range, and a length of at least 1."""

    def select(self, dim: int, index: int) -> LazyTensor:
        """Returns the slice at `index` of `dim`, without that dimension."""
        size = self.shape[dim]
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of range for size {size}")
        return self._select(dim % self.ndim, index % size)

    def narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        """Returns entries `start .. start+length-1` of `dim`."""
        dim, size = range(self.ndim)[dim], self.shape[dim]
        start = start + size if start < 0 else start
        if start < 0 or length < 0 or start + length > size:
            raise IndexError(f"entries {start} to {start + length} are out of range for size {size}")
        if length == 0:
            return Stored(InMemory(torch.empty([*self.shape[:dim], 0, *self.shape[dim + 1 :]], dtype=self.dtype)))
        return self._narrow(dim, start, length)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Size | int:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes, once read."""
        return self.numel() * itemsize_of(self.kind)

    def numbers(self) -> np.ndarray:
        """Returns the values of a small integer tensor, read without torch if the format allows it."""
        return self.read().numpy()

    def copy_to(self, out: torch.Tensor) -> torch.Tensor:
        """Reads the values into `out`, of the same shape, and converts them to its dtype; joined parts one by one."""
        return out.copy_(self.read())

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns `read().to(...)` in row-major order, so that products do not depend on the storage order."""
        return self.read().to(*args, **kwargs).contiguous()

    def contiguous(self) -> LazyTensor:
        return self

    def __getitem__(self, index: Any) -> LazyTensor:
        parts = index if isinstance(index, tuple) else (index,)
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts = parts[:at] + (slice(None),) * (self.ndim - len(parts) + 1) + parts[at + 1 :]
        if len(parts) > self.ndim:
            raise IndexError(f"{len(parts)} indices for a tensor of shape {tuple(self.shape)}")
        out, dim = self, 0
        for part in parts:
            if not isinstance(part, slice):
                out = out.select(dim, operator.index(part))
                continue
            start, stop, step = part.indices(out.shape[dim])
            if step < 1:
                raise IndexError("a lazy tensor is sliced forwards")
            if (start, stop) != (0, out.shape[dim]):
                out = out.narrow(dim, start, max(stop - start, 0))
            if step > 1:
                out = Strided(out, dim, step)
            dim += 1
        return out

    def permute(self, *dims: int) -> LazyTensor:
        return Permuted(self, tuple(dim % self.ndim for dim in _several(dims)))

    def transpose(self, dim0: int, dim1: int) -> LazyTensor:
        dims = list(range(self.ndim))
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
        return self.permute(*dims)

    @property
    def T(self) -> LazyTensor:  # noqa: N802 - torch's name
        return self.permute(*reversed(range(self.ndim)))

    def reshape(self, *shape: int) -> LazyTensor:
        return Reshaped(self, _reshaped(self.shape, _several(shape)))

    view = reshape

    def squeeze(self, dim: int) -> LazyTensor:
        return self.select(dim % self.ndim, 0) if self.shape[dim] == 1 else self

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> tuple[LazyTensor, ...]:
        if isinstance(sizes, int):
            sizes = [min(sizes, self.shape[dim] - start) for start in range(0, self.shape[dim], sizes)] or [0]
        return self._pieces(sizes, dim)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[LazyTensor, ...]:
        return self.split(max(1, -(-self.shape[dim] // chunks)), dim)

    def _pieces(self, sizes: Sequence[int], dim: int) -> tuple[LazyTensor, ...]:
        if sum(sizes) != self.shape[dim]:
            raise ValueError(f"pieces of {list(sizes)} do not make up size {self.shape[dim]}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(self.narrow(dim % self.ndim, start, size) for start, size in zip(starts, sizes, strict=True))

    def unbind(self, dim: int = 0) -> tuple[LazyTensor, ...]:
        return tuple(self.select(dim % self.ndim, i) for i in range(self.shape[dim]))

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in BUILDERS and func is getattr(torch, func.__name__, None):
            return BUILDERS[func.__name__](*args, **kwargs)
        method = getattr(cls, func.__name__, None)
        if method is None:
            raise NotImplementedError(f"torch.{func.__name__} is not defined on lazy tensors")
        return method(*args, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype=torch.{self.kind})"


class Stored(LazyTensor):
    """A tensor of one source, or a slice of it."""

    def __init__(self, source: TensorSource, index: Index | None = None):
        self.source = source
        if index is None:
            self.index = tuple([slice(0, size) for size in source.shape])
            super().__init__(source.shape, _type_of(source))
        else:
            self.index = index
            sizes = [part.stop - part.start for part in index if isinstance(part, slice)]
            super().__init__(sizes, _type_of(source))

    def read(self) -> torch.Tensor:
        return self.source.read(self.index)

    def numbers(self) -> np.ndarray:
        array: Callable[[Index], np.ndarray] | None = getattr(self.source, "array", None)
        return super().numbers() if array is None else array(self.index)

    def sources(self) -> Iterator[TensorSource]:
        parts: tuple[LazyTensor, ...] = getattr(self.source, "parts", ())
        if not parts:
            yield self.source
        for part in parts:
            yield from part.sources()

    def _replace(self, dim: int, make: Callable[[slice], int | slice]) -> Stored:
        at = [i for i, part in enumerate(self.index) if isinstance(part, slice)][dim]
        return Stored(self.source, (*self.index[:at], make(cast(slice, self.index[at])), *self.index[at + 1 :]))

    def _select(self, dim: int, index: int) -> Stored:
        return self._replace(dim, lambda part: part.start + index)

    def _narrow(self, dim: int, start: int, length: int) -> Stored:
        return self._replace(dim, lambda part: slice(part.start + start, part.start + start + length))


class Stacked(LazyTensor):
    """The unread result of `torch.stack(parts, dim)`."""

    def __init__(self, parts: Sequence[LazyTensor], dim: int = 0):
        self.parts = tuple(parts)
        first = self.parts[0]
        if any(part.shape != first.shape for part in self.parts):
            raise ValueError(f"cannot stack tensors of shapes {sorted({tuple(p.shape) for p in self.parts})}")
        self.dim_ = dim % (first.ndim + 1)
        super().__init__([*first.shape[: self.dim_], len(self.parts), *first.shape[self.dim_ :]], first.kind)

    def read(self) -> torch.Tensor:
        return torch.stack([part.read() for part in self.parts], self.dim_)

    def sources(self) -> Iterator[TensorSource]:
        return chain.from_iterable(part.sources() for part in self.parts)

    def copy_to(self, out: torch.Tensor) -> torch.Tensor:
        for index, part in enumerate(self.parts):
            part.copy_to(out.select(self.dim_, index))
        return out

    def _select(self, dim: int, index: int) -> LazyTensor:
        if dim == self.dim_:
            return self.parts[index]
        inner = dim - (dim > self.dim_)
        return Stacked([part.select(inner, index) for part in self.parts], self.dim_ - (dim < self.dim_))

    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        if dim == self.dim_:
            return Stacked(self.parts[start : start + length], self.dim_)
        return Stacked([part.narrow(dim - (dim > self.dim_), start, length) for part in self.parts], self.dim_)


class Concatenated(LazyTensor):
    """The unread result of `torch.cat(parts, dim)`."""

    def __init__(self, parts: Sequence[LazyTensor], dim: int = 0):
        self.parts = tuple(parts)
        first = self.parts[0]
        self.dim_ = dim % first.ndim
        shape = list(first.shape)
        if len({(*part.shape[: self.dim_], 0, *part.shape[self.dim_ + 1 :]) for part in self.parts}) > 1:
            raise ValueError(f"cannot concatenate tensors of shapes {sorted({tuple(p.shape) for p in self.parts})}")
        shape[self.dim_] = sum(part.shape[self.dim_] for part in self.parts)
        super().__init__(shape, first.kind)

    def read(self) -> torch.Tensor:
        return torch.cat([part.read() for part in self.parts], self.dim_)

    def sources(self) -> Iterator[TensorSource]:
        return chain.from_iterable(part.sources() for part in self.parts)

    def copy_to(self, out: torch.Tensor) -> torch.Tensor:
        sizes = [part.shape[self.dim_] for part in self.parts]
        for part, place in zip(self.parts, out.split(sizes, self.dim_), strict=True):
            part.copy_to(place)
        return out

    def _select(self, dim: int, index: int) -> LazyTensor:
        if dim == self.dim_:
            return self.narrow(dim, index, 1).select(dim, 0)
        return Concatenated([part.select(dim, index) for part in self.parts], self.dim_ - (dim < self.dim_))

    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        if dim != self.dim_:
            return Concatenated([part.narrow(dim, start, length) for part in self.parts], self.dim_)
        narrowed, offset = [], 0
        for part in self.parts:
            size = part.shape[dim]
            low, high = max(start - offset, 0), min(start + length - offset, size)
            if low < high:
                narrowed.append(part if (low, high) == (0, size) else part.narrow(dim, low, high - low))
            offset += size
        return narrowed[0] if len(narrowed) == 1 else Concatenated(narrowed, dim)


class Permuted(LazyTensor):
    """The unread result of `base.permute(dims)`."""

    def __init__(self, base: LazyTensor, dims: tuple[int, ...]):
        self.base, self.dims = base, dims
        super().__init__([base.shape[dim] for dim in dims], base.kind)

    def read(self) -> torch.Tensor:
        return self.base.read().permute(self.dims)

    def sources(self) -> Iterator[TensorSource]:
        return self.base.sources()

    def _select(self, dim: int, index: int) -> LazyTensor:
        at = self.dims[dim]
        dims = tuple(d - (d > at) for d in self.dims if d != at)
        return Permuted(self.base.select(at, index), dims)

    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        return Permuted(self.base.narrow(self.dims[dim], start, length), self.dims)


class Whole(Typed):
    """The source of a lazy tensor that can only be read whole and sliced afterwards."""

    def __init__(self, base: LazyTensor):
        self.base, self.shape, self.kind = base, base.shape, base.kind
        self.parts = (base,)

    def read(self, index: Index) -> torch.Tensor:
        return self.base.read()[index]


class Reshaped(LazyTensor):
    """The unread result of `base.reshape(shape)`; slices of leading dimensions that it keeps are slices of the base."""

    def __init__(self, base: LazyTensor, shape: Sequence[int]):
        self.base = base
        super().__init__(shape, base.kind)

    def read(self) -> torch.Tensor:
        return self.base.read().reshape(self.shape)

    def sources(self) -> Iterator[TensorSource]:
        return self.base.sources()

    def _keeps(self, dim: int) -> bool:
        return self.base.ndim > 1 and self.ndim > 1 and self.shape[: dim + 1] == self.base.shape[: dim + 1]

    def _select(self, dim: int, index: int) -> LazyTensor:
        if self._keeps(dim):
            return Reshaped(self.base.select(dim, index), self.shape[:dim] + self.shape[dim + 1 :])
        return Stored(Whole(self)).select(dim, index)

    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        if self._keeps(dim):
            return Reshaped(self.base.narrow(dim, start, length), [*self.shape[:dim], length, *self.shape[dim + 1 :]])
        return Stored(Whole(self)).narrow(dim, start, length)


class Strided(LazyTensor):
    """Every `step`-th entry of `dim`, unread, starting with the first."""

    def __init__(self, base: LazyTensor, dim: int, step: int):
        self.base, self.dim_, self.step = base, dim, step
        super().__init__([*base.shape[:dim], -(-base.shape[dim] // step), *base.shape[dim + 1 :]], base.kind)

    def read(self) -> torch.Tensor:
        return self.base.read()[(slice(None),) * self.dim_ + (slice(None, None, self.step),)]

    def sources(self) -> Iterator[TensorSource]:
        return self.base.sources()

    def _select(self, dim: int, index: int) -> LazyTensor:
        if dim == self.dim_:
            return self.base.select(dim, index * self.step)
        return Strided(self.base.select(dim, index), self.dim_ - (dim < self.dim_), self.step)

    def _narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        if dim == self.dim_:
            start, length = start * self.step, (length - 1) * self.step + 1
        return Strided(self.base.narrow(dim, start, length), self.dim_, self.step)


class InMemory(Typed):
    """The source of a tensor that is already in memory, such as a live model's parameter."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.detach()
        self.shape, self.kind = tensor.shape, kind_of(tensor.dtype)

    def read(self, index: Index) -> torch.Tensor:
        return self.tensor[index]


BUILDERS = {"stack": Stacked, "cat": Concatenated}  # functions of torch that return lazy tensors
