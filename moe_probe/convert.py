"""Writes any checkpoint that moe_probe opens as a safetensors folder that transformers' classes load directly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import _TYPES
from transformers import PreTrainedTokenizerBase

from moe_probe.checkpoint import LazyTensor
from moe_probe.checkpoint.encodings.grouped_int8 import SCALES_SUFFIX, grouped_int8
from moe_probe.errors import NotFitting, NothingToRead
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import meta_module
from moe_probe.families.places import checked_dtype
from moe_probe.files import refuse_existing, whole_folder
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import SHARD_BYTES
from moe_probe.progress import reporting
from moe_probe.signatures import check_number, checked

TYPE_NAMES = {dtype: name for name, dtype in {**_TYPES, "F8_E8M0": torch.float8_e8m0fnu}.items()}


@checked
def convert(
    source: Openable,
    destination: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    keep_int8: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a model's parameters under the names of its torch module, experts fused, shard by shard.

    `moe_probe.load` opens the folder, and so does transformers once moe_probe is imported; results are the same.
    At most one tensor is in memory at a time. An interrupted conversion leaves nothing behind.

    Args:
        source: a checkpoint folder, a hub id, a live transformers model or a `MoEModel`.
        destination: a folder that does not exist yet.
        dtype: of the floating-point tensors; as stored by default (the product of int8 and scales is bfloat16).
        keep_int8: leave int8 matrices and their scales as they are, as `X` and `X_scales`, under the published keys:
            half the size, but only moe_probe can read it.
        shard_bytes: largest size of a shard in bytes; a shard of a single tensor may be larger.

    Returns:
        The path of the folder.

    Raises:
        AlreadyThere: the folder exists.
        NotFitting: the model is live, or has no int8 matrices to keep.
        OutOfRange: `shard_bytes` is below 1.
        MachineError: the disk is full or not writable.
        WeightError: a tensor is missing, or its shape differs from the configuration.

    Examples:
        >>> convert("ckpt/tiny-mixtral", "/tmp/tiny-mixtral-fused").name  # doctest: +SKIP
        'tiny-mixtral-fused'
    """
    model, folder = load(source), Path(destination)
    if model.checkpoint is None:
        raise NotFitting("A live model has no files to convert; use its save_pretrained.")
    check_number("shard_bytes", shard_bytes, 1)
    asked = checked_dtype(dtype)
    target = asked if isinstance(asked, torch.dtype) else None
    refuse_existing(folder)
    model.require_module()
    model.require_unchanged()
    tensors = Converted(meta_module(model.config), model.published)
    tensors.check()
    chosen = _quantized(model) if keep_int8 else tensors
    with whole_folder(folder) as partial:
        _write(model, partial, chosen, target, shard_bytes)
    return folder


def _quantized(model: MoEModel) -> dict[str, LazyTensor]:
    """The published tensors, with int8 matrices and their scales as separate tensors."""
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in model.published.items():
        pair = grouped_int8(tensor)
        tensors |= {key: tensor} if pair is None else {key: pair[0], key + SCALES_SUFFIX: pair[1]}
    if len(tensors) == len(model.published):
        raise NotFitting(f"{model.name} stores no int8 matrices; convert it without keep_int8.")
    return tensors


def _write(
    model: MoEModel, folder: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, shard_bytes: int
) -> None:
    shards = list(shards_of(tensors, dtype, shard_bytes))
    weight_map, total = {}, 0
    with reporting(f"Converting {model.name}", len(shards)) as advance:
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            total += write_shard(folder / file, {name: tensors[name] for name in names}, dtype)
            weight_map |= dict.fromkeys(names, file)
            advance()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = dtype or _main_dtype(model.published)
    config.save_pretrained(folder)
    with suppress(NothingToRead):  # a checkpoint without tokenizer stays one
        _save(model.tokenizer, folder)


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers' Rust code raises plain exceptions
        raise OSError(str(error)) from error


def write_shard(path: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None) -> int:
    """Writes a safetensors file, one tensor after the other; returns the total size of their values in bytes.

    The file is written, not memory-mapped: a full disk raises an error here, but would kill a process that maps it.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        target = _target(tensor, dtype)
        start, end = end, end + tensor.numel() * target.itemsize
        header[name] = {"dtype": TYPE_NAMES[target], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(_read(tensor, dtype).view(-1).view(torch.uint8).numpy().data)
    return end


def shards_of(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each file: at least one, and several only as long as they fit into `shard_bytes`."""
    names: list[str] = []
    size = 0
    for name in tensors:
        tensor_size = tensors[name].numel() * _target(tensors[name], dtype).itemsize
        if names and size + tensor_size > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_size
    yield names


def _target(tensor: LazyTensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _read(tensor: LazyTensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.copy_to(torch.empty(tensor.shape, dtype=_target(tensor, dtype)))


def _main_dtype(tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """Returns the dtype of the largest tensor."""
    return max(tensors.values(), key=lambda tensor: tensor.numel()).dtype
