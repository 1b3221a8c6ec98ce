"""Skywork/Skywork-MoE, static analyses only. If the gate has two matrices, the router's weight is the last, (E, 8 E).

Sources: the publisher's vLLM reads `mlp.moe.gate.wg` and stacks of all experts, gate rows before up rows; its MoE++ has
the same block with `mlp.moe.experts.experts`. Keys without `moe`, or with `mlp_experts`, also work.
"""

from dataclasses import replace
from itertools import product

from moe_probe.families.declared import At, Declared, named

_BLOCK = "model.layers.{layer}.mlp"
_STACK = f"{_BLOCK}.moe.w_up_proj_weight"
_EXPERTS = (
    named(f"{_BLOCK}.experts.mlp_experts.{{expert}}"),
    named(f"{_BLOCK}.moe.experts.experts.{{expert}}"),
    {"up": At(_STACK, part=(1, 2)), "gate": At(_STACK, part=(0, 2)), "down": f"{_BLOCK}.moe.w_down_proj_weight"},
)
_GATES = ("gate.wg.2.weight", "gate.wg.weight", "gate.weight", "moe.gate.wg.2.weight", "moe.gate.wg.weight")

_FIRST, *_OTHERS = (
    Declared(
        name="skywork",
        model_types=("skywork",),
        router=f"{_BLOCK}.{gate}",
        experts=experts,
        dense=named(_BLOCK),
        fields={"num_experts_per_tok": 2},  # fixed in the publisher's code
    )
    for experts, gate in product(_EXPERTS, _GATES)
)
FAMILY = replace(_FIRST, otherwise=tuple(_OTHERS))
