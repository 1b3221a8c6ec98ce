"""stepfun-ai/step3, the language model, static analyses only: experts stacked below `moe`."""

from moe_probe.families.declared import Declared, named

_LAYER = "model.layers.{layer}"

FAMILY = Declared(
    name="step3",
    model_types=("step3_text",),
    router=f"{_LAYER}.moe.gate.weight",
    experts=named(f"{_LAYER}.moe"),
    shared=named(f"{_LAYER}.share_expert"),
    dense=named(f"{_LAYER}.mlp"),
)
