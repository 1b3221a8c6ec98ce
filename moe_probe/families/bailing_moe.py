"""Ling and Ring of inclusionAI (v1 and 2.0), static analyses only: names as in mlx-lm's `bailing_moe.py`."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="bailing_moe",
    model_types=("bailing_moe", "bailing_moe_v2", "bailing_moe_linear"),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}"),
    shared=named(f"{_BLOCK}.shared_experts"),
    dense=named(_BLOCK),
)
