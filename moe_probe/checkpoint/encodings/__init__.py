"""Encodings of stored tensors, one file each: decoded as they are read, a slice at a time.

A checkpoint with encoded tensors is shown as if it held the plain ones. Each file has an `ENCODING`; other packages add
theirs through the entry points `moe_probe.encodings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import CheckpointError, DamagedFile
from moe_probe.registry import Registry


class Encoding(Protocol):
    """One way of storing tensors in fewer bytes.

    Attributes:
        methods: values of `quant_method` in config.json that it reads.
        title: what errors call it.
    """

    @property
    def methods(self) -> tuple[str, ...]: ...

    @property
    def title(self) -> str: ...

    def decoded(self, tensors: Mapping[str, LazyTensor], quantization: Mapping[str, Any]) -> dict[str, LazyTensor]:
        """`tensors` with the encoded ones replaced by lazy plain ones, under the plain names.

        Args:
            tensors: every tensor of the checkpoint, as stored.
            quantization: the `quantization_config` of config.json; empty where there is none.
        """
        ...


ENCODINGS: Registry[Encoding] = Registry(__name__, "encodings", "encoding", lambda module, _: module.ENCODING)


def decoded(tensors: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """`tensors` with every encoded entry replaced by its lazy plain one.

    Raises:
        DamagedFile: scales are missing or do not fit, or the configuration is not one.
        CheckpointError: the checkpoint is quantized in a way that is not read.
    """
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise DamagedFile(
            f"quantization_config in config.json is {quantization!r}, expected an object; use the published file."
        )
    method = quantization.get("quant_method")
    if method is not None and not any(method in encoding.methods for encoding in ENCODINGS.values()):
        titles = ", ".join(encoding.title for encoding in ENCODINGS.values() if encoding.methods)
        raise CheckpointError(
            f"The checkpoint is quantized with {method!r}; {titles} can be read. Use the unquantized release, or "
            "dequantize it with transformers and save it."
        )
    plain = dict(tensors)
    for encoding in ENCODINGS.values():
        plain = encoding.decoded(plain, quantization)
    return plain
