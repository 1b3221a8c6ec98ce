"""Mixtral (arXiv 2401.04088): mistralai/Mixtral-8x7B, Mixtral-8x22B. Published w1, w3, w2 = gate, up, down."""

from collections.abc import Mapping
from typing import Any

from moe_probe.families.architecture import Layer
from moe_probe.families.described import Described
from moe_probe.families.sizes import positive

_BLOCK = "model.layers.{layer}.block_sparse_moe"


def _layer(config: Mapping[str, Any], index: int) -> Layer:
    experts = positive(config, "num_local_experts")
    return Layer(
        index=index,
        hidden_size=positive(config, "hidden_size"),
        intermediate_size=positive(config, "intermediate_size"),
        num_experts=experts,
        top_k=positive(config, "num_experts_per_tok"),
        expert_kinds=("ffn",) * experts,
    )


FAMILY = Described(
    name="mixtral",
    model_types=("mixtral",),
    make_layer=_layer,
    router=f"{_BLOCK}.gate.weight",
    experts={
        projection: f"{_BLOCK}.experts.{{expert}}.{name}.weight"
        for projection, name in {"up": "w3", "gate": "w1", "down": "w2"}.items()
    },
)
