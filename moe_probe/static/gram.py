"""The streaming pass under the static analyses: every weight is read once and reduced to small statistics.

Matrices are read in slabs of rows (a view of the mapped file where the format allows), converted to float32 chunk by
chunk in the processor's cache, and multiplied there. Chunk products are float32, their sums float64, always in the
same order, so that results do not depend on the number of threads or processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import NotFinite

CHUNK_ELEMENTS = 1 << 20
SLAB_ELEMENTS = 1 << 23
FEATURE_BLOCK_BYTES = 1 << 27
SMALLEST_SQUARE, SMALLEST_NORMAL = 1e-24, 1e-36  # below, sums of squares of float32, and single ones, lose digits
ALIKE = 1e-3  # matrices that differ by less than this share of their squares are centered before they are multiplied


@dataclass(frozen=True)
class Matrices:
    """The matrices of one layer and projection that are compared with each other.

    Attributes:
        layer, projection: where they stand; named in errors.
        labels: of the experts, (R,).
        tensors: unread, one per label.
    """

    layer: int
    projection: str
    labels: tuple[str, ...]
    tensors: tuple[LazyTensor, ...]

    def neuron_major(self) -> tuple[LazyTensor, ...]:
        """The matrices with one neuron a row, (ff, d): down projections transposed."""
        return tuple(t.T for t in self.tensors) if self.projection == "down" else self.tensors

    def check(self, values: torch.Tensor, labels: Sequence[str] | None = None) -> None:
        """Raise `NotFinite` naming the first matrix whose statistic, (R,) or (R, ...), is not finite."""
        labels = labels or self.labels
        bad = ~torch.isfinite(values).reshape(len(labels), -1).all(1)
        if bad.any():
            label = labels[int(bad.nonzero()[0])]
            raise NotFinite(
                f"The {self.projection} projection of expert {label} in layer {self.layer} holds NaN or infinity; the "
                "file is damaged or the model was saved after it diverged."
            )


_buffers = threading.local()


def _workspace(shape: tuple[int, int]) -> torch.Tensor:
    """This thread's float32 chunk buffer."""
    size = shape[0] * shape[1]
    if getattr(_buffers, "chunk", None) is None or _buffers.chunk.numel() < size:
        _buffers.chunk = torch.empty(max(size, CHUNK_ELEMENTS))
    return _buffers.chunk[:size].view(shape)


def _row_slabs(tensors: Sequence[LazyTensor]) -> Iterator[tuple[int, int]]:
    rows, width = tensors[0].shape[0], tensors[0].shape[1:].numel()
    step = max(1, SLAB_ELEMENTS // (width * len(tensors)))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _sum_over_slabs(
    tensors: Sequence[LazyTensor], reduce: Callable[[list[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """The float64 sum over all slabs of `reduce(flattened slab of each tensor)`, slabs spread over the cores."""

    def one(bounds: tuple[int, int]) -> torch.Tensor:
        return reduce([t[bounds[0] : bounds[1]].read().reshape(-1) for t in tensors])

    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.stack(list(pool.map(one, _row_slabs(tensors)))).sum(0)


def _chunks(slab: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> Iterator[torch.Tensor]:
    """The slab as chunks (R, columns); those of float32 in this thread's buffer."""
    total = slab[0].numel()
    step = max(1, CHUNK_ELEMENTS // len(slab))
    for start in range(0, total, step):
        stop = min(start + step, total)
        shape = len(slab), stop - start
        chunk = _workspace(shape) if dtype == torch.float32 else torch.empty(shape, dtype=dtype)
        for row, values in zip(chunk, slab, strict=True):
            row.copy_(values[start:stop])
        yield chunk


def flat_gram(matrices: Matrices) -> torch.Tensor:
    """Inner products of all pairs of flattened matrices, (R, R) float64.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """

    gram = _sum_over_slabs(matrices.tensors, _slab_gram)
    if needs_float64(gram.diagonal()):
        gram = _sum_over_slabs(matrices.tensors, partial(_slab_gram, dtype=torch.float64))
    matrices.check(gram.diagonal())
    return gram


def _slab_gram(slab: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    gram = torch.zeros(len(slab), len(slab), dtype=torch.float64)
    for chunk in _chunks(slab, dtype):
        gram += chunk @ chunk.T
    return gram


def needs_float64(squares: torch.Tensor) -> bool:
    """Whether sums of squares were too small or too large for float32: zeros, and what is not finite, included."""
    return bool(((squares < SMALLEST_SQUARE) | ~torch.isfinite(squares)).any())


def paired_gram(matrices: Matrices) -> tuple[torch.Tensor, torch.Tensor]:
    """As `flat_gram` of 2R matrices, and the squared distances of the first R from the others, (R,), float64.

    The distances are summed from differences, so that small ones are exact too.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    half = len(matrices.tensors) // 2
    sums = _sum_over_slabs(matrices.tensors, _paired_slab)
    if needs_float64(sums.diagonal()):
        sums = _sum_over_slabs(matrices.tensors, partial(_paired_slab, dtype=torch.float64))
    matrices.check(sums.diagonal())
    return sums[:, :-1], sums[:half, -1]


def _paired_slab(slab: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    half = len(slab) // 2
    sums = torch.zeros(len(slab), len(slab) + 1, dtype=torch.float64)
    for chunk in _chunks(slab, dtype):
        sums[:, :-1] += chunk @ chunk.T
        sums[:half, -1] += (chunk[half:] - chunk[:half]).square_().sum(1)
    return sums


def standardized_gram(matrices: Matrices) -> torch.Tensor:
    """As `flat_gram`, of matrices whose every entry is standardized over the R matrices (mean 0, deviation 1, ddof 1).

    Entries that are equal in all matrices have no deviation and count as 0. The trace is (R - 1) times the number of
    the others.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    gram, lost = _standardized(matrices, torch.float32)
    if lost:
        gram, _ = _standardized(matrices, torch.float64)
    if not torch.isfinite(gram).all():
        flat_gram(matrices)
    return gram


def centred_gram(matrices: Matrices) -> torch.Tensor:
    """As `flat_gram`, of matrices minus their mean over the R matrices.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    raw = flat_gram(matrices)
    gram = raw - raw.mean(0) - raw.mean(1)[:, None] + raw.mean()
    if gram.trace() > ALIKE * raw.trace():
        return gram
    gram, lost = _standardized(matrices, torch.float32, scale=False)
    return _standardized(matrices, torch.float64, scale=False)[0] if lost else gram


def _standardized(matrices: Matrices, dtype: torch.dtype, scale: bool = True) -> tuple[torch.Tensor, int]:
    """The Gram matrix of centered, and scaled, entries, and for how many entries `dtype` is too narrow."""
    experts = len(matrices.tensors)
    sums = _sum_over_slabs(matrices.tensors, partial(_standardized_slab, dtype=dtype, scale=scale))
    return sums[:experts] * (experts - 1 if scale else 1), int(sums[experts, 0])


def _standardized_slab(slab: list[torch.Tensor], dtype: torch.dtype, scale: bool) -> torch.Tensor:
    """The slab's Gram matrix, (R, R), and in a last row how many entries vary, but too little or too much to square."""
    found = torch.zeros(len(slab) + 1, len(slab), dtype=torch.float64)
    for chunk in _chunks(slab, dtype):
        equal = (chunk[1:] == chunk[:1]).all(0)
        chunk -= chunk.mean(0)
        squares = chunk[0] * chunk[0]
        for row in chunk[1:]:  # ten times as fast as a norm along the first dimension
            squares.addcmul_(row, row)
        squares[equal] = 0.0  # their mean may differ from them by a rounding
        found[-1] += float((~equal & ~((squares > SMALLEST_NORMAL) & torch.isfinite(squares))).sum())
        chunk *= squares.rsqrt_().nan_to_num_(nan=float("nan"), posinf=0.0) if scale else (~equal).to(dtype)
        found[:-1] += chunk @ chunk.T
    return found


def mean_neurons(matrices: Matrices) -> torch.Tensor:
    """The mean neuron of each matrix, (R, d) float64.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """

    def mean(tensor: LazyTensor) -> torch.Tensor:
        total = torch.zeros(tensor.shape[1], dtype=torch.float64)
        if matrices.projection == "down":
            parts = [tensor[a:b].read().to(torch.float32).mean(1) for a, b in _row_slabs([tensor])]
            return torch.cat(parts).double()
        for start, stop in _row_slabs([tensor]):
            total += tensor[start:stop].read().to(torch.float32).sum(0)
        return total / tensor.shape[0]

    means = torch.stack([mean(tensor) for tensor in matrices.tensors])
    matrices.check(means)
    return means


def kernel_gram(matrices: Matrices) -> torch.Tensor:
    """Inner products <K_i, K_j> of the experts' centered linear kernels, (R, R) float64.

    K = X X^T, (d, d), where X (d, ff) holds an expert's neurons as columns, each minus its mean over the d entries. The
    numbers of neurons may differ. A block of kernel rows is held at a time, so the weights are read d/block times.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    gram = _kernel_gram(matrices, torch.float32)
    if needs_float64(gram.diagonal()):
        gram = _kernel_gram(matrices, torch.float64)
    matrices.check(gram.diagonal())
    return gram


def _kernel_gram(matrices: Matrices, dtype: torch.dtype) -> torch.Tensor:
    neurons = matrices.neuron_major()
    width = neurons[0].shape[1]
    block = max(1, min(width, FEATURE_BLOCK_BYTES // (dtype.itemsize * width * len(neurons))))
    gram = torch.zeros(len(neurons), len(neurons), dtype=torch.float64)
    for start in range(0, width, block):
        stop = min(start + block, width)
        kernels = torch.zeros(len(neurons), stop - start, width, dtype=dtype)
        for kernel, tensor in zip(kernels, neurons, strict=True):
            for low, high in _row_slabs([tensor]):
                rows = tensor[low:high].read().to(dtype, copy=True)  # a live model's own weights stay as they are
                rows -= rows.mean(1, keepdim=True)
                kernel.addmm_(rows[:, start:stop].T, rows)
        flat = kernels.flatten(1).double()
        gram += flat @ flat.T
    return gram


def cosine(gram: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair from inner products, g_ij / (|i| |j|); NaN where a norm is 0: zeros have no direction."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return gram / (norms[:, None] * norms)


def l2_distance(gram: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of each pair from inner products."""
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clamp_min(0).sqrt()
