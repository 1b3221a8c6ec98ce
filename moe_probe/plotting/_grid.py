"""Small multiples: a panel for every layer, in one scale, on as few pages as are readable."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from moe_probe.plotting._fitting import CHARACTERS
from moe_probe.plotting._heatmap import beyond, ratio_ticks
from moe_probe.plotting._page import NOTE
from moe_probe.plotting._style import COLUMN, LONGEST_LINE, PAGE, Figure, style, uncollected

HIGHEST = 9.2  # inches of a page
LEFT, RIGHT, TOP, BOTTOM = 0.55, 0.95, 0.04, 0.4  # inches around the panels
LINE, NOTED = 0.17, 0.1  # inches of a legend, or of a note; of each more line of it
HALF_LETTER = 0.1  # inches by which the lowest number of a color bar may reach below it
ABOVE, BETWEEN = 0.17, 0.07  # a panel's title; the gap beside it
WIDEST, PART = 2.6, 0.6  # inches of a panel; of a page that few panels take
SMALLEST, LOWEST = 1.0, 2.2  # inches of few panels, which stand in a column; of a single row
CHOSEN = 6  # layers that stand for all where a panel takes much room

Panel = Callable[[Axes, Any], ScalarMappable | None]


@dataclass(frozen=True)
class Grid:
    """The layout of panels on a page.

    Attributes:
        columns: largest number of columns.
        unit: number of panels that stay side by side, such as the projections of a layer.
        aspect: height of a panel divided by its width.
        x, y: labels of the axes, written once per page.
        bar: label of the color bar; "" for none.
        legend: names and handles of a legend below the panels.
        note: a line of text below the panels.
        apart: space between panels, in inches.
        left: space to their left, in inches.
        below: space below them, in inches.
    """

    columns: int = 6
    aspect: float = 1.0
    x: str = ""
    y: str = ""
    bar: str = ""
    legend: Sequence[tuple[str, Any]] = ()
    note: str = ""
    unit: int = 1
    apart: float = BETWEEN
    left: float = LEFT
    below: float = BOTTOM

    @property
    def right(self) -> float:
        """Inches to the right of the panels."""
        return RIGHT if self.bar else BETWEEN

    @property
    def top(self) -> float:
        """Inches above the panels and their titles."""
        return TOP + (LINE if self.legend else 0)

    def bottom(self, width: float) -> float:
        """Inches below the panels of a figure of that width."""
        return self.below + NOTED * len(self.notes(width)) + (LINE - NOTED if self.note else 0)

    def notes(self, width: float) -> list[str]:
        """The lines of the note in a figure of that width."""
        return textwrap.wrap(self.note, int(width * LONGEST_LINE))

    def _columns(self, count: int) -> tuple[int, float]:
        """Number of columns, and width of a panel in inches; few panels fit into one row of column width."""
        narrow = self._width(COLUMN, count)
        if count <= self.columns and narrow >= min(SMALLEST, self._width(PAGE, self.columns)):
            return count, narrow
        columns, width = self.unit, WIDEST
        for columns in range(self.unit, self.columns + 1, self.unit):
            width = min(self._width(PAGE, columns), WIDEST)
            rows = -(-count // columns)
            if count <= self.columns and count % columns:
                continue  # few panels make full rows
            if rows * (width * self.aspect + ABOVE + self.apart) <= (HIGHEST * PART if rows > 1 else LOWEST):
                break
        return min(columns, count), width

    def _width(self, total: float, columns: int) -> float:
        """Width in inches of each panel if a row has `columns` of them."""
        return (total - self.left - self.right - self.apart * (columns - 1)) / columns

    def pages(self, stem: str, names: Sequence[str], items: Sequence[Any], draw: Panel) -> Iterator[tuple[str, Figure]]:
        """Yields file stem and figure of every page.

        Args:
            stem: beginning of the file stems.
            names: titles of the panels.
            items: one per panel.
            draw: `draw(axes, item)` draws a panel, and returns the artist with its colors.
        """
        columns, width = self._columns(len(items))
        height = width * self.aspect
        rows = max(int((HIGHEST - self.top - self.bottom(PAGE)) / (height + ABOVE + self.apart)), 1)
        count = -(-len(items) // (rows * columns))
        parts = np.array_split(np.arange(-(-len(items) // columns)), count)  # rows of each page
        for number, part in enumerate(parts, 1):
            chosen = range(part[0] * columns, min((part[-1] + 1) * columns, len(items)))
            end = f"_page{number}" if count > 1 else ""
            with style(), uncollected():
                page = self._page(
                    [names[i] for i in chosen], [items[i] for i in chosen], draw, (columns, width, height)
                )
            yield f"{stem}{end}", page

    def _page(self, names: Sequence[str], items: Sequence[Any], draw: Panel, cells: tuple[int, float, float]) -> Figure:
        columns, width, height = cells
        rows = -(-len(items) // columns)
        across = self.left + self.right + columns * width + (columns - 1) * self.apart
        bottom = self.bottom(across)
        size = across, self.top + bottom + rows * (height + ABOVE) + (rows - 1) * self.apart
        figure = Figure(figsize=size)
        image: ScalarMappable | None = None
        for at, (name, item) in enumerate(zip(names, items, strict=True)):
            row, column = divmod(at, columns)
            x = self.left + column * (width + self.apart)
            y = bottom + (rows - 1 - row) * (height + ABOVE + self.apart)
            axes = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
            image = draw(axes, item) or image
            axes.set_title(name, fontsize=6.5, pad=2)
            _outer_ticks_alone(axes, left=not column, bottom=at + columns >= len(items))
        self._around(figure, size, image)
        return figure

    def _around(self, figure: Figure, size: tuple[float, float], image: ScalarMappable | None) -> None:
        """Adds axis labels, color bar, legend and note around the panels."""
        bottom = self.bottom(size[0])
        x = (self.left + (size[0] - self.left - self.right) / 2) / size[0]
        y = (bottom + (size[1] - bottom - self.top) / 2) / size[1]
        figure.text(x, (bottom - 0.36) / size[1], self.x, ha="center", fontsize=8)
        said = "\n".join(textwrap.wrap(self.y, max(int(0.75 * size[1] * CHARACTERS), 8)))
        figure.text(0.04 / size[0], y, said, rotation=90, va="center", ha="left", fontsize=8)
        if self.note:
            lines = "\n".join(self.notes(size[0]))
            figure.text(0.5, 0.03 / size[1], lines, ha="center", va="bottom", **NOTE)
        if self.bar and image is not None:
            lowest = bottom - self.below + HALF_LETTER  # beside a low panel, the bar reaches down to the note
            high = min(size[1] - self.top - lowest, 2.5)
            place = (size[0] - RIGHT + 0.12, size[1] - self.top - high, 0.11, high - ABOVE)
            beside = figure.add_axes((place[0] / size[0], place[1] / size[1], place[2] / size[0], place[3] / size[1]))
            extend = beyond(image) if isinstance(image, AxesImage) else "neither"
            bar = figure.colorbar(image, cax=beside, label=self.bar, extend=extend)
            bar.ax.tick_params(labelsize=6)
            if isinstance(image.norm, FuncNorm):
                ratio_ticks(bar)
        if self.legend:
            figure.legend(
                [handle for _, handle in self.legend],
                [name for name, _ in self.legend],
                loc="upper right",
                ncols=len(self.legend),
                frameon=False,
                borderaxespad=0.1,
            )


def _outer_ticks_alone(axes: Axes, left: bool, bottom: bool) -> None:
    """Small ticks; none where a panel has a neighbor with the same ones, which is half of the time of a page."""
    for axis, outer in ((axes.yaxis, left), (axes.xaxis, bottom)):
        if outer:
            axis.set_tick_params(labelsize=6, pad=1.5, length=2)
        else:
            axis.set_major_locator(NullLocator())
            axis.set_minor_locator(NullLocator())


def chosen_layers(layers: np.ndarray, most: int = CHOSEN) -> list[int]:
    """At most `most` evenly spaced layers, including the first and the last."""
    places = np.unique(np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int))
    return [int(layers[place]) for place in places]
