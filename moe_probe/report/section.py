"""What a section of a report is made from, and made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from moe_probe.model import MoEModel


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        model: the checkpoint.
        base: the checkpoint that it was made from; None where none was given.
        results: of the dynamic analyses that the sections need, by name; empty without texts.
        base_results: the same of the base.
        drift: `comparisons.routing_drift` from the base to the model; None without texts or base.
        layers: MoE layers that are looked at.
    """

    model: MoEModel
    base: MoEModel | None
    results: Mapping[str, xr.Dataset]
    base_results: Mapping[str, xr.Dataset]
    drift: xr.Dataset | None
    layers: Sequence[int]


@dataclass(frozen=True)
class Measure:
    """One number of a report.

    Attributes:
        name: what is measured.
        value: as it is stored; None where it is not defined.
        shown: as it is written on the page.
        reading: a sentence that says how to read it, with its source.
    """

    name: str
    value: float | int | str | list | None
    shown: str
    reading: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        measures: its numbers.
        table: a row per layer, or per finding; None for none.
        figures: file stem, caption and figure of each.
    """

    title: str
    measures: Sequence[Measure]
    table: pd.DataFrame | None = None
    figures: Sequence[tuple[str, str, Figure]] = field(default_factory=tuple)
