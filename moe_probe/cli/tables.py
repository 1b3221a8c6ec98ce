"""Tables for the terminal: descriptions of models, and short summaries of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from moe_probe.facts import Handle, facts
from moe_probe.shown import printable

if TYPE_CHECKING:
    import xarray as xr

ENDS = ("_low", "_high")


def info_table(model: Handle) -> Table:
    """Returns the description of a model as a table."""
    table = Table(title=_plain(model.name), show_header=False, title_justify="left")
    for name, value in facts(model):
        table.add_row(_plain(name), _plain(value))
    return table


def summary(dataset: xr.Dataset) -> Table | None:
    """Returns a short table of a result: layers by projection, or by measure; None if its plot has no summary."""
    from moe_probe import plotting

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


def worth_table(agreement: xr.Dataset, curve: xr.Dataset) -> Table:
    """Returns the evaluation of scores: rank correlation with ablation, and change of the loss by share pruned."""
    table = Table("score", title="Scores: rank correlation with ablation, loss by share pruned", title_justify="left")
    for head in ("rank", "low", "high", *(f"{100 * share:g} %" for share in curve.fraction.values)):
        table.add_column(head, justify="right", no_wrap=True)
    ranked = agreement.sortby("mean_rank_correlation", ascending=False)
    for score in ranked.score.values:
        one = ranked.sel(score=score)
        low, high = (one.get(f"mean_rank_correlation{end}", one.mean_rank_correlation * float("nan")) for end in ENDS)
        known = score in curve.order.values
        losses = curve.loss_change.sel(order=score).values if known else [float("nan")] * curve.sizes["fraction"]
        ranks = (f"{float(value):+.2f}" for value in (one.mean_rank_correlation, low, high))
        table.add_row(_plain(score), *ranks, *(f"{x:+.4f}" for x in losses))
    if drawn := [order for order in curve.order.values if order not in agreement.score.values]:
        means = curve.loss_change.sel(order=drawn).mean("order").values
        table.add_row(f"random ({len(drawn)})", "", "", "", *(f"{x:+.4f}" for x in means))
    return table


def _plain(text: object) -> Text:
    """The text without markup and control characters."""
    return Text(printable(text))
