"""Opens a folder with a LoRA or DoRA adapter of PEFT together with its base model; weights are read in slices.

LoRA is W + scale B A (arXiv 2106.09685). DoRA also rescales each row of this sum to a learned length
(arXiv 2402.09353).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.folder import inside, present, read_json
from moe_probe.checkpoint.formats.safetensors import SafetensorsFile
from moe_probe.checkpoint.formats.torch import TorchFile
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored, Typed
from moe_probe.checkpoint.slices import as_slice
from moe_probe.checkpoint.store import Checkpoint
from moe_probe.errors import CheckpointError, DamagedFile, MissingFiles

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

CONFIG = "adapter_config.json"
WEIGHTS = {"adapter_model.safetensors": SafetensorsFile, "adapter_model.bin": TorchFile}
PREFIX = "base_model.model."
MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# config fields of other adapters and of LoRA variants, whose arithmetic differs
VARIANTS = (
    "fan_in_fan_out",
    "target_parameters",
    "trainable_token_indices",
    "eva_config",
    "corda_config",
    "arrow_config",
    "alora_invocation_tokens",
    "use_qalora",
    "layer_replication",
)


class LowRank(Typed):
    """The source of W (out, in) + scale B (out, r) A (r, in), computed in float32 and rounded to the dtype of W."""

    def __init__(self, weight: LazyTensor, down: LazyTensor, up: LazyTensor, scale: float):
        self.weight, self.down, self.up, self.scale = weight, down, up, scale
        self.parts = (weight, down, up)
        self.shape, self.kind = weight.shape, weight.kind
        self.form = f"{weight.kind} with LoRA of rank {down.shape[0]}"

    def read(self, index: Index) -> torch.Tensor:
        rows, columns = (as_slice(part) for part in index)
        values = self._values(rows, columns).to(self.dtype)
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]

    def _values(self, rows: slice, columns: slice) -> torch.Tensor:
        product = self.up[rows].read().to(torch.float32) @ self.down[:, columns].read().to(torch.float32)
        return self.weight[rows, columns].read().to(torch.float32) + self.scale * product


class Directed(LowRank):
    """The source of m (V / |V|): each row of V = W + scale B A is rescaled to its length in m. Reads whole rows."""

    def __init__(self, weight: LazyTensor, down: LazyTensor, up: LazyTensor, scale: float, magnitude: LazyTensor):
        super().__init__(weight, down, up, scale)
        self.magnitude, self.parts = magnitude, (weight, down, up, magnitude)
        self.form = self.form.replace("LoRA", "DoRA")

    def _values(self, rows: slice, columns: slice) -> torch.Tensor:
        whole = super()._values(rows, slice(0, self.shape[1]))
        factors = self.magnitude[rows].read().to(torch.float32) / torch.linalg.norm(whole, dim=1)
        return whole[:, columns] * factors[:, None]


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder that holds an adapter and no complete model."""
    return path.is_dir() and present(path, CONFIG) and not present(path, "config.json")


def base_of(folder: Path) -> str:
    """Returns the folder or hub id of an adapter's base model.

    Raises:
        DamagedFile: the adapter's configuration names no base model.
    """
    named = read_json(inside(folder, CONFIG)).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise DamagedFile(
            f"{folder / CONFIG} names no base_model_name_or_path; add the folder or hub id of its base model."
        )
    beside = folder / named
    return str(beside) if not Path(named).is_absolute() and beside.is_dir() else named


def with_adapter(base: Checkpoint, folder: Path) -> Checkpoint:
    """Returns the base with the adapter's changes, under the base's keys; computes nothing until a slice is read.

    Raises:
        MissingFiles: the adapter's weights are missing.
        CheckpointError: the adapter is of an unsupported kind, or changes a tensor that the base lacks.
    """
    config = read_json(inside(folder, CONFIG))
    _require_plain(folder, config)
    name = next((name for name in WEIGHTS if present(folder, name)), None)
    if name is None:
        raise MissingFiles(f"{folder} has {CONFIG}, but no {' or '.join(WEIGHTS)}; download it too.")
    path = inside(folder, name)
    stored = WEIGHTS[name](path).tensors()
    tensors = {**base, **dict(_changed(base, stored, config, path))}
    together = Checkpoint(folder, base.config, tensors, [*base.files, path], base.given)
    together.stored = {**base.stored, **{f"adapter {key}": tensor for key, tensor in stored.items()}}
    return together


def _require_plain(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    variant = next((name for name in VARIANTS if config.get(name)), None)
    if kind != "LORA" or variant is not None:
        what = f"of the type {kind!r}" if kind != "LORA" else f"with {variant}={config.get(str(variant))!r}"
        raise CheckpointError(
            f"{folder} holds an adapter {what}, and plain LoRA and DoRA can be read; merge it into its base with PEFT "
            "(merge_and_unload) and save the model, or pass the live model."
        )


def _changed(
    base: Mapping[str, LazyTensor], stored: Mapping[str, LazyTensor], config: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the keys of the base that the adapter changes, each with its new tensor."""
    lengths = {match[1]: tensor for key, tensor in stored.items() if (match := MAGNITUDE.fullmatch(key))}
    if bool(lengths) is not bool(config.get("use_dora")):
        raise DamagedFile(
            f"{path.parent / CONFIG} has use_dora={config.get('use_dora')!r}, but {path} holds {len(lengths)} "
            "magnitudes; save the adapter again."
        )
    for key, tensor in stored.items():
        if MAGNITUDE.fullmatch(key):
            continue
        match = FACTOR.fullmatch(key)
        target = f"{match[1]}.weight" if match else re.sub(r"\.(modules_to_save|original_module)(\.default)?", "", key)
        target = target.removeprefix(PREFIX)
        if target not in base:
            raise CheckpointError(
                f"{path} changes {target!r} ({key!r}), which the base model does not have; merge the adapter with PEFT "
                "and save the model, or pass the live model."
            )
        if match is None:
            _require_shape(path, key, tensor, base[target].shape)
            yield target, tensor
        elif match[2] == "A":
            low_rank = _sum(base[target], key, stored, str(match[1]).removeprefix(PREFIX), config, path)
            yield target, Stored(low_rank if not lengths else _directed(low_rank, lengths.get(match[1]), key, path))


def _require_shape(path: Path, key: str, tensor: LazyTensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise DamagedFile(f"{path} holds {key!r} of shape {tuple(tensor.shape)}, but the base has {tuple(shape)}.")


def _sum(
    weight: LazyTensor, key: str, stored: Mapping[str, LazyTensor], module: str, config: Mapping[str, Any], path: Path
) -> LowRank:
    down, up = stored[key], stored.get(key.replace(".lora_A", ".lora_B"))
    if up is None or weight.ndim != 2 or down.ndim != 2:
        raise DamagedFile(
            f"{path} holds {key!r}, which has no lora_B, or belongs to no matrix; save the adapter again."
        )
    rank = down.shape[0]
    _require_shape(path, key, down, (rank, weight.shape[1]))
    _require_shape(path, key.replace(".lora_A", ".lora_B"), up, (weight.shape[0], rank))
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise DamagedFile(
            f"{path.parent / CONFIG} has lora_alpha={alpha!r}, expected a number; save the adapter again."
        )
    return LowRank(weight, down, up, alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _directed(low_rank: LowRank, magnitude: LazyTensor | None, key: str, path: Path) -> Directed:
    rows = low_rank.shape[0]
    if magnitude is None or magnitude.numel() != rows:
        there = "none" if magnitude is None else f"{magnitude.numel()}"
        raise DamagedFile(f"{path} holds {key!r} with {there} of {rows} magnitudes; save the adapter again.")
    magnitude = magnitude if magnitude.ndim == 1 else magnitude.reshape(rows)
    return Directed(low_rank.weight, low_rank.down, low_rank.up, low_rank.scale, magnitude)


def _of_module(pattern: Any, module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a module's name, or the default."""
    matching = (value for name, value in (pattern or {}).items() if re.match(rf"(.*\.)?({name})$", module))
    return next(matching, default)
