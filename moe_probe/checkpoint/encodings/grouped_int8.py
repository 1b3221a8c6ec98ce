"""int8 matrices with scales per group of rows: Grok-1's, and `X` with `X_scales` in models that `convert` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import Index, LazyTensor, Permuted, Stored, Typed
from moe_probe.checkpoint.slices import as_slice, covering
from moe_probe.errors import DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

SCALES_SUFFIX = "_scales"


class GroupScaled(Typed):
    """An int8 matrix (..., K, N) times scales (..., G, N): group g scales the rows g K/G to (g+1) K/G - 1.

    The product is rounded to the scales' dtype, bfloat16 in the release.

    Attributes:
        weight, scales: the stored tensors.
        form: description of the stored form.
    """

    def __init__(self, weight: LazyTensor, scales: LazyTensor):
        self.weight, self.scales, self.form = weight, scales, "int8 with scales"
        self.parts = (weight, scales)
        self.shape, self.kind = weight.shape, scales.kind
        self.rows_per_group = weight.shape[-2] // scales.shape[-2]

    def read(self, index: Index) -> torch.Tensor:
        *lead, rows, columns = (as_slice(part) for part in index)
        size = self.rows_per_group
        groups = covering(rows, size)
        values = self.weight[(*lead, rows, columns)].read().to(self.dtype)
        scales = self.scales[(*lead, groups, columns)].read()
        for group in range(groups.start, groups.stop):
            first, last = max(group * size, rows.start), min((group + 1) * size, rows.stop)
            part = values[..., first - rows.start : last - rows.start, :]
            part *= scales[..., group - groups.start, None, :]
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]


def grouped_int8(tensor: LazyTensor) -> tuple[LazyTensor, LazyTensor] | None:
    """Returns the stored int8 matrix and scales of which an (out, in) matrix is the product; None for other tensors.

    Returns:
        int8 (out, in) and scales (out, groups).
    """
    if not isinstance(tensor, Permuted) or tensor.ndim != 2 or not isinstance(tensor.base, Stored):
        return None
    scaled, index = tensor.base.source, tensor.base.index
    if not isinstance(scaled, GroupScaled) or tensor.base.shape != scaled.shape[-2:]:
        return None
    return scaled.weight[index[:-2]].T, scaled.scales[index[:-2]].T


@dataclass(frozen=True)
class GroupedInt8:
    """The encoding: int8 matrices (out, in) and their scales (out, groups), decoded to one tensor each."""

    methods: tuple[str, ...] = ()
    title: str = "int8 with grouped scales"
    source: str = "xai-org/grok-1, `QuantizedWeight8bit` of `model.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the product of each int8 matrix with its scales.

        Raises:
            DamagedFile: the scales do not fit.
        """
        for key, tensor in tensors.items():
            if tensor.kind == "int8" and key + SCALES_SUFFIX in tensors:
                values = _product(key, tensor, tensors[key + SCALES_SUFFIX])
                yield Packed(key, (key, key + SCALES_SUFFIX), values)


def _product(key: str, weight: LazyTensor, scales: LazyTensor) -> LazyTensor:
    groups = scales.shape[-1] if scales.ndim == 2 else 0
    if weight.ndim != 2 or scales.shape[:1] != weight.shape[:1] or not groups or weight.shape[1] % groups:
        raise DamagedFile(
            f"{key!r} is stored as int8 of shape {tuple(weight.shape)} with scales of shape {tuple(scales.shape)}, "
            "expected (out, in) and (out, groups) with groups a divisor of in; convert the release again."
        )
    return Stored(GroupScaled(weight.T, scales.T)).T


ENCODING = GroupedInt8()
