"""Noise in experts' outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from moe_probe.intervene.chance import check_seed, normal
from moe_probe.intervene.choosing import OnExperts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Changes
from moe_probe.signatures import check_number


@dataclass(frozen=True, repr=False)
class Noise(OnExperts):
    """Adds Gaussian noise to every channel of the unweighted output of the named experts.

    A token's noise depends only on the seed, the layer, the expert, its document's number and its position.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts whose outputs get noise.
        sd: standard deviation, in the units of the output.
        seed: of the noise.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Noise(layer=0, experts=[3], sd=0.1)
        Noise(layer=0, experts=(3,), sd=0.1)
    """

    sd: float
    seed: int = 0

    of_chosen = True

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1], sd=0.1)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_number("sd", self.sd, 0, 1e30, whole=False)
        check_seed(self.seed)

    def change(self, call: Call, changes: Changes) -> None:
        for expert in self.routed(call.layer):
            choices = changes.of_experts([expert], call.rows_of(self))
            if bool(choices.any()):
                values = float(self.sd) * normal(call, self.seed, call.rows.shape[-1], expert)
                changes.add(choices, values.to(call.rows)[choices.nonzero()[:, 0]])
