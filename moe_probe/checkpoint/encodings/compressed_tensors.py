"""compressed-tensors (llm-compressor, Red Hat): packed integers with groups, fp8, int8 and NVFP4.

The tensors of a layer determine its form; the configuration states the bits per code, and whether groups follow the
activation order. Layers on the `ignore` list are stored plainly, so the list is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import WORD, read_codes
from moe_probe.checkpoint.encodings._fp4 import Fp4
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization, block_size, matches
from moe_probe.checkpoint.encodings._scaled import CODES, Same, groups_of, scaled, shifted
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

TITLE = "compressed-tensors"
LAYER_CLASS = "Linear"  # a target that covers every layer that no other target names
BY_GROUP = ("group", "dynamic", True)  # values of `actorder` if the columns of a group are not contiguous


class PackedIntegers(PackedMatrix):
    """`X_packed` (out, words): codes along each row, the first one lowest, offset by half of their range.

    Codes of 3, 5, 6 or 7 bits may span two words in newer files; in older files, each word holds whole codes. The
    number of words determines which.

    The values are `(code - zero) * scale` in the scales' dtype, as compressed-tensors computes them: both factors are
    exact in it. Zero points are packed along the rows (`out`). `order` gives the group of every column; without it,
    groups are runs of columns.
    """

    def __init__(
        self, bits: int, codes: LazyTensor, scale: LazyTensor, shape: tuple[int, ...], zero: LazyTensor | None = None,
        order: LazyTensor | None = None, dense: bool = True,
    ):  # fmt: skip
        self.dense = dense
        self.bits, self.codes, self.scale, self.zero, self.order = bits, codes, scale, zero, order
        self.group = -(-shape[-1] // scale.shape[-1])
        groups = "rows" if scale.shape[-1] == 1 else f"groups of {self.group}"
        parts = [codes, scale, *(part for part in (zero, order) if part is not None)]
        super().__init__(f"int{bits} in {groups} ({TITLE})", parts, shape, scale.kind)

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        def words(part: slice) -> torch.Tensor:
            return self.codes[(*lead, rows, part)].read()

        codes = read_codes(words, columns, self.bits, -1, self.codes.shape[-1], self.dense)
        groups, order = groups_of(columns, self.group, self.order)
        scale = self.scale[(*lead, rows, groups)].read()
        return shifted(codes, self._zero(lead, rows, groups), scale, self.group, columns.start % self.group, order)

    def _zero(self, lead: Index, rows: slice, groups: slice) -> torch.Tensor:
        if self.zero is None:
            return torch.full((1, groups.stop - groups.start), 2 ** (self.bits - 1), dtype=torch.uint8)
        zero = self.zero

        def words(part: slice) -> torch.Tensor:
            return zero[(*lead, part, groups)].read()

        return read_codes(words, rows, self.bits, -2, zero.shape[-2], self.dense)


@dataclass(frozen=True)
class CompressedTensors:
    """The encoding: packed layers of every form, decoded to one tensor each."""

    methods: tuple[str, ...] = (TITLE,)
    title: str = TITLE
    source: str = "compressed-tensors 0.20, `compressors/`: `pack_quantized`, `naive_quantized`, `nvfp4`, `mxfp4`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the form of a layer is not supported.
        """
        if quantization.method is None:
            return
        _require_read(quantization)
        for key, tensor in tensors.items():
            if key.endswith("_packed"):
                yield _packed(key.removesuffix("_packed"), tensors, quantization)
            elif tensor.kind in CODES and key + "_scale" in tensors:
                yield _scaled(key, tensors, quantization)


ENCODING = CompressedTensors()


def _require_read(quantization: Quantization) -> None:
    """Checks that weights are neither rotated, nor stored without their zeros, nor ordered for one kind of GPU.

    Raises:
        CheckpointError: they are; the message names the config field that states it.
    """
    sparsity = quantization.fields.get("sparsity_config")
    layout = sparsity.get("format", "dense") if isinstance(sparsity, dict) else "dense"
    written = str(quantization.fields.get("format", ""))
    if quantization.fields.get("transform_config"):
        what = "a transform_config: its weights are multiplied by Hadamard or other matrices"
    elif layout != "dense":
        what = f"the sparsity_config {layout!r}: its weights are stored without their zeros"
    elif written.startswith(("marlin", "sparse")):
        what = f"the format {written!r}: its weights are ordered for one kind of GPU"
    else:
        return
    raise CheckpointError(f"quantization_config has {what}, which is not read; use another release of the model.")


def _packed(name: str, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Packed:
    parts = _parts(name, tensors, "_packed", "_scale", "_shape", "_zero_point", "_g_idx", "_global_scale")
    if "_scale" not in parts:
        raise DamagedFile(f"{name + '_packed'!r} has no scales {name + '_scale'!r}; download the checkpoint again.")
    weights = _weights(name, quantization)
    if tensors[parts["_packed"]].kind == "uint8":
        values = _fp4(name, tensors, parts)
    else:
        values = _integers(name, tensors, parts, weights)
    return Packed(name, _with_activations(name, parts, tensors), values)


def _parts(name: str, tensors: Mapping[str, LazyTensor], *suffixes: str) -> dict[str, str]:
    return {suffix: name + suffix for suffix in suffixes if name + suffix in tensors}


def _with_activations(name: str, parts: Mapping[str, str], tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """Returns the keys of a layer, including scales and zero points of activations, which change no weight."""
    stem = name.removesuffix("weight")
    of_inputs = [
        f"{stem}{side}_{what}" for side in ("input", "output") for what in ("scale", "zero_point", "global_scale")
    ]
    return (*parts.values(), *(key for key in of_inputs if key in tensors))


def _weights(name: str, quantization: Quantization) -> Mapping[str, Any]:
    """Returns the weight settings of a layer: of its config group, else that of its class, else the first."""
    groups = quantization.fields.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise DamagedFile("quantization_config in config.json has no config_groups; use the published file.")
    module = name.removesuffix(".weight")
    for group in groups.values():
        if any(matches(target, module) for target in _targets(group)):
            return _weights_of(group)
    of_class = (group for group in groups.values() if LAYER_CLASS in _targets(group))
    return _weights_of(next(of_class, next(iter(groups.values()))))


def _targets(group: Mapping[str, Any]) -> list[str]:
    targets = group.get("targets")
    return [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []


def _weights_of(group: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = group.get("weights")
    return weights if isinstance(weights, dict) else {}


def _fp4(name: str, tensors: Mapping[str, LazyTensor], parts: Mapping[str, str]) -> LazyTensor:
    codes, scale = tensors[parts["_packed"]], tensors[parts["_scale"]]
    overall = tensors[parts["_global_scale"]] if "_global_scale" in parts else None
    exponents = scale.kind in ("uint8", "float8_e8m0fnu")
    columns = codes.shape[-1] * 2
    group = columns // scale.shape[-1] if scale.ndim == codes.ndim and scale.shape[-1] else 0
    fits = scale.shape[:-1] == codes.shape[:-1] and group * scale.shape[-1] == columns and group % 2 == 0
    if not group or not fits or (overall is None) is not exponents:
        raise DamagedFile(
            f"{name!r} is packed as 4-bit floats of shape {tuple(codes.shape)} with scales of shape "
            f"{tuple(scale.shape)}, which do not fit; download the checkpoint again."
        )
    if overall is not None and overall.numel() not in (1, Size(codes.shape[:-2]).numel()):
        raise DamagedFile(f"{name + '_global_scale'!r} has shape {tuple(overall.shape)}, expected one number a matrix.")
    form = f"MXFP4 ({TITLE})" if exponents else f"NVFP4 ({TITLE})"
    return Stored(Fp4(form, codes, scale, overall, divided=True))


def _integers(
    name: str, tensors: Mapping[str, LazyTensor], parts: Mapping[str, str], weights: Mapping[str, Any]
) -> LazyTensor:
    codes, scale = tensors[parts["_packed"]], tensors[parts["_scale"]]
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if codes.kind != "int32" or not isinstance(bits, int) or not 1 < bits <= 8 or kind != "int":
        raise CheckpointError(
            f"{name!r} is packed as {codes.kind} with num_bits={bits!r} and type={kind!r}, expected int32 words of "
            "integers of 2 to 8 bits; use the unquantized release."
        )
    shape = _shape(name, tensors, parts, codes, bits)
    columns = shape[-1]
    zero = tensors.get(parts.get("_zero_point", ""))
    order = tensors.get(parts.get("_g_idx", ""))
    if scale.ndim < len(shape):
        scale = Stored(Same(scale, (*shape[:-1], scale.numel() // Size(shape[:-1]).numel())))
    dense = _fitting(name, bits, shape, weights.get("group_size") or columns, codes, scale, zero, order)
    if zero is None and weights.get("symmetric") is False:
        raise DamagedFile(f"{name!r} is quantized asymmetrically, but has no {name + '_zero_point'!r}.")
    if order is None and weights.get("actorder") in BY_GROUP and scale.shape[-1] > 1:
        raise DamagedFile(f"{name!r} has groups in the order of activations, but no {name + '_g_idx'!r} says which.")
    if zero is not None and zero.kind != "int32":
        raise DamagedFile(f"{name + '_zero_point'!r} is stored as {zero.kind}, expected int32 words.")
    order = order if _by_activation(order) else None
    return Stored(PackedIntegers(bits, codes, scale, shape, zero, order, dense))


def _fitting(
    name: str,
    bits: int,
    shape: Sequence[int],
    group: Any,
    codes: LazyTensor,
    scale: LazyTensor,
    zero: LazyTensor | None,
    order: LazyTensor | None,
) -> bool:
    """Whether codes may span two words.

    Raises:
        DamagedFile: the parts of the layer do not have the shapes that its configuration states.
    """
    *lead, rows, columns = shape
    groups = scale.shape[-1]
    wanted = -(-columns // group) if isinstance(group, int) and group > 0 else 1
    dense, words = _packing(name, columns, bits, codes.shape[-1])
    zeros = -(-rows * bits // WORD) if dense else -(-rows // (WORD // bits))
    problems = {
        "scales": scale.shape != (*lead, rows, groups) or groups != wanted,
        "words": codes.shape != (*lead, rows, words),
        "zero points": zero is not None and zero.shape != (*lead, zeros, groups),
        "the order of groups": order is not None and (order.shape != (columns,) or bool(lead)),
    }
    wrong = next((what for what, is_wrong in problems.items() if is_wrong), None)
    if wrong is not None:
        raise DamagedFile(
            f"{name!r} is stated as {tuple(shape)} in int{bits} with groups of {group}, which its {wrong} do not fit; "
            "use the config.json that was published with the files."
        )
    return dense


def _packing(name: str, columns: int, bits: int, words: int) -> tuple[bool, int]:
    """Returns whether codes may span two words, and the number of words per row.

    Raises:
        DamagedFile: both ways of packing need this number of words, although they differ.
    """
    dense, whole = -(-columns * bits // WORD), -(-columns // (WORD // bits))
    if WORD % bits and dense == whole == words > 1:
        raise DamagedFile(
            f"{name!r} has {columns} codes of {bits} bits in {words} words, which both ways of packing give; repack it."
        )
    return WORD % bits == 0 or words != whole, dense if WORD % bits == 0 or words != whole else whole


def _by_activation(order: LazyTensor | None) -> bool:
    """Whether a tensor holds an activation order; files may hold -1 in its place."""
    return order is not None and int(order[0].numbers()) >= 0


def _shape(
    name: str, tensors: Mapping[str, LazyTensor], parts: Mapping[str, str], codes: LazyTensor, bits: int
) -> tuple[int, ...]:
    if "_shape" not in parts:
        return (*codes.shape[:-1], codes.shape[-1] * WORD // bits)
    sizes = tensors[parts["_shape"]]
    stated = [] if sizes.is_floating_point or sizes.numel() > 3 else [int(size) for size in sizes.numbers().flatten()]
    if len(stated) == 2 and codes.ndim == 3:
        stated = [codes.shape[0], *stated]
    if len(stated) != codes.ndim or codes.ndim < 2 or min(stated) < 1:
        raise DamagedFile(
            f"{parts['_shape']!r} ({sizes.kind}, {tuple(sizes.shape)}) does not hold the sizes of a matrix; download "
            "the checkpoint again."
        )
    return tuple(stated)


def _scaled(key: str, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Packed:
    parts = _parts(key, tensors, "", "_scale", "_zero_point")
    if key + "_g_idx" in tensors:
        raise CheckpointError(f"{key!r} has an order of activations {key + '_g_idx'!r}, which is not read for 8 bits.")
    weights = _weights(key, quantization)
    blocks = (
        block_size(weights.get("block_structure"), "block_structure") if weights.get("strategy") == "block" else None
    )
    zero = tensors.get(parts.get("_zero_point", ""))
    values = scaled(key, tensors[key], tensors[parts["_scale"]], block=blocks, zero=zero, method=TITLE)
    return Packed(key, _with_activations(key, parts, tensors), values)
