"""What a model is made of, in words and numbers: its parameters, and the lines that describe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_probe.checkpoint import LazyTensor
from moe_probe.checkpoint.quantized import grouped_int8


def parameters(model: Any) -> list[LazyTensor]:
    """The tensors that are parameters: a head that is tied to the embeddings counts once, buffers do not."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    not_counted = ("inv_freq", "lm_head.weight") if tied else ("inv_freq",)
    return [tensor for key, tensor in model.published.items() if not key.endswith(not_counted)]


def total_parameters(model: Any) -> int:
    """All parameters of a checkpoint or of a live model."""
    if model.checkpoint is None:
        return sum(parameter.numel() for parameter in model.module.parameters())
    return sum(tensor.numel() for tensor in parameters(model))


def parameter_counts(model: Any) -> tuple[int, int]:
    """Parameters inside the routed experts' matrices, and all others (MH-MoE, arXiv 2404.15045, table 11)."""
    layers = map(model.layer, model.moe_layers)
    inside = sum(
        len(layer.weighted_experts) * len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
        for layer in layers
    )
    return inside, total_parameters(model) - inside


def facts(model: Any) -> list[tuple[str, str]]:
    """Family, layers, experts, parameters and size on disk of a model: (what, how much)."""
    lines = [("family", model.family), ("layers", f"{model.num_layers}, hidden size {model.hidden_size}")]
    total = total_parameters(model)
    active, at_most = total, ""
    if model.moe_layers:
        first = model.layer(model.moe_layers[0])
        lines.append(("MoE layers", f"{len(model.moe_layers)}: {ranges(model.moe_layers)}"))
        kinds = ", ".join(f"{first.expert_kinds.count(k)} {k}" for k in dict.fromkeys(first.expert_kinds))
        shared = f" + {first.num_shared} shared" if first.num_shared else ""
        lines.append(("experts", f"{kinds}{shared}; {first.intermediate_size} neurons each"))
        lines.append(("top-k", f"{first.top_k} per {'sub-token' if first.subtokens > 1 else 'token'}"))
        for layer in map(model.layer, model.moe_layers):
            expert = len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
            active -= expert * max(0, layer.expert_kinds.count("ffn") - layer.top_k)
        if len(first.weighted_experts) < first.num_experts:
            without = [k for k in dict.fromkeys(first.expert_kinds) if k != "ffn"]
            lines.append(("", f"{', '.join(without)} have no matrices: static analyses of experts leave them out"))
            at_most = "at most "
    lines.append(("parameters", f"{total:,} in all, {at_most}{active:,} active per token"))
    if model.checkpoint is not None:
        tensors = parameters(model)
        dtypes = {"int8 with scales" if grouped_int8(t) else str(t.dtype).removeprefix("torch.") for t in tensors}
        lines.append(("stored as", ", ".join(sorted(dtypes))))
        files = len(model.checkpoint.files)
        lines.append(("on disk", f"{model.checkpoint.nbytes / 1e9:.3g} GB in {files} files"))
    return lines


def ranges(numbers: Sequence[int]) -> str:
    """`(1, 2, 3, 7)` as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
