"""HQQ: codes `X.W_q` packed along the rows of groups, `X.scale` and `X.zero`, and a layer's metadata (`meta`).

With HQQ's own file (`formats/hqq.py`), the metadata is in the configuration. transformers stores each number and string
of it as a tensor beside the codes, strings as character codes.

A matrix is divided into groups along one axis: (groups, size) for axis 1, (size, groups) for axis 0. Several rows share
a byte (a 32-bit word for 3 bits): the first part of the rows is in the highest bits.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

# number of rows that share a word, and bits per code, by packing
PACKINGS = {"8bit_u8": (1, 8), "4bit_u8": (2, 4), "3bit_32": (10, 3), "2bit_u8": (4, 2), "1bit_u8": (8, 1)}
# metadata of a layer: names and types
SAID: Mapping[str, type] = {
    "nbits": int, "group_size": int, "axis": int, "shape": list, "packing": str, "view_as_float": bool,
    "quant_scale": bool, "quant_zero": bool,
}  # fmt: skip
LONGEST = 64  # most values of a metadata tensor


class Hqq(PackedMatrix):
    """Values `(code - zero) * scale` in the scales' dtype, as HQQ computes them."""

    def __init__(self, codes: LazyTensor, scale: LazyTensor, zero: LazyTensor, meta: Mapping[str, Any]):
        self.codes, self.scale, self.zero, self.axis = codes, scale, zero, meta["axis"]
        self.sharing, self.bits = PACKINGS[meta["packing"]]
        shape = tuple(meta["shape"])
        self.width = codes.shape[1]
        form = f"int{meta.get('nbits')} in groups of {meta.get('group_size')} (HQQ)"
        super().__init__(form, [codes, scale, zero], shape, scale.kind)
        self.unit = (1, shape[1])

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        width = self.shape[1]
        start, stop = rows.start * width, rows.stop * width
        groups = covering(slice(start, stop), self.width)
        codes = self._codes(groups.start, groups.stop).to(torch.float32).to(self.dtype)  # faster than in one step
        values = codes.sub_(self._of_groups(self.zero, groups)).mul_(self._of_groups(self.scale, groups)).flatten()
        start -= groups.start * self.width
        return values[start : start + (rows.stop - rows.start) * width].view(-1, width)

    def _of_groups(self, factor: LazyTensor, groups: slice) -> torch.Tensor:
        """Returns one number per group, or one for all groups."""
        if factor.numel() == 1:
            return factor.read().reshape(1, 1).to(self.dtype)
        return (factor[groups] if self.axis == 1 else factor).read().to(self.dtype)

    def _codes(self, first: int, last: int) -> torch.Tensor:
        """Returns the codes of rows `first` to `last` - 1 of the matrix divided into groups."""
        step = self.codes.shape[0]
        codes = []
        for part in range(first // step, -(-last // step)):
            low, high = max(first - part * step, 0), min(last - part * step, step)
            words = self.codes[low:high].read()
            codes.append((words >> ((self.sharing - 1 - part) * self.bits)) & (2**self.bits - 1))
        return torch.cat(codes)


@dataclass(frozen=True)
class HqqLayers:
    """The encoding: codes, scales and zero points, decoded to one matrix each."""

    methods: tuple[str, ...] = ("hqq",)
    title: str = "HQQ"
    source: str = "hqq 0.2.8, `core/quantize.py`, `core/bitpack.py` and `core/utils.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the packing is not supported.
        """
        if quantization.method not in self.methods:
            return
        layers = quantization.fields.get("layers")
        layers = layers if isinstance(layers, dict) else dict(_described(tensors))
        parts = _keys_of(tensors, layers)
        for module, meta in layers.items():
            yield Packed(f"{module}.weight", tuple(parts.get(module, ())), _matrix(module, tensors, meta))


ENCODING = HqqLayers()


def _described(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each packed layer with the metadata that is stored beside its codes."""
    for key in tensors:
        module = key.removesuffix(".W_q")
        if module != key and f"{module}.packing" in tensors:
            yield module, {name: _said(key, tensors.get(f"{module}.{name}"), kind) for name, kind in SAID.items()}


def _said(key: str, tensor: LazyTensor | None, kind: type) -> Any:
    """Returns an integer, bool, list of sizes or string from a metadata tensor, or None if there is no tensor."""
    if tensor is None:
        return None
    plain = not tensor.is_floating_point and 0 < tensor.numel() <= LONGEST
    values = [int(value) for value in tensor.numbers().flatten()] if plain else []
    if not values or (kind is str and not all(32 <= value < 127 for value in values)):
        raise DamagedFile(f"{key!r} has beside it {tuple(tensor.shape)} of {tensor.kind}, which says nothing of it.")
    if kind in (str, list):
        return "".join(map(chr, values)) if kind is str else values
    return kind(values[0])


def _keys_of(tensors: Mapping[str, LazyTensor], modules: Container[str]) -> dict[str, list[str]]:
    """Returns the keys of the tensors that encode each layer's weight, by module."""
    keys: dict[str, list[str]] = {}
    for key in tensors:
        module, _, role = key.rpartition(".")
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if module and role not in ("bias", "weight"):
            keys.setdefault(module, []).append(key)
    return keys


def _matrix(module: str, tensors: Mapping[str, LazyTensor], meta: Mapping[str, Any]) -> LazyTensor:
    packing, axis = meta.get("packing"), meta.get("axis")
    if packing not in PACKINGS or axis not in (0, 1) or meta.get("view_as_float"):
        raise CheckpointError(
            f"{module}.W_q is packed as {packing!r} along axis {axis!r}; {', '.join(PACKINGS)} along 0 or 1 can be "
            "read. Use another release."
        )
    scale, zero = (_factor(module, tensors, meta, name) for name in ("scale", "zero"))
    words, shape = tensors.get(f"{module}.W_q"), meta.get("shape")
    if words is None or scale is None or zero is None or not isinstance(shape, list) or len(shape) != 2:
        raise DamagedFile(f"{module} has no W_q, scale, zero or shape; download the file again.")
    values = shape[0] * shape[1]
    rows, width = words.shape[0] * PACKINGS[packing][0], words.shape[-1]
    groups = values // width
    slack = PACKINGS[packing][0] if packing == "3bit_32" else 1  # rows are padded to whole words
    fits = words.ndim == 2 and 0 <= rows - groups < slack and values == groups * width
    one_each = (groups, 1) if axis == 1 else (1, width)
    if not fits or any(part.numel() != 1 and part.shape != one_each for part in (scale, zero)):
        raise DamagedFile(
            f"{module} is stated as {tuple(shape)}, but has codes, scales and zeros of the shapes "
            f"{tuple(words.shape)}, {tuple(scale.shape)} and {tuple(zero.shape)}; download the file again."
        )
    return Stored(Hqq(words, scale, zero, meta))


def _factor(module: str, tensors: Mapping[str, LazyTensor], meta: Mapping[str, Any], name: str) -> LazyTensor | None:
    """Returns the scales or zero points of a layer, which may be quantized themselves; None if they are missing."""
    nested = meta.get(f"meta_{name}")
    if not isinstance(nested, dict):
        return tensors.get(f"{module}.{name}")
    inner = {"W_q": f"{module}.{name}_q", "scale": f"{module}.meta_{name}.scale", "zero": f"{module}.meta_{name}.zero"}
    parts = {f"{module}.{role}": tensors[key] for role, key in inner.items() if key in tensors}
    return _matrix(module, parts, nested)
