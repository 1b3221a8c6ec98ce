"""The tokens of a call of a live model, determined from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_probe.forward.steps import OWNER
from moe_probe.texts.corpus import Tokens

Label = Callable[[np.ndarray], np.ndarray]  # labels of positions


class LiveTokens:
    """Remembers the tokens of the call that runs: a document per row, positions counted from the row's beginning.

    Args:
        owner: whose passes are watched; by default those that are nobody's.
        first: number of the first row's document.
        label: labels of the tokens at some positions; by default none.

    Attributes:
        tokens: of the running call, padding too; empty where its arguments do not tell.
    """

    def __init__(self, owner: object | None = None, first: int = 0, label: Label | None = None):
        self.owner, self.first, self.label = owner, first, label
        self.tokens = Tokens.none()

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[Callable[[], Tokens]]:
        """A context in which calls of the module are watched; yields a function that returns the running tokens."""
        handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]
        try:
            yield lambda: self.tokens
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if OWNER.get() is not self.owner:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, torch.Tensor) and ids.ndim == 2:
            self.tokens = self._tokens(ids.cpu(), kwargs)

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is self.owner:
            self.tokens = Tokens.none()

    def _tokens(self, ids: torch.Tensor, kwargs: dict[str, Any]) -> Tokens:
        rows, places = ids.shape
        cache = kwargs.get("past_key_values")
        before = int(cache.get_seq_length()) if cache is not None else 0
        position = torch.arange(before, before + places).expand(rows, -1)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape == (rows, before + places):
            position = (mask.cpu().long().cumsum(1) - 1).clamp(min=0)[:, before:]  # padding on the left counts not
        flat = position.reshape(-1).numpy()
        label = np.full(len(flat), "", dtype=object) if self.label is None else self.label(flat)
        document = np.repeat(np.arange(self.first, self.first + rows), places)
        return Tokens(document, flat, ids.reshape(-1).numpy(), label)
