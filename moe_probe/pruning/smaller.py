"""Writes a smaller checkpoint in the published layout: the experts of a plan, the router's rows, the configuration."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.convert import shards_of, write_shard
from moe_probe.errors import MoEProbeError, NotComparable, NotFitting
from moe_probe.files import refuse_existing, whole_folder
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import SHARD_BYTES
from moe_probe.progress import reporting
from moe_probe.pruning.plans import Plan, groups_of, read_plan
from moe_probe.signatures import check_number, checked

LAYER = re.compile(r"\b(?:layers|blocks)\.(\d+)\.")
NUMBERED = re.compile(r"(?P<before>.*\bexperts\.)(?P<expert>\d+)(?P<after>\..+)")
ROUTED = re.compile(r"\.(gate|router|experts|e_score_correction_bias|expert_bias|moe_statics|block_sparse_moe)\b")
FLAT = re.compile(r"\.experts\.mlp\.\w+")  # experts one below the other (DBRX)
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHECKED_ROWS = 2
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


@checked
def prune(model: Openable, plan: Plan | str | Path, destination: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes the model without the experts that a plan removes, under its published names, shard by shard.

    The remaining experts get new numbers; router, correction bias and configuration change accordingly. Before the
    folder appears under its name, it is opened and its weights are compared with those of the model. Its logits are
    those of `model.under(*plan.masks())`.

    Args:
        model: a checkpoint folder, or a `MoEModel` of one, without interventions.
        plan: a plan, or its file.
        destination: a folder that does not exist yet.
        shard_bytes: largest size of a shard in bytes; a shard of a single tensor may be larger.

    Returns:
        The path of the folder.

    Raises:
        AlreadyThere: the folder exists.
        NotComparable: the plan is of layers or experts that the model does not have.
        NotFitting: layers would have different numbers of experts, or the checkpoint is packed, live, of a format
            without numbered or stacked experts, or has experts outside its MoE layers.

    Examples:
        >>> from moe_probe import pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", names="gate_norm")
        >>> plan = pruning.plan("ckpt/tiny-mixtral", scores, 0.25)
        >>> pruning.prune("ckpt/tiny-mixtral", plan, "/tmp/smaller").name  # doctest: +SKIP
        'smaller'
    """
    opened, folder = load(model), Path(destination)
    chosen = plan if isinstance(plan, Plan) else read_plan(plan)
    check_number("shard_bytes", shard_bytes, 1)
    checkpoint = checked_checkpoint(opened)
    count = checked_plan(opened, chosen)
    refuse_existing(folder)
    config = smaller_config(opened, checkpoint, count)
    tensors = dict(cut for key, tensor in checkpoint.items() if (cut := cut_tensor(opened, chosen, key, tensor)))
    with whole_folder(folder) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_beside(checkpoint, partial)
        write_tensors(partial, tensors, shard_bytes, opened.name)
        check_written(opened, chosen, partial)
    return folder


def checked_checkpoint(model: MoEModel) -> Checkpoint:
    """Returns the files of a model whose layout can be pruned."""
    checkpoint = model.checkpoint
    if checkpoint is None or model.interventions:
        raise NotFitting("A live model, or one under interventions, has no files of its own; pass the checkpoint.")
    packed = "quantization_config" in checkpoint.config or set(checkpoint.stored) != set(checkpoint)
    if packed or not all(file.suffix in (".safetensors", ".bin") for file in checkpoint.files):
        raise NotFitting(
            f"{model.name} is packed, or not a folder of safetensors; convert it first, and prune the result."
        )
    return checkpoint


def checked_plan(model: MoEModel, plan: Plan) -> int:
    """Returns the number of experts that stay in each layer."""
    counts = {layer: model.layer(layer).num_experts for layer in model.moe_layers}
    if dict(plan.experts) != counts or set(plan.kept) != set(counts):
        raise NotComparable(
            f"The plan is for {len(plan.kept)} layers of {plan.model} and does not fit the {len(counts)} MoE layers of "
            f"{model.name} with their experts; make one for all layers of this model."
        )
    without = next((layer for layer in counts if len(model.layer(layer).weighted_experts) < counts[layer]), None)
    if without is not None:
        raise NotFitting(
            f"Layer {without} of {model.name} has experts without matrices, which its configuration counts apart; run "
            "the model under plan.masks() instead."
        )
    left = {len(experts) for experts in plan.kept.values()}
    if len(left) > 1:
        raise NotFitting(
            f"The plan leaves {min(left)} to {max(left)} experts, but a published configuration has one number for all "
            "layers; make the plan per='layer', or run the model under plan.masks()."
        )
    (count,) = left
    groups = groups_of(model)
    for layer, experts in plan.kept.items():
        size = counts[layer] // groups
        if len({sum(expert // size == group for expert in experts) for group in range(groups)}) > 1:
            raise NotFitting(f"Layer {layer}: the router selects among {groups} groups, which the plan makes unequal.")
    most = max(model.layer(layer).top_k for layer in counts)
    if count < most:
        raise NotFitting(f"The plan leaves {count} experts, but a token chooses {most}; keep more.")
    return count


def smaller_config(model: MoEModel, checkpoint: Checkpoint, count: int) -> dict[str, Any]:
    """The published configuration with another number of experts."""
    config: dict[str, Any] = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    before = {model.layer(layer).num_experts for layer in model.moe_layers}
    holders = [config, *(value for value in config.values() if isinstance(value, dict))]
    changed = [(holder, name) for holder in holders for name in COUNTS if counts_all(holder.get(name), before)]
    if not changed:
        raise NotFitting(
            f"{model.name} does not state its number of experts in one field of config.json ({', '.join(COUNTS)})."
        )
    for holder, name in changed:
        holder[name] = count
    return config


def counts_all(value: object, experts: set[int]) -> bool:
    """Whether a field of a configuration is the number of experts of all layers."""
    return isinstance(value, int) and {value} == experts


def cut_tensor(model: MoEModel, plan: Plan, key: str, tensor: LazyTensor) -> tuple[str, LazyTensor] | None:
    """The tensor of the experts that stay, under its new key; None if its expert is removed."""
    of_layer, numbered = LAYER.search(key), NUMBERED.fullmatch(key)
    layer = int(of_layer[1]) if of_layer else -1
    if layer not in plan.kept:
        if numbered:
            raise NotFitting(f"{key} is an expert outside the MoE layers, which no plan covers; mask experts instead.")
        return key, tensor
    staying = plan.kept[layer]
    if numbered:
        expert = int(numbered["expert"])
        if expert not in staying:
            return None
        return f"{numbered['before']}{staying.index(expert)}{numbered['after']}", tensor
    if not ROUTED.search(key) or tensor.ndim == 0:
        return key, tensor
    if "int" in tensor.kind:
        raise NotFitting(
            f"{key} refers to experts by number, including removed ones; run {model.name} under plan.masks() instead."
        )
    experts = model.layer(layer).num_experts
    if tensor.shape[0] == experts or FLAT.search(key):
        return key, parts_of(tensor, staying, experts)
    return key, parts_of(tensor, staying, experts, 1) if tuple(tensor.shape) == (1, experts) else tensor


def parts_of(tensor: LazyTensor, staying: Sequence[int], experts: int, dim: int = 0) -> LazyTensor:
    """The parts of a tensor that belong to some experts, which are stacked along an axis; not read yet."""
    lazy: Any = tensor
    size = tensor.shape[dim] // experts
    return torch.cat([lazy.narrow(dim, expert * size, size) for expert in staying], dim)  # pyright: ignore[reportReturnType]


def copy_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies the files next to the weights, such as those of the tokenizer."""
    for file in checkpoint.path.iterdir():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, folder / file.name)


def write_tensors(folder: Path, tensors: dict[str, LazyTensor], shard_bytes: int, name: str) -> None:
    """Writes the tensors, one in memory at a time, with their index."""
    shards, weight_map, total = list(shards_of(tensors, None, shard_bytes)), {}, 0
    with reporting(f"Pruning {name}", len(shards)) as advance:
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            total += write_shard(folder / file, {each: tensors[each] for each in names}, None)
            weight_map |= dict.fromkeys(names, file)
            advance()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def check_written(model: MoEModel, plan: Plan, folder: Path) -> None:
    """Raises an error if the written folder does not open, or lacks the weights that should stay.

    It compares the first rows of each expert's matrices.
    """
    try:
        smaller = load(folder)
        same = all(
            torch.equal(smaller.router_weight(layer), model.router_weight(layer)[list(kept)])
            and all(torch.equal(*pair) for pair in first_rows(model, smaller, layer, kept))
            for layer, kept in plan.kept.items()
        )
    except MoEProbeError as error:
        raise NotFitting(f"The layout of {model.name} cannot be pruned: {error}") from error
    if not same:
        raise NotFitting(f"The layout of {model.name} cannot be pruned; run it under plan.masks() instead.")


def first_rows(
    model: MoEModel, smaller: MoEModel, layer: int, kept: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The first rows of each expert's matrices, in the model and in the smaller one."""
    for number, expert in enumerate(kept):
        for projection in model.layer(layer).projections:
            before, after = (
                of.expert_tensor(layer, str(label), projection) for of, label in ((model, expert), (smaller, number))
            )
            yield before[:CHECKED_ROWS].read(), after[:CHECKED_ROWS].read()
