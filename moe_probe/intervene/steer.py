"""Steering: experts that the router must, or must not, prefer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from moe_probe.errors import NotFitting, WrongType
from moe_probe.intervene.choosing import OnTokens, check_experts, check_together, flags
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Request
from moe_probe.signatures import check_number, value_shown

Named = Mapping[int, Sequence[int]] | Sequence[tuple[int, int]] | Sequence[Sequence[int]] | Sequence[int]


@dataclass(frozen=True, repr=False)
class Steer(OnTokens):
    """Sets the router logits of some experts just above, or just below, those of all other experts (SteerMoE).

    For each token, with hi and lo its largest and smallest logit (after `Bias`), a promoted expert's logit becomes
    hi + 0.01 and a demoted one's lo - 0.01; scores, choice and weights follow from them. Later steps of the router (a
    correction bias, groups) still apply (arXiv 2509.09660, section 3.2).

    Args:
        promote: (layer, expert) pairs, or lists of experts by layer; with `layer`, experts of that layer.
        demote: (layer, expert) pairs, or lists of experts by layer; with `layer`, experts of that layer.
        layer: layer of experts that are passed without one.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Steer(promote=[(1, 3)], demote=[(2, 0)])
        Steer(promote=((1, 3),), demote=((2, 0),))
    """

    promote: Named = ()
    demote: Named = ()
    layer: int | None = field(default=None, kw_only=True)  # pyright: ignore[reportIncompatibleVariableOverride]

    decides = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("promote", "demote"):
            object.__setattr__(self, name, as_pairs(name, getattr(self, name), self.layer))
        object.__setattr__(self, "layer", None)

    @classmethod
    def example(cls) -> Self:
        return cls(promote=[(0, 1)])

    def acts_in(self, moe_layers: Collection[int]) -> frozenset[int]:
        named: Any = (*self.promote, *self.demote)
        return frozenset(layer for layer, _ in named).intersection(moe_layers)

    def experts_of(self, name: str, layer: int) -> list[int]:
        """Experts of a layer that are promoted, or demoted."""
        return [expert for index, expert in getattr(self, name) if index == layer]

    def check(self, model: MoEModel) -> None:
        named: Any = (*self.promote, *self.demote)
        if not named:
            raise NotFitting("Steer names no expert; pass promote= or demote=, such as promote=[(1, 3)].")
        for index, expert in named:
            check_number("layer", index, 0)
            (chosen,) = model.select_layers(index)
            check_experts(model, chosen, (expert,), kind="Steer")
        for index in self.acts_in(model.moe_layers):
            self._check_layer(model, index)
        check_together(model, self)

    def _check_layer(self, model: MoEModel, index: int) -> None:
        promoted, demoted = (set(self.experts_of(name, index)) for name in ("promote", "demote"))
        if promoted & demoted:
            raise NotFitting(
                f"Steer promotes and demotes expert {min(promoted & demoted)} of layer {index}; name it in one only."
            )
        top_k = model.layer(index).top_k
        if len(promoted) > top_k:
            raise NotFitting(
                f"Steer promotes {len(promoted)} experts of layer {index}, which chooses {top_k} per token; promote at "
                f"most {top_k}."
            )

    def decide(self, call: Call, request: Request) -> None:
        promoted, demoted = (
            flags(call.layer.num_experts, self.experts_of(name, call.layer.index)) for name in ("promote", "demote")
        )
        request.steer(promoted, demoted, call.rows_of(self))


def as_pairs(name: str, given: Any, layer: int | None) -> tuple[tuple[int, int], ...]:
    """Experts as (layer, expert) pairs.

    Raises:
        WrongType: an item is not a pair or a number.
    """
    if isinstance(given, Mapping):
        return tuple((index, expert) for index, experts in given.items() for expert in experts)
    pairs = []
    for each in given:
        pair = (layer, each) if layer is not None and isinstance(each, int) else each
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise WrongType(f"{name} names {value_shown(each)}; pass (layer, expert) pairs, or layer= and experts.")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)
