"""What happens inside a router while it decides: what it ranks, and the same decision with a bias on its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

TOP_K = (torch.topk, torch.Tensor.topk)
LINEAR = (
    nn.functional.linear,
    torch.matmul,
    torch.mm,
    torch.Tensor.matmul,
    torch.Tensor.mm,
    torch.Tensor.__matmul__,
)
CALLED = {
    torch.softmax: "softmax",
    torch.Tensor.softmax: "softmax",
    nn.functional.softmax: "softmax",
    torch.sigmoid: "sigmoid",
    torch.Tensor.sigmoid: "sigmoid",
    nn.functional.sigmoid: "sigmoid",
}
BIASES = ("e_score_correction_bias", "expert_bias", "e_bias", "correction_bias")


class Deciding(TorchFunctionMode):
    """While a router decides: remembers what its last top-k of all experts was taken of, and what it called before.

    Args:
        experts: columns of what is ranked.
        top_k: that are taken.

    Attributes:
        ranked: (..., E); None until it is seen.
        called: names of the functions that were called on all experts' logits.
        gates: weights (E, w) of the linear maps to all experts.
    """

    def __init__(self, experts: int, top_k: int):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.ranked: torch.Tensor | None = None
        self.called: list[str] = []
        self.gates: list[torch.Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        value = function(*args, **kwargs)
        if function is nn.functional.linear and value.shape[-1] == self.experts:
            self.gates.append(args[1] if len(args) > 1 else kwargs["weight"])
        values = args[0] if args else kwargs.get("input")
        if isinstance(values, torch.Tensor) and values.ndim and values.shape[-1] == self.experts:
            if function in TOP_K and value[0].shape[-1] == self.top_k:
                self.ranked = values.detach().clone()
            elif function in CALLED:
                self.called.append(CALLED[function])
        return value


class Redeciding(Deciding):
    """While a router decides again: with a bias on its one linear map to all experts, another k, another ranking.

    A masked expert (-inf) is masked in the correction bias too, so that it does not count in its group, and in what is
    ranked, where its score of 0 could equal another's.

    Args:
        experts, top_k: as for `Deciding`.
        bias: on the logits, (n, E).
        corrections: the router's correction biases, (E,).
        wanted: experts per row in place of `top_k`.
        scores: what is ranked in place of the router's own, (n, E), nan in rows that the router ranks; None for none.

    Attributes:
        met: how often the linear map was met.
        logits: what it gave, with the bias.
        counted: how often the top-k of all experts was met.
    """

    def __init__(
        self,
        experts: int,
        top_k: int,
        bias: torch.Tensor,
        corrections: Sequence[torch.Tensor],
        wanted: int,
        scores: torch.Tensor | None = None,
    ):
        super().__init__(experts, top_k)
        self.bias, self.met, self.counted, self.wanted, self.scores = bias, 0, 0, wanted, scores
        self.corrections = {id(tensor): tensor for tensor in corrections}
        self.lead: Sequence[int] = bias.shape[:-1]
        self.logits: torch.Tensor | None = None

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if any(id(value) in self.corrections for value in args):
            if sum(isinstance(value, torch.Tensor) for value in args) == 1:  # in another shape or dtype
                return self._still_correction(super().__torch_function__(function, types, args, kwargs))
            args = tuple(self._masked(value) for value in args)
        if function in TOP_K and self._is_choice(args, kwargs or {}):
            return self._choose(*args, **(kwargs or {}))
        value = super().__torch_function__(function, types, args, kwargs)
        if function in LINEAR and value.shape[-1] == self.experts:
            self.met, self.lead = self.met + 1, value.shape[:-1]
            value = self.logits = value + self.bias.to(value).reshape(value.shape)
        return value

    def _still_correction(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.corrections[id(value)] = value
        return value

    def _masked(self, value: Any) -> Any:
        correction = self.corrections.get(id(value))
        if correction is None:
            return value
        masked = (self.bias == -torch.inf).to(correction.device)
        if bool((masked == masked[:1]).all()):
            return correction.masked_fill(masked[0], -torch.inf)
        return torch.where(masked.reshape(*self.lead, -1), -torch.inf, correction)

    def _is_choice(self, args: tuple, kwargs: dict) -> bool:
        values = args[0] if args else kwargs.get("input")
        count = args[1] if len(args) > 1 else kwargs.get("k")
        return isinstance(values, torch.Tensor) and values.shape[-1] == self.experts and count == self.top_k

    def _choose(self, input: torch.Tensor, k: int, *_: Any, **options: Any) -> Any:
        self.counted += 1
        options = {name: value for name, value in options.items() if name in ("sorted", "largest")}
        ranked = input.detach()
        if self.scores is not None:
            scores = self.scores.to(ranked).reshape(ranked.shape)
            ranked = torch.where(scores.isnan(), ranked, scores)
        masked = (self.bias == -torch.inf).reshape(ranked.shape).to(ranked.device)
        self.ranked = ranked = ranked.masked_fill(masked, -torch.inf)
        index = torch.topk(ranked, self.wanted, -1, **options).indices
        return torch.return_types.topk((input.gather(-1, index), index))


def correction_biases(module: nn.Module, experts: int) -> list[torch.Tensor]:
    """The biases that a block adds to its scores before top-k, (E,) or (1, E)."""
    named = (*module.named_parameters(), *module.named_buffers())
    return [value for name, value in named if name.rpartition(".")[2] in BIASES and value.shape[-1] == experts]
