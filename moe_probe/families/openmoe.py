"""OrionZheng/openmoe, static analyses only: its model type is `llama`, and its experts are stored as (E, in, out)."""

from moe_probe.families.declared import At, Declared, named

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="openmoe",
    model_types=("llama", "openmoe"),
    router=f"{_BLOCK}.gate_weight",
    experts={
        "up": At(f"{_BLOCK}.experts.wi_up", transposed=True),
        "gate": At(f"{_BLOCK}.experts.wi_gate", transposed=True),
        "down": At(f"{_BLOCK}.experts.wo", transposed=True),
    },
    dense=named(_BLOCK),
)
