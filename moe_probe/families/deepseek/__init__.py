"""DeepSeekMoE v1 (arXiv 2401.06066): deepseek-ai/deepseek-moe-16b-base, `model_type` "deepseek".

The shared experts are published as one FFN of `n_shared_experts * moe_intermediate_size` neurons. The first
`first_k_dense_replace` layers are dense.
"""

from moe_probe.families.architecture import Layer
from moe_probe.families.described import Described

_MLP = "model.layers.{layer}.mlp"
_MATRICES = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}


def _layer(config: dict, index: int) -> Layer:
    experts = config["n_routed_experts"]
    moe = bool(experts) and index >= config["first_k_dense_replace"] and index % config.get("moe_layer_freq", 1) == 0
    if not moe:
        return Layer(index=index, hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"])
    return Layer(
        index=index,
        hidden_size=config["hidden_size"],
        intermediate_size=config["moe_intermediate_size"],
        num_experts=experts,
        top_k=config["num_experts_per_tok"],
        expert_kinds=("ffn",) * experts,
        num_shared=config["n_shared_experts"] or 0,
    )


FAMILY = Described(
    name="deepseek",
    model_types=("deepseek",),
    make_layer=_layer,
    router=f"{_MLP}.gate.weight",
    experts={projection: f"{_MLP}.experts.{{expert}}.{name}.weight" for projection, name in _MATRICES.items()},
    shared={projection: f"{_MLP}.shared_experts.{name}.weight" for projection, name in _MATRICES.items()},
    dense={projection: f"{_MLP}.{name}.weight" for projection, name in _MATRICES.items()},
)
