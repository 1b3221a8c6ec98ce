"""Routing by the norm of experts' outputs."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.intervene.choosing import OnTokens
from moe_probe.routing import Call, Request


@dataclass(frozen=True, repr=False)
class RouteByNorm(OnTokens):
    """Chooses the experts with the largest L2 norm of their unweighted output for each token.

    The family's own rule weights the chosen experts. All experts of the layer run.

    Args:
        layer: index of the MoE layer.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> RouteByNorm(layer=0)
        RouteByNorm(layer=0)
    """

    decides = True
    apart = True

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset({"the choice"})

    def decide(self, call: Call, request: Request) -> None:
        request.rank(call.output_norms(), call.rows_of(self))
