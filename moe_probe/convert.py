"""Any checkpoint that moe_probe opens, written as a safetensors folder that transformers' classes load as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import InputError
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import meta_module
from moe_probe.model import MoEModel, Source, load

SHARD_BYTES = 5 * 10**9


def convert(
    source: Source, destination: str | Path, *, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write a model's parameters under the names of its torch module, experts fused, shard by shard.

    The folder opens with `moe_probe.load`, and with transformers once moe_probe is imported; it gives the same numbers.
    At most one shard is held in memory. An interrupted conversion leaves nothing behind.

    Args:
        source: whatever `moe_probe.load` accepts.
        destination: a folder that does not exist yet.
        dtype: of the floating-point tensors; as stored by default (int8 of Grok-1 becomes bfloat16).
        shard_bytes: size of a shard; a single tensor may be larger.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, or the model is live.
        WeightError: a tensor is missing or has another shape than the configuration calls for.

    Example:
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
        _write(model, partial, dtype, shard_bytes)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(model: MoEModel, folder: Path, dtype: torch.dtype | None, shard_bytes: int) -> None:
    tensors = Converted(meta_module(model.config), model.published)
    tensors.check()
    shards = list(_shards(tensors, dtype, shard_bytes))
    weight_map, total = {}, 0
    for number, names in enumerate(track(shards, f"Converting {model.name}", transient=True), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        values = {name: _read(tensors[name], dtype) for name in names}
        save_file(values, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(value.nbytes for value in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dtype or _main_dtype(tensors)
    config.save_pretrained(folder)
    with suppress(InputError):  # a checkpoint without tokenizer stays one
        model.tokenizer.save_pretrained(folder)


def _shards(tensors: Converted, dtype: torch.dtype | None, shard_bytes: int) -> Iterator[list[str]]:
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


def _main_dtype(tensors: Converted) -> torch.dtype:
    """The dtype of the largest parameter."""
    return max(tensors.values(), key=lambda tensor: tensor.numel()).dtype
