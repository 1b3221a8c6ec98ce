"""Texts that fit into their axes, before a figure is laid out: names break, and numbers of ticks make room."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

CHARACTERS, ROOM = 15, 0.75  # an inch of text at 8 points; of the size of axes, what a layout leaves
BESIDE, OVER = 0.6, 1.2  # of the figure's width, what has a neighbor; of axes' width, what a title may take


def fit_texts(figure: matplotlib.figure.Figure) -> None:
    """Break names of axes and titles, and leave out numbers of ticks; where nothing is laid out, names of y alone."""
    laid_out = figure.get_layout_engine() is not None
    for axes in figure.axes:
        _fit_name(axes, ROOM if laid_out else 1.0)
        if laid_out and axes.name != "3d":
            _fit_beside(axes)
            _fit_numbers(axes)


def _fit_name(axes: Axes, part: float) -> None:
    """Break the name of y if it is longer than that part of the axes' height."""
    if axes.yaxis.label.get_rotation() == 90:
        _break(axes.yaxis.label, [axes.get_ylabel().replace("\n", " ")], part * _inches(axes)[1])


def _fit_beside(axes: Axes) -> None:
    """Break title and name of x if they reach into the panel beside."""
    root = axes.get_figure(root=True)
    if root is not None and axes.bbox.width < BESIDE * root.bbox.width:
        for text in (axes.title, axes.xaxis.label):
            _break(text, text.get_text().split("\n"), OVER * _inches(axes)[0])


def _fit_numbers(axes: Axes) -> None:
    """Leave out numbers of ticks for which there is no room side by side, or one above the other; letters stay."""
    width, height = (ROOM * side for side in _inches(axes))
    if axes.get_aspect() == 1:
        width = height = min(width, height)
    for axis, room, across in ((axes.xaxis, width, True), (axes.yaxis, height, False)):
        if axis.get_scale() == "linear" and isinstance(axis.get_major_locator(), FixedLocator):
            _thin(axis, room, across)


def _thin(axis: Axis, room: float, across: bool) -> None:
    places, texts = list(axis.get_majorticklocs()), axis.get_majorticklabels()
    labels = [text.get_text() for text in texts]
    level = not any(text.get_rotation() for text in texts)
    if len(labels) < 2 or not level or not any(label.isdigit() for label in labels):
        return
    size = float(texts[0].get_fontsize())
    taken = (max(map(len, labels)) + 0.5) * size / 8 / CHARACTERS if across else 1.15 * size / 72
    kept = _apart(places, labels, taken / room * float(np.ptp(axis.get_view_interval())))
    if len(kept) < len(labels):
        axis.set_ticks([places[at] for at in kept], labels=[labels[at] for at in kept])


def _apart(places: Sequence[float], labels: Sequence[str], apart: float) -> list[int]:
    """Which labels are so far apart: letters, and every number, every second, third, ... one of the others."""
    letters = [at for at, label in enumerate(labels) if not label.isdigit()]
    step = float(np.min(np.abs(np.diff(places))))
    every = max(int(np.ceil(apart / step - 1e-6)), 1) if step else 1
    numbers = [at for at in range(0, len(labels), every) if at not in letters]
    free = [at for at in numbers if all(abs(places[at] - places[letter]) >= apart for letter in letters)]
    return sorted([*letters, *free])


def _break(text: Text, lines: Sequence[str], room: float) -> None:
    """Break lines that are longer than `room`, in inches."""
    longest = max(int(room * CHARACTERS * 8 / float(text.get_fontsize())), 8)
    if any(len(line) > longest for line in lines):
        parts = (part for line in lines for part in textwrap.wrap(line, longest, break_long_words=False))
        text.set_text("\n".join(parts))


def _inches(axes: Axes) -> tuple[float, float]:
    """Width and height."""
    box, figure = axes.bbox, axes.get_figure(root=True)
    assert figure is not None
    return box.width / figure.dpi, box.height / figure.dpi
