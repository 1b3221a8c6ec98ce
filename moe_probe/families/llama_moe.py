"""LLaMA-MoE, static analyses only. Its gate is a small network; the router's weight is its last matrix, (E, E)."""

from moe_probe.families.declared import Declared

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="llama_moe",
    model_types=("llama_moe",),
    router=f"{_BLOCK}.gate.gate_network.2.weight",
    experts={
        projection: f"{_BLOCK}.calculator.experts.weight_{projection}.{{expert}}"
        for projection in ("up", "gate", "down")
    },
    top_k="num_selects",
)
