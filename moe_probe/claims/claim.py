"""Claims, the evidence on which they are tested, and findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.model import MoEModel
from moe_probe.routing import Source

WHOLE = -1  # as a layer: all of them together


@dataclass(frozen=True)
class Finding:
    """The result of testing a claim in one layer, or in all layers together.

    Attributes:
        effect: effect size; nan if it is not defined.
        low, high: 95 % interval; nan if there is none.
        p: p-value of the claim's null hypothesis; nan if there is none.
        layer: index; WHOLE for all layers.
        why: the reason why it is inconclusive, if it is.
    """

    effect: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    layer: int = WHOLE
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """The data on which a claim is tested.

    Attributes:
        model: the tested model.
        source: the model on its corpus.
        layers: the MoE layers to test.
        results: results of the analyses that claims need, by name.
        options: options of the run that made them, for a claim that runs another model on the corpus.
    """

    model: MoEModel
    source: Source
    layers: Sequence[int]
    results: Mapping[str, xr.Dataset]
    options: Mapping[str, Any]


def accept(model: MoEModel) -> None:
    """Accepts any Mixture-of-Experts model."""


@dataclass(frozen=True)
class Claim:
    """A published observation as a hypothesis.

    Without `within`, the claim is that the effect is above 0: p is two-sided, of an effect of 0. With it, the claim is
    that the effect is below `within`: p is one-sided, of an effect of `within` or more (an equivalence test).

    Attributes:
        hypothesis: a sentence that is either true or false.
        source: paper and section.
        effect: definition of the effect size, with its unit.
        findings: takes the evidence, returns a finding per layer or one for all; raises InputError if the claim does
            not apply.
        needs: analyses that the single pass over the texts must run.
        applies: raises InputError, before any work, if the claim does not apply to the model.
        within: the largest effect that counts as small; None for a claim of an effect.
        units: the units that its p-value treats as independent.
    """

    hypothesis: str
    source: str
    effect: str
    findings: Callable[[Evidence], Sequence[Finding]]
    needs: tuple[Analysis, ...] = ()
    applies: Callable[[MoEModel], None] = accept
    within: float | None = None
    units: str = "documents"


def by_layer(
    layers: Sequence[int],
    effect: np.ndarray,
    low: np.ndarray | float = np.nan,
    high: np.ndarray | float = np.nan,
    p: np.ndarray | float = np.nan,
    why: str = "",
) -> list[Finding]:
    """Returns a finding per layer from values (layers,); `why` is the reason for those without a p-value."""
    rows = np.stack(np.broadcast_arrays(np.asarray(effect, float), low, high, p), axis=1).tolist()
    return [
        Finding(size, least, most, chance, int(layer), why if np.isnan(chance) else "")
        for layer, (size, least, most, chance) in zip(layers, rows, strict=True)
    ]
