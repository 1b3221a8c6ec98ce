"""How many parameters a model has, by its tensors' shapes."""

from __future__ import annotations

from moe_probe.checkpoint import LazyTensor
from moe_probe.model import MoEModel


def parameters(model: MoEModel) -> list[LazyTensor]:
    """The tensors that are parameters: a head that is tied to the embeddings counts once, buffers do not."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    not_counted = ("inv_freq", "lm_head.weight") if tied else ("inv_freq",)
    return [tensor for key, tensor in model.published.items() if not key.endswith(not_counted)]


def parameter_counts(model: MoEModel) -> tuple[int, int]:
    """Parameters inside the routed experts' matrices, and all others (MH-MoE, arXiv 2404.15045, table 11)."""
    if model.checkpoint is None:
        total = sum(parameter.numel() for parameter in model.module.parameters())
    else:
        total = sum(tensor.numel() for tensor in parameters(model))
    layers = map(model.layer, model.moe_layers)
    inside = sum(
        len(layer.weighted_experts) * len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
        for layer in layers
    )
    return inside, total - inside
