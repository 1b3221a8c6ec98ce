"""What the gating residual does to the router's scores (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import xarray as xr

from moe_probe.dynamic.analyses.router_scores import RouterScores
from moe_probe.dynamic.parts import Parts
from moe_probe.errors import InputError
from moe_probe.texts.corpus import Corpus

RESIDUALS = ["with", "without (intervention)"]


class GatingResidual(Parts):
    """Distributions of the two highest scores, with the model's gating residual and with it removed.

    The paper compares two models that were trained with and without. On one checkpoint the removal is an intervention:
    every layer's logits are its own alone, and the hidden states of later layers change too. It takes a second pass
    over the corpus.

    The result has the variables of `router_scores` with a first dimension `residual`: `with`, and
    `without (intervention)`.

    Args:
        bins: of the histograms, as for `router_scores`.
        limits: of the histograms, as for `router_scores`.

    Raises:
        InputError: the model has no gating residual.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.gating_residual("ckpt/tiny-moe-plus-plus", ["A short text."])["count"].dims
        ('residual', 'layer', 'which', 'bin')
    """

    name = "gating_residual"
    changes: ClassVar[Mapping[str, Any]] = {"moe_gate_residual": False}

    def __init__(self, bins: int = 100, limits: tuple[float, float] = (0.0, 1.0)):
        super().__init__(scores=RouterScores(bins, limits))
        self.bins, self.limits = bins, tuple(limits)

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        if not getattr(model.config, "moe_gate_residual", False):
            raise InputError(f"{model.name} has no gating residual to remove; MoE++ has one.")

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        both = [self._parts["scores"].result(model, corpus), self.changed._parts["scores"].result(model, corpus)]
        return xr.concat(both, xr.Variable("residual", RESIDUALS)).assign_attrs(self.attrs(model, corpus))
