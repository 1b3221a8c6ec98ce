"""Tables for the terminal: what a model is made of, and what a result says in short."""

from __future__ import annotations

import xarray as xr
from rich.table import Table
from rich.text import Text

from moe_probe import plotting
from moe_probe.facts import facts
from moe_probe.model import MoEModel
from moe_probe.shown import printable


def info_table(model: MoEModel) -> Table:
    """What a model is made of."""
    table = Table(title=_plain(model.name), show_header=False, title_justify="left")
    for name, value in facts(model):
        table.add_row(_plain(name), _plain(value))
    return table


def summary(dataset: xr.Dataset) -> Table | None:
    """A short table of a result: layers by projection, or by measure; None where its plot has no summary."""
    short = plotting.summary(dataset)
    if short is None:
        return None
    title, values = short
    table = Table("layer", title=_plain(title), title_justify="left")
    for name in values[values.dims[1]].values:
        table.add_column(_plain(name))
    for layer in values.layer.values:
        table.add_row(_plain(layer), *(f"{value:.3f}" for value in values.sel(layer=layer).values))
    return table


def _plain(text: object) -> Text:
    """The text as it is: no markup, no control characters."""
    return Text(printable(text))
