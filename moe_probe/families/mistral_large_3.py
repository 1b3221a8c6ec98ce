"""Mistral Large 3 in Mistral's own format, static analyses only: names as in vLLM's `mistral_large_3.py`."""

from moe_probe.families.declared import Declared, named

_LAYER = "layers.{layer}"

FAMILY = Declared(
    name="mistral_large_3",
    model_types=("mistral_large_3",),
    router=f"{_LAYER}.gate.weight",
    experts=named(f"{_LAYER}.experts.{{expert}}", "w3 w1 w2"),
    shared=named(f"{_LAYER}.shared_experts", "w3 w1 w2"),
    dense=named(f"{_LAYER}.feed_forward", "w3 w1 w2"),
    because="its attention scales with the position, which no class of transformers does for these weights",
)
