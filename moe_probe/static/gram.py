"""The streaming pass of the static analyses, which reads every weight once and reduces it to small statistics.

Matrices are read in slabs of rows (views of the mapped file if the format allows), converted to float32 chunk by chunk
in the processor's cache, and multiplied there. Chunk products are float32, their sums float64, always in the same
order, so that results do not depend on the number of threads or processes.
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
from moe_probe.static.geometry import NONE, Geometry, Tree

CHUNK_ELEMENTS = 1 << 20
SLAB_ELEMENTS = 1 << 23
READ_ELEMENTS, READS_A_THREAD = 1 << 26, 2  # values that all threads hold; each read decodes several slabs
FEATURE_BLOCK_BYTES = 1 << 27
SMALLEST_SQUARE, SMALLEST_NORMAL = 1e-24, 1e-36  # below, sums of squares of float32, and single ones, lose digits
SAMPLE_ELEMENTS, SAMPLE_READS, LEAST_READS = (
    1 << 14,
    256,
    4,
)  # of a matrix, of all, of each: its neighbors are told from it
UNDERFLOWN = 1e-300
MOST_REPEATS = 2  # of a pass whose tree loses digits


@dataclass(frozen=True)
class Matrices:
    """The matrices of one layer and projection that are compared with each other.

    Attributes:
        layer: index of the layer, for errors.
        projection: name of the projection, for errors.
        labels: of the experts, (R,).
        tensors: lazy tensors, one per label.
    """

    layer: int
    projection: str
    labels: tuple[str, ...]
    tensors: tuple[LazyTensor, ...]

    def neuron_major(self) -> tuple[LazyTensor, ...]:
        """The matrices with one neuron a row, (ff, d): down projections transposed."""
        return tuple(t.T for t in self.tensors) if self.projection == "down" else self.tensors

    def check(self, values: torch.Tensor, labels: Sequence[str] | None = None) -> None:
        """Raises `NotFinite` if a statistic, (R,) or (R, ...), is not finite, and names the first such matrix."""
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
        _buffers.chunk = torch.empty(max(size, CHUNK_ELEMENTS), dtype=torch.float32)
    return _buffers.chunk[:size].view(shape)


def _row_slabs(tensors: Sequence[LazyTensor]) -> Iterator[tuple[int, int]]:
    rows, width = tensors[0].shape[0], tensors[0].shape[1:].numel()
    step = max(1, SLAB_ELEMENTS // (width * len(tensors)))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _sum_over_slabs(
    tensors: Sequence[LazyTensor], reduce: Callable[[list[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """The float64 sum over all slabs of `reduce(flattened slab of each tensor)`, computed on all cores."""
    slabs, threads = list(_row_slabs(tensors)), torch.get_num_threads()
    together = min(READ_ELEMENTS // (SLAB_ELEMENTS * threads), len(slabs) // (READS_A_THREAD * threads))
    reads = [slabs[at : at + max(together, 1)] for at in range(0, len(slabs), max(together, 1))]

    def one(several: list[tuple[int, int]]) -> list[torch.Tensor]:
        first, last = several[0][0], several[-1][1]
        read = [t[first:last].read() for t in tensors]
        return [reduce([rows[start - first : stop - first].reshape(-1) for rows in read]) for start, stop in several]

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.stack([part for parts in pool.map(one, reads) for part in parts]).sum(0)


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


def flat_geometry(matrices: Matrices) -> Geometry:
    """The geometry of the flattened matrices, accurate also if they are nearly equal.

    A sample of rows determines which matrices are near each other; if the sample misled, the pass is repeated.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    tree = sampled_tree(matrices)
    geometry = Geometry(_differences(matrices, tree), tree)
    for _ in range(MOST_REPEATS):
        if not geometry.tree.loses_digits(geometry):
            break
        geometry = Geometry(_differences(matrices, geometry.shortest), geometry.shortest)
    return geometry


def sampled_tree(matrices: Matrices) -> Tree:
    """Neighbors among the matrices, determined from rows at equal intervals."""
    rows, width = matrices.tensors[0].shape[0], matrices.tensors[0].shape[1:].numel()
    count = min(rows, max(2, SAMPLE_ELEMENTS // width))
    places = min(count, max(LEAST_READS, SAMPLE_READS // len(matrices.tensors)))
    at = sorted({round(place) for place in torch.linspace(0, rows - 1, places).tolist()})
    depth = max(1, count // len(at))
    parts = [[t[row : row + depth].read().reshape(-1).double() for row in at] for t in matrices.tensors]
    sample = torch.stack([torch.cat(part) for part in parts])
    largest = sample.abs().max()
    if not torch.isfinite(largest) or largest == 0:
        return Tree.none(len(sample))
    return Geometry.unaided(sample / largest).shortest


def _differences(matrices: Matrices, tree: Tree) -> torch.Tensor:
    """Inner products of the matrices minus their neighbors, (R, R) float64."""
    wide = any(tensor.dtype == torch.float64 for tensor in matrices.tensors)
    dtype = torch.float64 if wide else torch.float32
    products = _sum_over_slabs(matrices.tensors, partial(_slab_gram, tree=tree, dtype=dtype))
    if not wide and needs_float64(products.diagonal()):
        products = _sum_over_slabs(matrices.tensors, partial(_slab_gram, tree=tree, dtype=torch.float64))
    if not torch.isfinite(products).all():
        _refuse_not_finite(matrices)
    return products


def _refuse_not_finite(matrices: Matrices) -> None:
    """Raises `NotFinite` if a matrix itself holds NaN or infinity."""
    matrices.check(
        torch.stack(
            [torch.stack([t[a:b].read().double().sum() for a, b in _row_slabs([t])]).sum() for t in matrices.tensors]
        )
    )


def _slab_gram(slab: list[torch.Tensor], tree: Tree, dtype: torch.dtype) -> torch.Tensor:
    gram = torch.zeros(len(slab), len(slab), dtype=torch.float64)
    for chunk in _chunks(slab, dtype):
        gram += _product(tree.subtract(chunk))
    return gram


def _product(chunk: torch.Tensor) -> torch.Tensor:
    """Inner products of the rows; squares that underflow the dtype leave a small positive trace."""
    product = (chunk @ chunk.T).double()
    squares = product.diagonal()
    gone = (squares == 0).nonzero()[:, 0]
    if len(gone):
        squares[gone] = chunk[gone].any(1).double() * UNDERFLOWN
    return product


def needs_float64(squares: torch.Tensor) -> bool:
    """Whether sums of squares, other than zeros, were too small or too large for float32."""
    return bool((((squares < SMALLEST_SQUARE) & (squares > 0)) | ~torch.isfinite(squares)).any())


def standardized_gram(matrices: Matrices) -> torch.Tensor:
    """Inner products (R, R), float64, of matrices whose every entry is standardized over the R matrices (ddof 1).

    Entries that are equal in all matrices have no deviation and count as 0. The trace is (R - 1) times the number of
    the others.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    gram, lost = _standardized(matrices, torch.float32)
    if lost:
        gram, _ = _standardized(matrices, torch.float64)
    if not torch.isfinite(gram).all():
        _refuse_not_finite(matrices)
    return gram


def _standardized(matrices: Matrices, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """The Gram matrix of standardized entries, and the number of entries for which `dtype` is too narrow."""
    experts = len(matrices.tensors)
    sums = _sum_over_slabs(matrices.tensors, partial(_standardized_slab, dtype=dtype))
    return sums[:experts] * (experts - 1), int(sums[experts, 0])


def _standardized_slab(slab: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The slab's Gram matrix, (R, R); a last row counts entries whose deviations are too small or large to square.

    Entries are centered twice, on the first matrix and on their mean; the first gives exact zeros if all are equal.
    """
    products = torch.zeros(len(slab) + 1, len(slab), dtype=torch.float64)
    for chunk in _chunks(slab, dtype):
        chunk[1:] -= chunk[:1]
        chunk[0] = 0
        chunk -= chunk.mean(0)
        squares = chunk[0] * chunk[0]
        for row in chunk[1:]:  # ten times as fast as a norm along the first dimension
            squares.addcmul_(row, row)
        narrow = ~((squares > SMALLEST_NORMAL) & torch.isfinite(squares))
        if narrow.any():
            products[-1] += float(chunk[:, narrow].any(0).sum())
        chunk *= squares.rsqrt_().nan_to_num_(nan=float("nan"), posinf=0.0)
        products[:-1] += chunk @ chunk.T
    return products


def mean_neurons(matrices: Matrices) -> torch.Tensor:
    """The mean neuron of each matrix, (R, d) float64; for matrices near each other, from the mean of the difference.

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    alike = len({tuple(tensor.shape) for tensor in matrices.tensors}) == 1
    tree = sampled_tree(matrices) if alike else Tree.none(len(matrices.tensors))
    neurons = 1 if matrices.projection == "down" else 0

    def mean(at: int) -> torch.Tensor:
        tensor, near = matrices.tensors[at], tree.neighbor[at]
        parts = []
        for start, stop in _row_slabs([tensor]):
            rows = tensor[start:stop].read().to(torch.float32)
            if near != NONE:
                rows = rows - matrices.tensors[near][start:stop].read()
            parts.append(rows.sum(neurons).double())
        return (torch.cat(parts) if neurons else torch.stack(parts).sum(0)) / tensor.shape[neurons]

    means = torch.stack([mean(at) for at in range(len(matrices.tensors))])
    if not torch.isfinite(means).all():
        _refuse_not_finite(matrices)
    return tree.paths @ means


def kernel_geometry(matrices: Matrices, biased: bool = False) -> Geometry:
    """The geometry of the experts' centered linear kernels, by the unbiased estimator of HSIC or the biased one.

    K = X X^T, (d, d), where X (d, ff) holds an expert's neurons as columns, each minus its mean over the d entries. The
    numbers of neurons may differ. A block of kernel rows is held at a time, so the weights are read d/block times. The
    kernel of an expert near another one is kept as their difference, D S^T made symmetric, D = X - X', S = X + X'.

    Plain inner products <K, L> of unrelated experts grow with the number of neurons per dimension; the unbiased ones
    (Song et al. 2012, Journal of Machine Learning Research 13, equation 5) omit the diagonals. For centered
    kernels with diagonals k and l: <K, L> - (1 + 2 / (d - 2)) k.l + tr K tr L / ((d - 1) (d - 2)).

    Raises:
        NotFinite: a matrix holds NaN or infinity.
    """
    alike = len({tuple(tensor.shape) for tensor in matrices.tensors}) == 1
    tree = sampled_tree(matrices) if alike else Tree.none(len(matrices.tensors))
    products, diagonals = _kernel_products(matrices, tree, torch.float32)
    if needs_float64(products.diagonal()) or not products.diagonal().all():
        products, diagonals = _kernel_products(matrices, tree, torch.float64)
    if not torch.isfinite(products).all():
        _refuse_not_finite(matrices)
    return Geometry(products if biased else unbiased(products, diagonals), tree)


def unbiased(products: torch.Tensor, diagonals: torch.Tensor) -> torch.Tensor:
    """n (n - 3) times the unbiased HSIC, from inner products (R, R) of centered kernels and their diagonals (R, n)."""
    n, traces = diagonals.shape[1], diagonals.sum(1)
    own_terms = (1 + 2 / (n - 2)) * (diagonals @ diagonals.T)
    return products - own_terms + traces[:, None] * traces / ((n - 1) * (n - 2))


def _kernel_products(matrices: Matrices, tree: Tree, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of the kernels, (R, R), and their diagonals, (R, d), float64."""
    neurons = matrices.neuron_major()
    width = neurons[0].shape[1]
    block = max(1, min(width, FEATURE_BLOCK_BYTES // (dtype.itemsize * width * len(neurons))))
    products = torch.zeros(len(neurons), len(neurons), dtype=torch.float64)
    diagonals = torch.zeros(len(neurons), width, dtype=torch.float64)
    for start in range(0, width, block):
        columns = slice(start, min(start + block, width))
        kernels = torch.zeros(len(neurons), columns.stop - start, width, dtype=dtype)
        for at, kernel in enumerate(kernels):
            neighbor = None if tree.neighbor[at] == NONE else neurons[tree.neighbor[at]]
            _add_kernel(kernel, neurons[at], neighbor, columns)
        flat = kernels.flatten(1).double()
        products += flat @ flat.T
        diagonals[:, columns] = kernels.diagonal(start, 1, 2)
    return products, diagonals


def _add_kernel(kernel: torch.Tensor, tensor: LazyTensor, neighbor: LazyTensor | None, columns: slice) -> None:
    """Adds rows of an expert's kernel, or of its difference from a neighbor's, to `kernel` (columns, d)."""
    for low, high in _row_slabs([tensor]):
        rows = _centered(tensor[low:high], kernel.dtype)
        if neighbor is None:
            kernel.addmm_(rows[:, columns].T, rows)
            continue
        beside = neighbor[low:high].read().to(kernel.dtype)
        difference = tensor[low:high].read().to(kernel.dtype) - beside
        difference -= difference.mean(1, keepdim=True)
        total = 2 * rows - difference
        kernel.addmm_(difference[:, columns].T, total, alpha=0.5).addmm_(total[:, columns].T, difference, alpha=0.5)


def _centered(tensor: LazyTensor, dtype: torch.dtype) -> torch.Tensor:
    rows = tensor.read().to(dtype, copy=True)  # a live model's own weights stay as they are
    return rows.sub_(rows.mean(1, keepdim=True))
