"""bitsandbytes: NF4 and FP4 (`X.weight` and `X.weight.absmax`, ...), and 8-bit rows (`X.weight` and `X.SCB`).

Each 4-bit layer stores its own table and state, so files open without a configuration too. Its codes are bytes, or the
bytes of a wider dtype (`bnb_4bit_quant_storage`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import Bytes
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import Same, Scaled
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, itemsize_of
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import DamagedFile, reason

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

STATE = ".quant_state.bitsandbytes__"
DTYPES = ("bfloat16", "float16", "float32")
INT8_MAX = 127


class FourBits(PackedMatrix):
    """4-bit codes in row-major order, two per byte, the first one high; a table of 16 values; a factor per block.

    Values are `table[code] * absmax[block]` in float32, rounded to the dtype that the state names. If the factors
    are quantized too, they are `nested_table[byte] * nested_absmax[block of blocks] + offset`.
    """

    def __init__(self, parts: Mapping[str, LazyTensor], state: Mapping[str, Any]):
        self.tensors, self.blocksize, self.state = parts, int(state["blocksize"]), state
        self.codes = Stored(Bytes(parts["weight"][:, 0]))
        rows, columns = state["shape"]
        super().__init__(
            f"{state['quant_type'].upper()} in blocks of {self.blocksize} (bitsandbytes)", list(parts.values()),
            (rows, columns), state["dtype"],
        )  # fmt: skip
        # blocks continue across rows: a read decodes whole rows, or only the requested columns of each row
        self.unit = (1, columns if columns % 2 else 2)

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        width = self.shape[1]
        count = columns.stop - columns.start
        if count == width:
            return self._run(rows.start * width, rows.stop * width).view(-1, width)
        starts = range(rows.start * width + columns.start, rows.stop * width, width)
        return torch.stack([self._run(start, start + count) for start in starts])

    def _run(self, start: int, stop: int) -> torch.Tensor:
        """Returns the values at positions `start` to `stop` - 1 in row-major order."""
        bytes_ = covering(slice(start, stop), 2)
        packed = self.codes[bytes_].read()
        table = self.tensors["quant_map"].read().to(torch.float32)
        pairs = torch.stack([table[(packed >> 4).int()], table[(packed & 15).int()]], -1).flatten()
        pairs = pairs[start - 2 * bytes_.start :][: stop - start]
        blocks = covering(slice(start, stop), self.blocksize)
        factors = self._factors(blocks)
        lead = start - blocks.start * self.blocksize
        if lead == 0 and (stop - start) % self.blocksize == 0:
            return (pairs.view(-1, self.blocksize) * factors.unsqueeze(1)).flatten().to(self.dtype)
        return (pairs * factors.repeat_interleave(self.blocksize)[lead : lead + stop - start]).to(self.dtype)

    def _factors(self, blocks: slice) -> torch.Tensor:
        absmax = self.tensors["absmax"][blocks].read()
        if "nested_absmax" not in self.tensors:
            return absmax.to(torch.float32)
        size = int(self.state["nested_blocksize"])
        outer = covering(blocks, size)
        nested = self.tensors["nested_absmax"][outer].read().to(torch.float32).repeat_interleave(size)
        nested = nested[blocks.start - outer.start * size :][: len(absmax)]
        table = self.tensors["nested_quant_map"].read().to(torch.float32)
        return table[absmax.int()] * nested + float(self.state["nested_offset"])


@dataclass(frozen=True)
class BitsAndBytes:
    """The encoding: codes with tables, or with a scale per row, decoded to one matrix each."""

    methods: tuple[str, ...] = ("bitsandbytes",)
    title: str = "bitsandbytes"
    source: str = (
        "bitsandbytes 0.50, `functional.py`: `QuantState.as_dict`, `dequantize_4bit`, `int8_vectorwise_dequant`."
    )

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
        """
        for key in tensors:
            if STATE in key:
                yield _four_bits(key, tensors)
            elif key.endswith(".SCB"):
                yield _eight_bits(key.removesuffix("SCB"), tensors)


ENCODING = BitsAndBytes()


def _four_bits(key: str, tensors: Mapping[str, LazyTensor]) -> Packed:
    name = key.partition(STATE)[0]
    state = _state(key, tensors[key])
    roles = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if "nested_blocksize" in state else [])]
    keys = {"weight": name} | {role: f"{name}.{role}" for role in roles}
    missing = next((each for each in keys.values() if each not in tensors), None)
    if missing is not None:
        raise DamagedFile(f"{key!r} belongs to {missing!r}, which is missing; download the checkpoint again.")
    parts = {role: tensors[each] for role, each in keys.items()}
    values = Size(state["shape"]).numel()
    blocks = -(-values // int(state["blocksize"]))
    codes = parts["weight"]
    if codes.ndim != 2 or codes.shape[1] != 1 or _bytes(codes) != -(-values // 2) or parts["absmax"].numel() != blocks:
        raise DamagedFile(
            f"{name!r} is stated as {tuple(state['shape'])} in blocks of {state['blocksize']}, but holds {codes.kind} "
            f"of shape {tuple(codes.shape)} and {parts['absmax'].numel()} blocks; download the checkpoint again."
        )
    counts = {"quant_map": 16, "nested_quant_map": 256, "nested_absmax": -(-blocks // state.get("nested_blocksize", 1))}
    odd = next((role for role in counts if role in parts and parts[role].numel() != counts[role]), None)
    if odd is not None:
        raise DamagedFile(
            f"{keys[odd]!r} holds {parts[odd].numel()} numbers, expected {counts[odd]}; download the checkpoint again."
        )
    return Packed(name, (*keys.values(), key), Stored(FourBits(parts, state)))


def _bytes(codes: LazyTensor) -> int:
    return codes.numel() * itemsize_of(codes.kind)


def _state(key: str, tensor: LazyTensor) -> dict[str, Any]:
    """Returns the state of a 4-bit layer: the JSON object that a tensor of bytes holds.

    Raises:
        DamagedFile: the tensor holds something else.
    """
    try:
        state = json.loads(bytes(tensor.numbers().tolist()))
        rows, columns = (int(size) for size in state["shape"])
        sizes = int(state["blocksize"]), int(state.get("nested_blocksize", 1))
        fits = state["quant_type"] in ("nf4", "fp4") and state["dtype"] in DTYPES and min(sizes) > 0
        if not fits or rows < 1 or columns < 1:
            raise ValueError(f"{state['quant_type']} as {state['dtype']}")
        return state
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{key!r} is no state of a 4-bit layer ({reason(error)}); download the checkpoint again."
        ) from error


def _eight_bits(module: str, tensors: Mapping[str, LazyTensor]) -> Packed:
    name, scale = module + "weight", tensors[module + "SCB"]
    codes = tensors.get(name)
    if codes is None or codes.kind != "int8" or codes.ndim != 2 or scale.shape != codes.shape[:1]:
        raise DamagedFile(
            f"{module + 'SCB'!r} has no int8 matrix {name!r} that it fits; download the checkpoint again."
        )
    extra = [key for key in (module + "weight_format",) if key in tensors]
    if extra and int(tensors[extra[0]].numbers().flatten()[0]) != 0:
        raise DamagedFile(f"{extra[0]!r} says that {name!r} is stored in tiles, which is not read; save it row-major.")
    values = ByRow("int8 with row scales (bitsandbytes)", codes, Stored(Same(scale, (*scale.shape, 1))))
    return Packed(name, (name, module + "SCB", *extra), Stored(values))


class ByRow(Scaled):
    """int8 codes times the largest absolute value of the row / 127; float32, as in bitsandbytes."""

    def __init__(self, form: str, codes: LazyTensor, scale: LazyTensor):
        super().__init__(form, codes, scale, (1, codes.shape[1]), factor=1 / INT8_MAX)
        self.kind = "float32"
