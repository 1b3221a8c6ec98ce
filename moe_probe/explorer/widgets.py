"""Bokeh's widgets of the page; `page.js` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJSTickFormatter,
    DataRange1d,
    DataTable,
    FactorRange,
    HoverTool,
    Select,
    Slider,
    Span,
    StringFormatter,
    TableColumn,
)
from bokeh.models.layouts import LayoutDOM
from bokeh.plotting import figure

BLUE, GREY = "#0072B2", "#777777"
TABLES = {
    "experts": ("rank", "expert", "kind", "logit", "weight"),
    "subtokens": ("sub-token", "experts", "weights"),
    "typical": ("before", "token", "after", "weight"),
    "similar": ("expert", "cosine"),
}
WIDTHS = {"before": 150, "after": 150, "token": 80, "experts": 120, "weights": 160}
ROWS = {"experts": 10, "subtokens": 4, "typical": 9, "similar": 6}  # shown; the others by scrolling
HEADER_HEIGHT, ROW_HEIGHT = 26, 22  # pixels
RIGHT = ("before", "logit", "weight", "cosine")


def widgets(facts: Mapping[str, Any]) -> dict[str, LayoutDOM]:
    """Each widget by its place in the page."""
    layers = [layer["index"] for layer in facts["layers"]]
    first = facts["layers"][0]
    colors: list[Any] = [("expert", "expert")]
    if set(first["expert_kinds"]) != {"ffn"}:
        colors.append(("ffn", "FFN experts used"))
    if first["subtokens"] > 1:
        colors.append(("distinct", "distinct experts of its sub-tokens"))
    controls: dict[str, LayoutDOM] = {
        "layer": Slider(
            name="layer",
            title="layer",
            start=0,
            end=max(1, len(layers) - 1),
            value=0,
            step=1,
            disabled=len(layers) == 1,
            format=CustomJSTickFormatter(args={"layers": layers}, code="return String(layers[tick])"),
            sizing_mode="stretch_width",
        ),
        "rank": Select(
            name="rank",
            title="choice",
            options=_choices(max(layer["top_k"] for layer in facts["layers"]), "{next}."),
            value="0",
            width=70,
        ),
        "subtoken": Select(
            name="subtoken",
            title="sub-token",
            options=_choices(first["subtokens"], "{this}"),
            value="0",
            width=80,
            visible=first["subtokens"] > 1,
        ),
        "color": Select(name="color", title="color", options=colors, value="expert", width=260),
        "load": _load(layers),
        "domains": _domains(sorted({document["label"] for document in facts["documents"]})),
    }
    return controls | {name: _table(name, columns) for name, columns in TABLES.items()}


def _choices(count: int, shown: str) -> list[Any]:
    """Options of a choice by number, from 0: value and what is shown of it (`{this}`, or `{next}` from 1)."""
    return [(str(at), shown.format(this=at, next=at + 1)) for at in range(count)]


def _table(name: str, columns: tuple[str, ...]) -> DataTable:
    source = ColumnDataSource({column: [] for column in columns})
    return DataTable(
        name=name,
        source=source,
        columns=[
            TableColumn(
                field=column,
                title=column,
                width=WIDTHS.get(column, 60),
                formatter=StringFormatter(text_align="right" if column in RIGHT else "left"),
            )
            for column in columns
        ],
        index_position=None,
        sortable=False,
        reorderable=False,
        height=HEADER_HEIGHT + ROWS[name] * ROW_HEIGHT,
        sizing_mode="stretch_width",
        row_height=ROW_HEIGHT,
    )


def _load(layers: list[int]) -> figure:
    nothing = [0.0] * len(layers)
    source = ColumnDataSource({"layer": layers, "share": nothing, "even": nothing}, name="load-source")
    plot = figure(name="load", height=150, sizing_mode="stretch_width", toolbar_location=None, x_axis_label="layer")
    plot.line("layer", "share", source=source, color=BLUE, line_width=2)
    dots = plot.scatter("layer", "share", source=source, color=BLUE, size=6)
    plot.line("layer", "even", source=source, color=GREY, line_dash="dashed")
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[("layer", "@layer"), ("share", "@share{0.0000}")]))
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    plot.yaxis.ticker = BasicTicker(desired_num_ticks=4, num_minor_ticks=0)
    plot.y_range = DataRange1d(start=0)
    plot.yaxis.axis_label = "share of choices"
    return plot


def _domains(labels: list[str]) -> figure:
    source = ColumnDataSource({"label": labels, "share": [0.0] * len(labels)}, name="domains-source")
    plot = figure(
        name="domains",
        height=70 + 22 * len(labels),
        sizing_mode="stretch_width",
        toolbar_location=None,
        y_range=FactorRange(factors=list(reversed(labels))),
        x_axis_label="share of the label's choices",
        visible=len(labels) > 1,
    )
    bars = plot.hbar("label", right="share", height=0.7, source=source, color=BLUE)
    plot.add_layout(Span(name="domains-all", dimension="height", location=0, line_color=GREY, line_dash="dashed"))
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("@label", "@share{0.0000}")]))
    plot.x_range = DataRange1d(start=0)
    return plot
