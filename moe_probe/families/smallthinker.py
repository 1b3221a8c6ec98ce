"""PowerInfer/SmallThinker, static analyses only: a layer's router reads the input of its attention."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.block_sparse_moe"

FAMILY = Declared(
    name="smallthinker",
    model_types=("smallthinker",),
    router=f"{_BLOCK}.primary_router.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}", "up gate down"),
    top_k="moe_num_active_primary_experts",
)
