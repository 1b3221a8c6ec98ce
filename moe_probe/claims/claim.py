"""What a claim is, what it is tested on, and what is found."""

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
    """What is found of one layer, or of all together.

    Attributes:
        effect: size; nan where it is not defined.
        low, high: 95 % interval; nan where there is none.
        p: of the claim's null hypothesis; nan where there is none.
        layer: index; WHOLE for all of them.
        why: what keeps it from being told, where something does.
    """

    effect: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    layer: int = WHOLE
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a claim is tested on.

    Attributes:
        model: that it is tested of.
        source: the model on its corpus.
        layers: MoE layers that are looked at.
        results: of the analyses that claims need, by name.
        options: of the run that made them, for a claim that runs another model on the corpus.
    """

    model: MoEModel
    source: Source
    layers: Sequence[int]
    results: Mapping[str, xr.Dataset]
    options: Mapping[str, Any]


def accept(model: MoEModel) -> None:
    """Applies to any Mixture-of-Experts model."""


@dataclass(frozen=True)
class Claim:
    """A published observation as a hypothesis.

    Without `within`, the claim is that the effect is above 0: p is two-sided, of an effect of 0. With it, the claim is
    that the effect is below `within`: p is one-sided, of an effect of `within` or more (an equivalence test).

    Attributes:
        hypothesis: a sentence that is true or not.
        source: paper and section.
        effect: what the effect size is, with its unit.
        findings: takes the evidence, gives a finding per layer or one for all. Raises InputError where the claim does
            not apply.
        needs: analyses that look on in the one pass over the texts.
        applies: raises InputError, before any work, where the claim does not apply to the model.
        within: the largest effect that is called small; None for a claim of an effect.
        units: what its p-value takes as independent of each other.
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
    """A finding per layer, of values (layers,); `why` stands where there is no p-value."""
    rows = np.stack(np.broadcast_arrays(np.asarray(effect, float), low, high, p), axis=1).tolist()
    return [
        Finding(size, least, most, chance, int(layer), why if np.isnan(chance) else "")
        for layer, (size, least, most, chance) in zip(layers, rows, strict=True)
    ]
