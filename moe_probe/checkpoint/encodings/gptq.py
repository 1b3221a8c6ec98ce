"""GPTQ (AutoGPTQ, GPTQModel): `X.qweight`, `X.qzeros`, `X.scales`, `X.g_idx` encode `X.weight`.

Codes are packed along the inputs, zero points along the outputs, both in 32-bit words. Sizes and bits follow from the
shapes and must match the configuration, in which GPTQModel's `dynamic` has rules for some layers. Format 1 stores each
zero point minus 1, format 2 stores it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import WORD, period, unpacked
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization, matches
from moe_probe.checkpoint.encodings._scaled import groups_of, shifted
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

BITS = (2, 3, 4, 8)
LESS = {"gptq": 1, "gptq_v2": 0}  # what to add to stored zero points, by `checkpoint_format`


class Gptq(PackedMatrix):
    """`qweight` (in bits / 32, out), `qzeros` (groups, out bits / 32), `scales` (groups, out), `g_idx` (in).

    The value at (o, i) is `scales[g_idx[i], o] * (code - zero)`, in the scales' dtype, as AutoGPTQ computes it.
    """

    def __init__(
        self, parts: list[LazyTensor], bits: int, less: int, columns: int, group: int, order: LazyTensor | None
    ):
        self.codes, self.zeros, self.scales = parts
        self.bits, self.less, self.group, self.order = bits, less, group, order
        per_period, _ = period(bits)
        words = f"int{bits} in groups of {group}{', act order' if order else ''} (GPTQ)"
        stored = [*parts, *([] if order is None else [order])]
        super().__init__(words, stored, (self.scales.shape[1], columns), self.scales.kind, (per_period, per_period))

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        codes = unpacked(self.codes[_words(columns, self.bits), rows].read(), self.bits, 0).T
        groups, order = groups_of(columns, self.group, self.order)
        scales = self.scales[groups, rows].read().T
        zeros = unpacked(self.zeros[groups, _words(rows, self.bits)].read(), self.bits, 1)[:, : len(scales)].T
        zeros = (zeros + self.less) & (2**self.bits - 1)
        codes = codes[:, : columns.stop - columns.start]
        return shifted(codes, zeros, scales, self.group, columns.start % self.group, order)


def _words(part: slice, bits: int) -> slice:
    """Returns the words that hold the whole periods of codes around `part`."""
    codes, words = period(bits)
    periods = covering(part, codes)
    return slice(periods.start * words, periods.stop * words)


@dataclass(frozen=True)
class GptqLayers:
    """The encoding: four tensors per layer, decoded to its weight (out, in)."""

    methods: tuple[str, ...] = ("gptq",)
    title: str = "GPTQ"
    source: str = "GPTQ, arXiv 2210.17323; AutoGPTQ 0.7.1 and GPTQModel 7.7, `pack` of their linear layers."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the `checkpoint_format` is not supported.
        """
        names = [key.removesuffix("qweight") for key in tensors if key.endswith(".qweight")]
        if quantization.method is None or not names:
            return
        written = quantization.fields.get("checkpoint_format") or "gptq"
        if written not in LESS:
            raise CheckpointError(
                f"The checkpoint is in GPTQ's format {written!r}; {', '.join(LESS)} can be read. Use another release."
            )
        for name in names:
            stated = _of_layer(name.removesuffix("."), quantization)
            yield layer(name, tensors, LESS[written], stated)


ENCODING = GptqLayers()


def layer(name: str, tensors: Mapping[str, LazyTensor], less: int, stated: Quantization) -> Packed:
    """Returns the decoded layer whose keys begin with `name`.

    Args:
        name: prefix of the layer's keys, with its final dot.
        tensors: every tensor of the checkpoint.
        less: what to add to stored zero points.
        stated: the quantization settings of the layer.

    Raises:
        DamagedFile: a part is missing, or does not fit the others or the settings.
    """
    packed = _layer(name, tensors, less, stated.number("group_size", -1))
    _require_stated(packed, name + "g_idx", stated)
    return packed


def _of_layer(module: str, quantization: Quantization) -> Quantization:
    """Returns a layer's settings: those of all layers, overridden by the first rule of `dynamic` that matches its name.

    A rule is a regular expression for the beginning of the name; it may begin with `+:`. Layers that `-:` excludes are
    not packed.
    """
    rules = quantization.fields.get("dynamic")
    for pattern, fields in (rules if isinstance(rules, dict) else {}).items():
        if isinstance(fields, dict) and matches("re:" + pattern.removeprefix("+:"), module):
            return replace(quantization, fields={**quantization.fields, **fields})
    return quantization


def _require_stated(layer: Packed, order: str, quantization: Quantization) -> None:
    """Raises DamagedFile if bits differ from the settings, or if a stated activation order is missing."""
    assert isinstance(layer.values, Stored)
    assert isinstance(layer.values.source, Gptq)
    bits, groups = layer.values.source.bits, layer.values.source.scales.shape[0]
    if bits != quantization.number("bits", bits):
        raise DamagedFile(
            f"{layer.name!r} is packed with {bits} bits, but quantization_config states {quantization.fields['bits']}; "
            "use the config.json that was published with the files."
        )
    if quantization.fields.get("desc_act") and groups > 1 and order not in layer.parts:
        raise DamagedFile(
            f"{layer.name!r} has {groups} groups of inputs in the order of activations, but no {order!r} that says "
            "which; download the checkpoint again."
        )


def _layer(name: str, tensors: Mapping[str, LazyTensor], less: int, group: int) -> Packed:
    keys = [name + part for part in ("qweight", "qzeros", "scales")]
    missing = next((key for key in keys if key not in tensors), None)
    if missing is not None:
        raise DamagedFile(f"{keys[0]!r} has no {missing!r} beside it; download the checkpoint again.")
    codes, zeros, scales = parts = [tensors[key] for key in keys]
    bits = zeros.shape[-1] * WORD / scales.shape[-1] if zeros.ndim == scales.ndim == codes.ndim == 2 else 0
    columns = int(codes.shape[0] * WORD / bits) if bits else 0
    order = tensors.get(name + "g_idx")
    fits = bits in BITS and codes.shape[1] == scales.shape[1] and zeros.shape[0] == scales.shape[0]
    if not fits or codes.kind != "int32" or zeros.kind != "int32" or (order and order.shape != (columns,)):
        raise DamagedFile(
            f"{keys[0]!r}, {keys[1]!r} and {keys[2]!r} have shapes {[tuple(part.shape) for part in parts]}, which no "
            f"layer of {', '.join(map(str, BITS))} bits has; download the checkpoint again."
        )
    groups = scales.shape[0]
    size = columns if group < 1 else group
    if -(-columns // size) != groups:
        raise DamagedFile(
            f"{keys[2]!r} has {groups} groups of {columns} inputs, but quantization_config states group_size={group}; "
            "use the config.json that was published with the files."
        )
    apart = None if order is None or _in_runs(order, size, groups, name) else order
    extra = [] if order is None else [name + "g_idx"]
    values = Stored(Gptq(parts, int(bits), less, columns, size, apart))
    return Packed(name + "weight", (*keys, *extra), values)


def _in_runs(order: LazyTensor, size: int, groups: int, name: str) -> bool:
    """Whether the inputs of each group are contiguous, and groups are in order."""
    stated = order.numbers()
    if stated.min() < 0 or stated.max() >= groups:
        raise DamagedFile(f"{name + 'g_idx'!r} names a group that {name + 'scales'!r} lacks; download it again.")
    return bool((stated == np.arange(len(stated)) // size).all())
