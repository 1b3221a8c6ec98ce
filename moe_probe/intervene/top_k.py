"""Change of the number of experts per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from moe_probe.intervene.choosing import OnTokens
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Request
from moe_probe.signatures import check_number


@dataclass(frozen=True, repr=False)
class TopK(OnTokens):
    """Chooses `k` experts instead of the configured number; the family's own rule weights them.

    With `where`, tokens that choose fewer experts than others repeat their first choice, with weight 0, in the rest of
    the top-k list.

    Args:
        layer: index of the MoE layer.
        k: number of experts per token (per sub-token in MH-MoE).
        where: only in these tokens (`Where`); in all by default.

    Raises:
        OutOfRange: k is 0, or more than there are experts.

    Examples:
        >>> TopK(layer=0, k=1)
        TopK(layer=0, k=1)
    """

    k: int

    decides = True
    apart = True

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, k=1)

    def number(self) -> int | None:
        return self.k

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset({"the number of experts"})

    def check(self, model: MoEModel) -> None:
        check_number("layer", self.layer, 0)
        (chosen,) = model.select_layers(self.layer)
        check_number("k", self.k, 1, model.layer(chosen).num_experts)
        super().check(model)

    def decide(self, call: Call, request: Request) -> None:
        request.set_top_k(self.k, call.rows_of(self))
