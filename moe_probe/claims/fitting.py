"""Checks of whether a claim applies to a model."""

from __future__ import annotations

from moe_probe.errors import NotFitting
from moe_probe.model import MoEModel


def require_free_experts(model: MoEModel) -> None:
    """Raises `NotFitting` if all experts are FFN experts, so that every token uses k of them."""
    if not any(set(model.layer(index).expert_kinds) - {"ffn"} for index in model.moe_layers):
        raise NotFitting(
            f"{model.name} has only FFN experts; the claim is about models with zero-computation experts, as in MoE++."
        )
