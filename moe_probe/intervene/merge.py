"""Experts whose weights are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from moe_probe.errors import NotFitting
from moe_probe.families.experts_layout import FlatExperts, FusedExperts
from moe_probe.intervene.choosing import OnTokens, check_experts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Changes
from moe_probe.static.alignment import align

Parameters = Mapping[str, torch.Tensor]


@dataclass(frozen=True, repr=False)
class Merge(OnTokens):
    """Runs the experts of each group with the average of their weights; the router stays as it is.

    Args:
        layer: index of the MoE layer.
        groups: groups of experts to merge, two or more experts per group.
        aligned: before averaging, put the neurons of each expert into the order that matches those of the group's first
            one (assignment by cosine of their up, gate and down weights together, as in `static.similarity`).
        shares: weight of each expert in its group's average, such as its number of choices; equal by default.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Merge(layer=0, groups=[[0, 1], [2, 3]])
        Merge(layer=0, groups=((0, 1), (2, 3)))
    """

    groups: Sequence[Sequence[int]]
    aligned: bool = False
    shares: Sequence[Sequence[float]] | None = None

    apart = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "groups", tuple(map(tuple, self.groups)))
        if self.shares is not None:
            object.__setattr__(self, "shares", tuple(map(tuple, self.shares)))

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, groups=[[0, 1]])

    @property
    def merged(self) -> list[int]:
        """All experts that are merged."""
        return [expert for group in self.groups for expert in group]

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset(f"the output of expert {each}" for each in self.merged)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_experts(model, self.layer, tuple(self.merged), kind="Merge")
        kinds = model.layer(self.layer).expert_kinds
        if any(len(group) < 2 for group in self.groups) or len(set(self.merged)) < len(self.merged):
            raise NotFitting(
                "groups needs two or more experts per group, and none twice; pass groups=[[0, 1], [2, 3]], for example."
            )
        self._check_shares()
        other = next((each for each in self.merged if kinds[each] != "ffn"), None)
        if other is not None:
            raise NotFitting(
                f"Expert {other} of layer {self.layer} is a {kinds[other]} expert and has no FFN to merge."
            )

    def _check_shares(self) -> None:
        for group, shares in zip(self.groups, self.shares or self.groups, strict=False):
            if len(shares) != len(group) or (self.shares and not (min(shares) >= 0 < sum(shares) < float("inf"))):
                raise NotFitting(
                    f"Merge has shares {list(shares)} of the experts {list(group)}; pass one of at least 0 for each."
                )
        if len(self.shares or self.groups) != len(self.groups):
            raise NotFitting(
                f"Merge has shares of {len(self.shares or ())} groups; pass them of all {len(self.groups)}."
            )

    def change(self, call: Call, changes: Changes) -> None:
        choices = changes.of_experts(self.merged, call.rows_of(self))
        rows = call.rows[choices.nonzero()[:, 0]]
        if len(rows):
            changes.replace(choices, call.run_experts(rows, call.index[choices], self._parameters(call)))

    def _parameters(self, call: Call) -> Parameters:
        if self not in call.memory:
            call.memory[self] = averaged(call.expert_parameters(), call.layout, self.groups, self.aligned, self.shares)
        return call.memory[self]


def averaged(
    parameters: Parameters,
    layout: Any,
    groups: Sequence[Sequence[int]],
    aligned: bool,
    shares: Sequence[Sequence[float]] | None = None,
) -> Parameters:
    """Parameters of an experts module in which the experts of each group have the group's average weights."""
    merged = {name: value.detach().clone() for name, value in parameters.items()}
    for group, counts in zip(groups, shares or [[1.0] * len(group) for group in groups], strict=True):
        parts = [count / sum(counts) for count in counts]
        matrices = [dict(expert_matrices(parameters, layout, expert)) for expert in group]
        orders = [_order(matrices[0], each) if aligned else None for each in matrices]
        mean = {
            name: sum(
                part * _ordered(name, each[name], order)
                for part, each, order in zip(parts, matrices, orders, strict=True)
            )
            for name in matrices[0]
        }
        for expert in group:
            for name, place in expert_matrices(merged, layout, expert):
                place.copy_(mean[name])
    return merged


def expert_matrices(
    parameters: Parameters, layout: FusedExperts | FlatExperts, expert: int
) -> Iterator[tuple[str, Any]]:
    """Views of an expert's projections, up and gate (ff, d), down (d, ff), and of its biases as columns."""
    tensors: Any = {f"experts.{name}": value for name, value in parameters.items()}
    for name in layout.projections:
        yield name, layout.matrix(tensors, "", expert, name)
    if isinstance(layout, FusedExperts):
        biased = {name: value[..., None] for name, value in parameters.items() if name.endswith("_bias")}
        columns: Any = {f"experts.{name.removesuffix('_bias')}": value for name, value in biased.items()}
        upright = replace(layout, transposed=False)
        for name in layout.projections if biased else ():
            yield f"{name} bias", upright.matrix(columns, "", expert, name)


def _neurons(matrices: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All weights of each neuron, (ff, ...), float32."""
    rows = [value.T if name == "down" else value for name, value in matrices.items() if name in ("up", "gate", "down")]
    return torch.cat(rows, dim=1).float()


def _order(first: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.from_numpy(align(_neurons(first).cpu(), _neurons(other).cpu()).permutation)


def _ordered(name: str, matrix: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    if order is None or name == "down bias":
        return matrix.float()
    order = order.to(matrix.device)
    return (matrix[:, order] if name == "down" else matrix[order]).float()
