"""Sections of a report, their measures, and the subject that they are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moe_probe.model import MoEModel


@dataclass(frozen=True)
class Subject:
    """The subject of a report.

    Attributes:
        model: the checkpoint.
        base: the checkpoint from which it was made, or None.
        results: results of the dynamic analyses that the sections need, by name; empty without texts.
        base_results: the same results for the base.
        drift: result of `comparisons.routing_drift` from the base to the model; None without texts or base.
        layers: the MoE layers of the report.
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
        name: name of the measure.
        value: its value; None if it is not defined.
        shown: its text on the page.
        reading: a sentence that explains it, with its source.
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
