"""Skywork/Skywork-MoE, static analyses only."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="skywork",
    model_types=("skywork",),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.mlp_experts.{{expert}}"),
    dense=named(_BLOCK),
    fields={"num_experts_per_tok": 2},  # fixed in the publisher's code
)
