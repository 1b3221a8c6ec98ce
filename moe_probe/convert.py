"""Any checkpoint that moe_probe opens, written as a safetensors folder that transformers' classes load as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file

from moe_probe.checkpoint import LazyTensor
from moe_probe.checkpoint.encodings.grouped_int8 import SCALES_SUFFIX, grouped_int8
from moe_probe.errors import InputError
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import meta_module
from moe_probe.model import MoEModel, Source, load

SHARD_BYTES = 5 * 10**9


def convert(
    source: Source,
    destination: str | Path,
    *,
    dtype: torch.dtype | None = None,
    keep_int8: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model's parameters under the names of its torch module, experts fused, shard by shard.

    The folder opens with `moe_probe.load`, and with transformers once moe_probe is imported; it gives the same numbers.
    At most one shard is held in memory. An interrupted conversion leaves nothing behind.

    Args:
        source: whatever `moe_probe.load` accepts.
        destination: a folder that does not exist yet.
        dtype: of the floating-point tensors; as stored by default (the product of int8 and scales is bfloat16).
        keep_int8: leave int8 matrices and their scales as they are, as `X` and `X_scales`, under the published keys:
            half the size, and only moe_probe reads it.
        shard_bytes: size of a shard; a single tensor may be larger.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, the model is live, or it has no int8 to keep.
        WeightError: a tensor is missing or has another shape than the configuration calls for.

    Examples:
        >>> convert("ckpt/tiny-mixtral", "/tmp/tiny-mixtral-fused").name  # doctest: +SKIP
        'tiny-mixtral-fused'
    """
    model, folder = load(source), Path(destination)
    if model.checkpoint is None:
        raise InputError("A live model has no files to convert; use its save_pretrained.")
    if folder.exists():
        raise InputError(f"{folder} exists already; give a folder that does not.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tensors = Converted(meta_module(model.config), model.published)
        tensors.check()
        _write(model, partial, _quantized(model) if keep_int8 else tensors, dtype, shard_bytes)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _quantized(model: MoEModel) -> dict[str, LazyTensor]:
    """The published tensors, int8 matrices apart from their scales."""
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in model.published.items():
        pair = grouped_int8(tensor)
        tensors |= {key: tensor} if pair is None else {key: pair[0], key + SCALES_SUFFIX: pair[1]}
    if len(tensors) == len(model.published):
        raise InputError(f"{model.name} stores no int8 matrices that could be kept; convert it without keep_int8.")
    return tensors


def _write(
    model: MoEModel, folder: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, shard_bytes: int
) -> None:
    shards = list(_shards(tensors, dtype, shard_bytes))
    weight_map, total = {}, 0
    progress = track(shards, f"Converting {model.name}", console=Console(stderr=True), transient=True)
    for number, names in enumerate(progress, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        values = {name: _read(tensors[name], dtype) for name in names}
        save_file(values, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(value.nbytes for value in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dtype or _main_dtype(model.published)
    config.save_pretrained(folder)
    with suppress(InputError):  # a checkpoint without tokenizer stays one
        model.tokenizer.save_pretrained(folder)


def _shards(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in tensors:
        more = tensors[name].numel() * _target(tensors[name], dtype).itemsize
        if names and size + more > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def _target(tensor: LazyTensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _read(tensor: LazyTensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.copy_to(torch.empty(tensor.shape, dtype=_target(tensor, dtype)))


def _main_dtype(tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """The dtype of the largest tensor."""
    return max(tensors.values(), key=lambda tensor: tensor.numel()).dtype
