"""What interventions on chosen experts share: which experts, and that the model has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moe_probe.errors import OutOfRange
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention
from moe_probe.signatures import check_number


def check_experts(model: MoEModel, layer: int, experts: Sequence[int]) -> None:
    """Refuse a layer that does not route, and experts that it does not have.

    Raises:
        InputError: there is no such MoE layer.
        OutOfRange: it has no such expert.
    """
    check_number("layer", layer, 0)
    (chosen,) = model.select_layers(layer)
    count = model.layer(chosen).num_experts
    for expert in experts:
        check_number("expert", expert, 0)
        if expert >= count:
            raise OutOfRange(f"Layer {layer} of {model.name} has the experts 0 to {count - 1}, not {expert}.")
    if not len(experts):
        raise OutOfRange(f"experts is empty; pass some of the experts 0 to {count - 1} of layer {layer}.")


@dataclass(frozen=True)
class OnExperts(Intervention):
    """An intervention on some experts of one layer.

    Attributes:
        layer: index of the MoE layer.
        experts: which of its experts.
    """

    layer: int
    experts: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))

    def check(self, model: MoEModel) -> None:
        """Refuse a layer or an expert that there is not."""
        check_experts(model, self.layer, self.experts)


def among(index: torch.Tensor, experts: Sequence[int]) -> torch.Tensor:
    """Whether each choice is one of these experts."""
    return torch.isin(index, torch.tensor(list(experts), device=index.device))


def bias_of(count: int, experts: Sequence[int], value: float, like: torch.Tensor) -> torch.Tensor:
    """A bias (E,) of `value` for these experts and 0 for the others."""
    bias = torch.zeros(count, device=like.device)
    bias[list(experts)] = float(value)
    return bias
