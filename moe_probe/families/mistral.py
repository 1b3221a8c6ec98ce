"""Mistral (arXiv 2310.06825): the dense model that the Mixtral analyses compare with, label "F"."""

from collections.abc import Mapping
from typing import Any

from moe_probe.families.architecture import Layer
from moe_probe.families.described import Described
from moe_probe.families.sizes import positive


def _layer(config: Mapping[str, Any], index: int) -> Layer:
    return Layer(
        index=index,
        hidden_size=positive(config, "hidden_size"),
        intermediate_size=positive(config, "intermediate_size"),
    )


FAMILY = Described(
    name="mistral",
    model_types=("mistral",),
    make_layer=_layer,
    dense={name: f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("up", "gate", "down")},
)
