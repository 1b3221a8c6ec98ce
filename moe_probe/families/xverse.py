"""xverse/XVERSE-MoE, static analyses only."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="xverse",
    model_types=("xverse",),
    router=f"{_BLOCK}.router.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}"),
    shared=named(f"{_BLOCK}.shared_experts"),
)
