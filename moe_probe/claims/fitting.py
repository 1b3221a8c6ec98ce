"""What models a claim applies to."""

from __future__ import annotations

from moe_probe.errors import NotFitting
from moe_probe.model import MoEModel


def require_free_experts(model: MoEModel) -> None:
    """Raises: NotFitting: all experts are FFN experts, so that every token uses k of them."""
    if not any(set(model.layer(index).expert_kinds) - {"ffn"} for index in model.moe_layers):
        raise NotFitting(
            f"{model.name} has FFN experts only; the claim is about models with zero-computation experts, as in MoE++."
        )
