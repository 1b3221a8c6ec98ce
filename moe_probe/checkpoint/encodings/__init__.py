"""Encodings of stored tensors, one file each: decoded on read, a slice at a time.

A checkpoint with encoded tensors appears as if it held the plain ones. Each file has an `ENCODING`; other packages add
theirs through the entry points `moe_probe.encodings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import CheckpointError
from moe_probe.registry import Registry

# endings of keys that only packed layers have, beside a weight or in place of it
PACKED = re.compile(
    r"(\.|_)(qweight|qzeros|g_idx|weight_packed|weight_shape|weight_zero_point|weight_global_scale|weight_scale(_inv|_2)?|"
    r"absmax|quant_map|quant_state\.\S+|SCB|W_q|qscale_weight|scale_inv|scales?_and_zeros?)$"
)
MATRICES = {"int8", "uint8", "int32", "uint32", "int16", "uint16"}  # dtypes of packed codes
FLOAT8 = {"float8_e4m3fn", "float8_e5m2"}


@dataclass(frozen=True)
class Packed:
    """One matrix that is stored in encoded form.

    Attributes:
        name: key that the plain matrix would have.
        parts: keys of the stored tensors that encode it, or that belong to it (scales of activations).
        values: the decoded matrix, unread.
    """

    name: str
    parts: tuple[str, ...]
    values: LazyTensor


class Encoding(Protocol):
    """One way of storing matrices in fewer bytes.

    Attributes:
        methods: values of `quant_method` in config.json that this encoding reads.
        title: name in error messages and in the documentation.

    An optional attribute `source` states where the layout is described; the documentation quotes it.
    """

    @property
    def methods(self) -> tuple[str, ...]: ...

    @property
    def title(self) -> str: ...

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the matrices among `tensors` that are stored in this encoding.

        Args:
            tensors: every tensor of the checkpoint, as stored.
            quantization: the quantization settings of the configuration.
        """
        ...


ENCODINGS: Registry[Encoding] = Registry(__name__, "encodings", "encoding", lambda module, _: module.ENCODING)


def decoded(tensors: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Returns `tensors` with every encoded matrix replaced by a lazy tensor of its decoded values.

    Raises:
        DamagedFile: scales are missing or do not fit, or the quantization settings are invalid.
        CheckpointError: the quantization of the checkpoint is not supported.
    """
    quantization = Quantization.of(config)
    _require_known(quantization.method)
    plain = dict(tensors)
    for encoding in ENCODINGS.values():
        if quantization.method in (None, *encoding.methods) or not encoding.methods:
            plain = _replaced(plain, list(encoding.packed(plain, quantization)))
    require_decoded(plain)
    return plain


def _replaced(tensors: Mapping[str, LazyTensor], layers: list[Packed]) -> dict[str, LazyTensor]:
    """Returns the tensors, with each matrix at the position of the first tensor that encodes it."""
    gone = {key for each in layers for key in each.parts}
    places = {each.parts[0]: each for each in layers}
    plain: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        if key in places:
            plain[places[key].name] = places[key].values
        elif key not in gone:
            plain[key] = tensor
    return plain


def _require_known(method: str | None) -> None:
    known = {name for encoding in ENCODINGS.values() for name in encoding.methods}
    if method is not None and method not in known:
        titles = ", ".join(encoding.title for encoding in ENCODINGS.values() if encoding.methods)
        raise CheckpointError(
            f"The checkpoint is quantized with {method!r}; {titles} can be read. Use the unquantized release, or "
            "dequantize it with transformers and save it."
        )


def require_decoded(tensors: Mapping[str, LazyTensor]) -> None:
    """Checks that no tensor holds codes that no encoding explains, because results from them would be wrong.

    Raises:
        CheckpointError: codes remain; the message names the first such tensor.
    """
    for key, tensor in tensors.items():
        codes = tensor.kind in FLOAT8 or (tensor.ndim > 1 and tensor.kind in MATRICES and key.endswith("weight"))
        if codes or PACKED.search(key):
            raise CheckpointError(
                f"{key!r} ({tensor.kind}, {tuple(tensor.shape)}) is part of a packed matrix, but the configuration "
                "does not say how it is packed, or says something else; use the published config.json, with its "
                "quantization_config, or pass that: config={'quantization_config': {...}}."
            )
