"""How a layer's experts were called, so that another call runs them on the rows alone in which it differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_probe.forward.sites import called_with, expert_call


def of_documents(values: torch.Tensor, rows: torch.Tensor, shape: Sequence[int], places: int) -> torch.Tensor:
    """Values (documents x all places x sub-tokens, ...) of some documents and their first places."""
    by_place = values.reshape(shape[0], shape[1], -1, *values.shape[1:])
    return by_place[rows.to(values.device), :places].flatten(0, 2)


@dataclass(frozen=True)
class Ran:
    """How a layer's experts were called, and what they gave.

    Attributes:
        index, weights: (rows, k), padding too.
        output: (rows, w).
    """

    index: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor

    def of_documents(self, rows: torch.Tensor, shape: Sequence[int], places: int) -> Ran:
        """That of some of the documents, and of their first places."""
        return Ran(*(of_documents(each, rows, shape, places) for each in (self.index, self.weights, self.output)))

    def again(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """The output of a call on the same rows: the experts run on those whose choices or weights are others."""
        rows, index, weights = expert_call(args, kwargs)
        if index.shape != self.index.shape:
            return forward(*args, **kwargs)
        other = ((index != self.index) | (weights != self.weights)).any(1)
        if not bool(other.any()):
            return self.output
        called, named = called_with(args, kwargs, rows=rows[other], index=index[other], weights=weights[other])
        return self.output.index_put((other,), forward(*called, **named).to(self.output))
