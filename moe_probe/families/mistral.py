"""Mistral (arXiv 2310.06825): the dense model that the Mixtral analyses compare with, label "F"."""

from moe_probe.families.architecture import Layer
from moe_probe.families.described import Described


def _layer(config: dict, index: int) -> Layer:
    return Layer(index=index, hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"])


FAMILY = Described(
    name="mistral",
    model_types=("mistral",),
    make_layer=_layer,
    dense={name: f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("up", "gate", "down")},
)
