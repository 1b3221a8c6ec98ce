"""Snowflake/snowflake-arctic, static analyses only; the parallel FFN `residual_mlp` is not a shared expert."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.block_sparse_moe"

FAMILY = Declared(
    name="arctic",
    model_types=("arctic",),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}", "w3 w1 w2"),
    dense=named(f"{_BLOCK}.mlp", "w3 w1 w2"),
)
