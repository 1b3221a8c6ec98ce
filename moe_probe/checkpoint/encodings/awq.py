"""AWQ (AutoAWQ), packed for GEMM or GEMV: `X.qweight`, `X.qzeros`, `X.scales` encode `X.weight`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import WORD, unpacked
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import shifted
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

BITS, PER_WORD = 4, 8
WIDTHS = {64: 2, 32: 4}  # the words of zero points per row are a multiple of this, by group size
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # position within a word of the code of each of 8 columns


class Awq(PackedMatrix):
    """`qweight` (in, out / 8), `qzeros` (groups, out / 8), `scales` (groups, out).

    The value at (o, i) is `scales[i // group, o] * (code - zero)` in the scales' dtype, as AutoAWQ computes it.
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
        codes, zeros = (_rows(part.read()) for part in (self.codes[columns, words], self.zeros[groups, words]))
        return shifted(codes, zeros, self.scales[groups, rows].read().T, self.group)


class Gemv(PackedMatrix):
    """`qweight` (out, in / 8), the first code lowest; `qzeros` (out, words) and `scales` (out, 8 words), both padded.

    The value at (o, i) is `scales[o, i // group] * (code - zero)` in the scales' dtype.
    """

    def __init__(self, codes: LazyTensor, zeros: LazyTensor, scales: LazyTensor, group: int):
        self.codes, self.zeros, self.scales, self.group = codes, zeros, scales, group
        shape = (codes.shape[0], codes.shape[1] * PER_WORD)
        words = f"int4 in groups of {group} (AWQ for GEMV)"
        super().__init__(words, [codes, zeros, scales], shape, scales.kind, (1, group))

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        groups = covering(columns, self.group)
        first = covering(groups, PER_WORD)
        codes = unpacked(self.codes[rows, covering(columns, PER_WORD)].read(), BITS, 1)
        zeros = unpacked(self.zeros[rows, first].read(), BITS, 1)
        zeros = zeros[:, groups.start - first.start * PER_WORD :][:, : groups.stop - groups.start]
        return shifted(codes, zeros, self.scales[rows, groups].read(), self.group)


def _rows(words: torch.Tensor) -> torch.Tensor:
    """Returns the codes in words (n, words) as rows, in the order of their columns: (8 words, n)."""
    shifts = torch.tensor(PLACES, dtype=torch.int32).unsqueeze(1) * BITS
    return ((words.T.contiguous().unsqueeze(1) >> shifts) & (2**BITS - 1)).flatten(0, 1)


@dataclass(frozen=True)
class AwqLayers:
    """The encoding: three tensors per layer, decoded to its weight (out, in)."""

    methods: tuple[str, ...] = ("awq",)
    title: str = "AWQ"
    source: str = "AutoAWQ 0.2.9, `gemm.py` and `gemv.py` of `awq/modules/linear`; `awq/utils/packing_utils.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the packing is not supported.
        """
        names = [key.removesuffix("qweight") for key in tensors if key.endswith(".qweight")]
        if quantization.method is None or not names:
            return
        packing = str(quantization.fields.get("version", "gemm")).lower()
        for name in names:
            yield layer(name, tensors, quantization, packing)


ENCODING = AwqLayers()


def layer(name: str, tensors: Mapping[str, LazyTensor], stated: Quantization, packing: str = "gemm") -> Packed:
    """Returns the decoded layer whose keys begin with `name`.

    Args:
        name: prefix of the layer's keys, with its final dot.
        tensors: every tensor of the checkpoint.
        stated: the quantization settings of the layer.
        packing: `gemm` or `gemv`.

    Raises:
        CheckpointError: the packing is not supported.
        DamagedFile: a part is missing, or does not fit the others or the settings.
    """
    bits = _bits(stated)
    if packing not in LAYERS or bits != BITS:
        raise CheckpointError(
            f"The checkpoint is packed by AWQ for {packing!r} with {bits} bits; {', '.join(LAYERS)} with {BITS} bits "
            "can be read. Use another release."
        )
    group = stated.number("group_size", stated.number("q_group_size", -1))
    keys = [name + part for part in ("qweight", "qzeros", "scales")]
    return Packed(name + "weight", tuple(keys), Stored(LAYERS[packing](keys, tensors, group)))


def _bits(quantization: Quantization) -> int:
    return quantization.number("bits", quantization.number("w_bit", BITS))


def _parts(keys: Sequence[str], tensors: Mapping[str, LazyTensor]) -> list[LazyTensor]:
    missing = next((key for key in keys if key not in tensors), None)
    if missing is not None:
        raise DamagedFile(f"{keys[0]!r} has no {missing!r} beside it; download the checkpoint again.")
    parts = [tensors[key] for key in keys]
    if any(part.ndim != 2 for part in parts) or {part.kind for part in parts[:2]} != {"int32"}:
        raise _unfit(keys, parts, "layers of 4 bits")
    return parts


def _unfit(keys: Sequence[str], parts: Sequence[LazyTensor], what: str) -> DamagedFile:
    return DamagedFile(
        f"{keys[0]!r}, {keys[1]!r} and {keys[2]!r} have shapes {[tuple(part.shape) for part in parts]}, which do "
        f"not fit {what}; download the checkpoint again."
    )


def _gemm(keys: Sequence[str], tensors: Mapping[str, LazyTensor], group: int) -> Awq:
    codes, zeros, scales = parts = _parts(keys, tensors)
    inputs, outputs = codes.shape[0], codes.shape[1] * WORD // BITS
    groups = scales.shape[0]
    fits = scales.shape == (groups, outputs) and zeros.shape == (groups, codes.shape[1])
    stated = inputs if group < 1 else group
    if not fits or inputs != groups * stated:
        raise _unfit(keys, parts, f"groups of {group}")
    return Awq(codes, zeros, scales)


def _gemv(keys: Sequence[str], tensors: Mapping[str, LazyTensor], group: int) -> Gemv:
    codes, zeros, scales = parts = _parts(keys, tensors)
    inputs = codes.shape[1] * PER_WORD
    size = inputs if group < 1 else group
    filled = WIDTHS.get(size, 1)  # the number of words of zero points is a multiple of this
    words = -(-(inputs // size) // (PER_WORD * filled)) * filled
    fits = zeros.shape == (codes.shape[0], words) and scales.shape == (codes.shape[0], words * PER_WORD)
    if not fits or inputs % size or size % PER_WORD:
        raise _unfit(keys, parts, f"groups of {group}")
    return Gemv(codes, zeros, scales, size)


LAYERS = {"gemm": _gemm, "gemv": _gemv}
