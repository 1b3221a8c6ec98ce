"""AWQ, packed for GEMM (AutoAWQ): `X.qweight`, `X.qzeros`, `X.scales` stand for `X.weight`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import WORD, unpacked
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

BITS, PER_WORD = 4, 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the code of each of 8 columns is


class Awq(PackedMatrix):
    """`qweight` (in, out / 8), `qzeros` (groups, out / 8), `scales` (groups, out).

    The value at (o, i) is `scales[i // group, o] * (code - zero)` in the scales' type, as AutoAWQ computes it.
    """

    def __init__(self, codes: LazyTensor, zeros: LazyTensor, scales: LazyTensor):
        self.codes, self.zeros, self.scales = codes, zeros, scales
        self.group = codes.shape[0] // scales.shape[0]
        shape = (scales.shape[1], codes.shape[0])
        super().__init__(
            f"int4 in groups of {self.group} (AWQ)", [codes, zeros, scales], shape, scales.kind, (PER_WORD, self.group)
        )

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        words, groups = covering(rows, PER_WORD), covering(columns, self.group)
        codes, zeros = (_columns(part.read()) for part in (self.codes[columns, words], self.zeros[groups, words]))
        values = (codes.unflatten(0, (-1, self.group)) - zeros.unsqueeze(1)).to(self.dtype)
        return values.mul_(self.scales[groups, rows].read().unsqueeze(1)).flatten(0, 1).T


def _columns(words: torch.Tensor) -> torch.Tensor:
    """Codes in the order of the columns."""
    return unpacked(words, BITS, 1).unflatten(1, (-1, PER_WORD))[..., PLACES].flatten(1)


@dataclass(frozen=True)
class AwqLayers:
    """The encoding: three tensors a layer, as its weight (out, in)."""

    methods: tuple[str, ...] = ("awq",)
    title: str = "AWQ"
    source: str = "AutoAWQ 0.2.9, `awq/modules/linear/gemm.py` and `awq/utils/packing_utils.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """The layers as the values that they stand for.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: a packing that is not read.
        """
        names = [key.removesuffix("qweight") for key in tensors if key.endswith(".qweight")]
        if quantization.method is None or not names:
            return
        packing, bits = str(quantization.fields.get("version", "gemm")).lower(), _bits(quantization)
        if packing != "gemm" or bits != BITS:
            raise CheckpointError(
                f"The checkpoint is packed by AWQ for {packing!r} with {bits} bits; 'gemm' with {BITS} bits can be "
                "read. Use another release."
            )
        for name in names:
            yield _layer(name, tensors, quantization.number("group_size", quantization.number("q_group_size", -1)))


ENCODING = AwqLayers()


def _bits(quantization: Quantization) -> int:
    return quantization.number("bits", quantization.number("w_bit", BITS))


def _layer(name: str, tensors: Mapping[str, LazyTensor], group: int) -> Packed:
    keys = [name + part for part in ("qweight", "qzeros", "scales")]
    missing = next((key for key in keys if key not in tensors), None)
    if missing is not None:
        raise DamagedFile(f"{keys[0]!r} has no {missing!r} beside it; download the checkpoint again.")
    codes, zeros, scales = parts = [tensors[key] for key in keys]
    inputs, outputs = codes.shape[0], codes.shape[-1] * WORD // BITS
    groups = scales.shape[0]
    fits = codes.ndim == 2 and scales.shape == (groups, outputs) and zeros.shape == (groups, codes.shape[-1])
    stated = inputs if group < 1 else group
    if not fits or inputs != groups * stated or {codes.kind, zeros.kind} != {"int32"}:
        raise DamagedFile(
            f"{keys[0]!r}, {keys[1]!r} and {keys[2]!r} have shapes {[tuple(part.shape) for part in parts]}, which do "
            f"not fit groups of {group}; download the checkpoint again."
        )
    return Packed(name + "weight", tuple(keys), Stored(Awq(codes, zeros, scales)))
