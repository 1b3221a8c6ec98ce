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
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, torch.Tensor) and given.ndim and given.shape[-1] == self.experts:
            if function in TOP_K and value[0].shape[-1] == self.top_k:
                self.ranked = given.detach().clone()
            elif function in CALLED:
                self.called.append(CALLED[function])
        return value


class Biased(Deciding):
    """While a router decides again: its one linear map to all experts gives logits with a bias.

    A masked expert (-inf) is masked in the correction bias too, so that it counts neither in top-k nor in its group.

    Args:
        experts, top_k: as for `Deciding`.
        bias: (E,) or (n, E).
        corrections: the router's correction biases, (E,).

    Attributes:
        met: how often the linear map was met.
        logits: what it gave, with the bias.
    """

    def __init__(self, experts: int, top_k: int, bias: torch.Tensor, corrections: Sequence[torch.Tensor]):
        super().__init__(experts, top_k)
        self.bias, self.met = bias, 0
        self.masked = {
            id(tensor): torch.where(bias.to(tensor.device) == -torch.inf, -torch.inf, tensor) for tensor in corrections
        }
        self.logits: torch.Tensor | None = None

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        args = tuple(self.masked.get(id(value), value) for value in args)
        value = super().__torch_function__(function, types, args, kwargs)
        if function in LINEAR and value.shape[-1] == self.experts:
            self.met += 1
            value = self.logits = value + self.bias.to(value)
        return value


def correction_biases(module: nn.Module, experts: int) -> list[torch.Tensor]:
    """The biases that a block adds to its scores before top-k, (E,) or (1, E)."""
    named = (*module.named_parameters(), *module.named_buffers())
    return [value for name, value in named if name.rpartition(".")[2] in BIASES and value.shape[-1] == experts]
