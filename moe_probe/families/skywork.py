"""Skywork/Skywork-MoE, static analyses only. Of a gate of two matrices, the last one, (E, 8 E), is the router's weight.

Names of the gate are those of the publisher's vLLM; that its files call the gate `gate.weight` instead is allowed for.
"""

from dataclasses import replace

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.mlp"

_ONE_MATRIX = Declared(
    name="skywork",
    model_types=("skywork",),
    router=f"{_BLOCK}.gate.wg.weight",
    experts=named(f"{_BLOCK}.experts.mlp_experts.{{expert}}"),
    dense=named(_BLOCK),
    fields={"num_experts_per_tok": 2},  # fixed in the publisher's code
)
FAMILY = replace(
    _ONE_MATRIX,
    otherwise=(
        replace(_ONE_MATRIX, router=f"{_BLOCK}.gate.wg.2.weight"),
        replace(_ONE_MATRIX, router=f"{_BLOCK}.gate.weight"),
    ),
)
