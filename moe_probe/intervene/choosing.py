"""Base classes of interventions: their layer, experts and tokens, and checks against the model and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch

from moe_probe.errors import NotFitting, OutOfRange, WrongType
from moe_probe.families import SHARED, Layer
from moe_probe.intervene.where import Where
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention
from moe_probe.signatures import check_number, value_shown

ALL = "all"
Experts = Sequence[int | str] | int | str


@dataclass(frozen=True, repr=False)
class OnTokens(Intervention):
    """An intervention on the tokens of one layer.

    Attributes:
        layer: index of the MoE layer.
        where: which tokens (`Where`, or a mapping of its arguments); all by default.
        fixes: whether it replaces the router's own decision.
        apart: whether two that claim the same can act on different tokens, which the run verifies.
    """

    layer: int
    where: Where | Mapping[str, Any] | None = field(default=None, kw_only=True)

    fixes: ClassVar[bool] = False
    apart: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", Where.of(self.where))

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0)

    def __repr__(self) -> str:
        ordered = [each for each in fields(self) if each.name != "where"] + [
            each for each in fields(self) if each.kw_only
        ]
        changed = {each.name: getattr(self, each.name) for each in ordered if getattr(self, each.name) != each.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def check(self, model: MoEModel) -> None:
        """Raises an error if the layer does not exist, or interventions exclude each other."""
        check_number("layer", self.layer, 0)
        model.select_layers(self.layer)
        check_together(model, self)

    def masked(self, layer: Layer) -> frozenset[int]:
        """Experts that cannot be chosen."""
        return frozenset()

    def number(self) -> int | None:
        """Number of experts chosen per token, if it sets one."""
        return None


@dataclass(frozen=True, repr=False)
class OnExperts(OnTokens):
    """An intervention on some experts of one layer.

    Attributes:
        of_chosen: whether it leaves tokens that chose none of the experts unchanged.
        layer: index of the MoE layer.
        experts: numbers of experts, or `"all"` for all routed experts; `"S"` is the shared block.
    """

    experts: Experts

    takes_shared: ClassVar[bool] = False
    of_chosen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "experts", as_experts(self.experts))

    def check(self, model: MoEModel) -> None:
        """Raises an error if the layer or an expert does not exist."""
        check_number("layer", self.layer, 0)
        (chosen,) = model.select_layers(self.layer)
        check_experts(model, chosen, self.experts, self.takes_shared, type(self).__name__)
        super().check(model)

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1])

    @property
    def named(self) -> tuple[Any, ...]:
        """The experts as the user named them; `("all",)` for all."""
        given: Any = self.experts
        return (ALL,) if given == ALL else given

    @property
    def on_shared(self) -> bool:
        """Whether it acts on the shared block."""
        return SHARED in self.named

    def routed(self, layer: Layer) -> list[int]:
        """Numbers of the routed experts that it acts on."""
        return routed(self.experts, layer)

    def flags(self, layer: Layer) -> torch.Tensor:
        """A mask of the experts that it acts on, (E,) bool."""
        return flags(layer.num_experts, self.routed(layer))


def as_experts(given: Experts) -> tuple[int | str, ...] | str:
    """Returns experts as `"all"`, or as a tuple of numbers and labels."""
    if isinstance(given, str) and given == ALL:
        return ALL
    several: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return tuple(int(each) if isinstance(each, str) and each.isdecimal() else each for each in several)


def routed(experts: Any, layer: Layer) -> list[int]:
    """Numbers of the routed experts among these."""
    everyone = range(layer.num_experts) if experts == ALL else experts
    return [int(each) for each in everyone if each != SHARED]


def flags(count: int, experts: Sequence[int]) -> torch.Tensor:
    """A mask of these among `count` experts, (E,) bool."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(experts)] = True
    return chosen


def among(index: torch.Tensor, experts: Sequence[int]) -> torch.Tensor:
    """Whether each choice is one of these experts."""
    return torch.isin(index, torch.tensor(list(experts), device=index.device))


def check_experts(model: MoEModel, layer: int, experts: Any, takes_shared: bool = False, kind: str = "") -> None:
    """Raises an error if a layer does not have the named experts.

    Raises:
        OutOfRange: the layer has no such expert, or the list is empty.
        NotFitting: the list has the shared block, but the layer has none or the intervention does not act on it.
        WrongType: an item is of another type.
    """
    count = model.layer(layer).num_experts
    for expert in () if experts == ALL else experts:
        if expert == SHARED:
            _check_shared(model, layer, takes_shared, kind)
            continue
        if isinstance(expert, str):
            raise WrongType(
                f"experts names {value_shown(expert)}; pass numbers from 0 to {count - 1}, 'S' for the shared block, "
                "or 'all'."
            )
        check_number("expert", expert, 0)
        if expert >= count:
            raise OutOfRange(f"Layer {layer} of {model.name} has the experts 0 to {count - 1}, not {expert}.")
    if not len(experts):
        raise OutOfRange(f"experts is empty; pass some of the experts 0 to {count - 1} of layer {layer}.")


def _check_shared(model: MoEModel, layer: int, takes_shared: bool, kind: str) -> None:
    if not takes_shared:
        raise NotFitting(f"{kind} acts on routed experts, not on the shared block 'S'; omit it.")
    if not model.layer(layer).num_shared:
        raise NotFitting(f"Layer {layer} of {model.name} has no shared expert; omit 'S'.")


def check_together(model: MoEModel, edit: Any) -> None:
    """Raises an error if interventions contradict each other, or if masks leave too few experts.

    Raises:
        NotFitting: they do; the message names both interventions, or the number of experts left.
    """
    for index in sorted(edit.acts_in(model.moe_layers)):
        others = [
            each for each in model.interventions if isinstance(each, Intervention) and index in each.acts_in([index])
        ]
        for other in others:
            _check_pair(other, edit, index)
        _check_enough(model, index, [*others, edit])


def _check_pair(one: Any, other: Any, index: int) -> None:
    fixed = next((f for f, d in ((one, other), (other, one)) if getattr(f, "fixes", False) and d.decides), None)
    if fixed is not None:
        raise NotFitting(
            f"{one!r} and {other!r} exclude each other in layer {index}: one asks the router for another choice, the "
            "other takes a recorded one; pass one of them, or Replay(after=...)."
        )
    common = sorted(one.claims(index) & other.claims(index))
    verified = getattr(one, "apart", False) and getattr(other, "apart", False)
    if common and not (verified and one.where is not None and other.where is not None):
        raise NotFitting(
            f"{one!r} and {other!r} both set {common[0]} in layer {index}, so that their order would matter; pass one "
            "of them."
        )


def _check_enough(model: MoEModel, index: int, edits: Sequence[Any]) -> None:
    layer = model.layer(index)
    choosing = [each for each in edits if isinstance(each, OnTokens)]
    masked = frozenset[int]().union(*(each.masked(layer) for each in choosing))
    number = max((each.number() or 0 for each in choosing), default=0) or layer.top_k
    left = layer.num_experts - len(masked)
    if masked and left < number:
        raise NotFitting(
            f"Layer {index} of {model.name} chooses {number} experts per token; masking {len(masked)} of "
            f"{layer.num_experts} leaves {left}; mask fewer."
        )
