"""Fits texts into their axes before a figure is laid out: breaks long names and omits tick labels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text
from matplotlib.ticker import AutoLocator, FixedLocator

CHARACTERS, ROOM = 15, 0.75  # an inch of text at 8 points; of the size of axes, what a layout leaves
FEW = 8  # axes of a figure that is laid out before its numbers are fitted
NARROW = 5.5  # inches of a figure that is rather as wide as a column than as a page
LINE, SMALLEST = 1.15, 5.0  # of a line, times its letters; points of the smallest letters
BESIDE, OVER = 0.6, 1.2  # of the figure's width, what has a neighbor; of axes' width, what a title may take


def fit_texts(figure: matplotlib.figure.Figure) -> None:
    """Breaks axis labels and titles, and omits tick labels; only y labels in figures without automatic layout."""
    engine = figure.get_layout_engine()
    laid_out = engine is not None
    for axes in figure.axes:
        _fit_name(axes, ROOM if laid_out else 1.0)
    if engine is None:
        return
    level = [axes for axes in figure.axes if axes.name != "3d"]
    for axes in level:
        _fit_beside(axes)
    known = len(figure.axes) <= FEW or figure.get_figwidth() < NARROW
    if known:
        engine.execute(figure)  # now axes are as large as they will be; of many, that takes long
        for axes in level:
            _fit_beside(axes)
    for axes in level:
        _fit_numbers(axes, 1.0 if known else ROOM)


def _fit_name(axes: Axes, part: float) -> None:
    """Breaks the y label if it is longer than `part` of the axes' height."""
    if axes.yaxis.label.get_rotation() == 90:
        _break(axes.yaxis.label, [axes.get_ylabel().replace("\n", " ")], part * _inches(axes)[1])


def _fit_beside(axes: Axes) -> None:
    """Breaks the title and the x label if they reach into the neighboring panel."""
    root = axes.get_figure(root=True)
    if root is not None and axes.bbox.width < BESIDE * root.bbox.width:
        for text in (axes.title, axes.xaxis.label):
            _break(text, text.get_text().split("\n"), OVER * _inches(axes)[0])


def _fit_numbers(axes: Axes, part: float) -> None:
    """Omits numeric tick labels for which `part` of the axes has no room; letters stay."""
    width, height = (part * side for side in _inches(axes))
    if axes.get_aspect() == 1:
        width = height = min(width, height)
    for axis, room, across in ((axes.xaxis, width, True), (axes.yaxis, height, False)):
        if axis.get_scale() == "linear" and isinstance(axis.get_major_locator(), FixedLocator):
            _thin(axis, room, across)
    if axes.xaxis.get_scale() == "linear" and isinstance(axes.xaxis.get_major_locator(), AutoLocator):
        _thin_chosen(axes.xaxis, width)


def _thin_chosen(axis: Axis, room: float) -> None:
    """Omits x tick labels that matplotlib chose if they are too close to each other."""
    low, high = sorted(axis.get_view_interval())
    shown = [text for text in axis.get_majorticklabels() if low <= text.get_position()[0] <= high and text.get_text()]
    if len(shown) < 2:
        return
    places = [float(text.get_position()[0]) for text in shown]
    taken = _width(max((text.get_text() for text in shown), key=len), shown[0]) / room * (high - low)
    every = int(np.ceil(taken / (places[1] - places[0]) - 1e-6))
    if every > 1:
        start = next((at for at, place in enumerate(places) if not place), 0) % every
        axis.set_ticks(places[start::every], labels=[text.get_text() for text in shown[start::every]])


def _width(label: str, text: Text) -> float:
    """Width of a label in inches, in the font of a text, with a gap next to it."""
    return (len(label) + 0.5) * float(text.get_fontsize()) / 8 / CHARACTERS


def _thin(axis: Axis, room: float, across: bool) -> None:
    places, texts = list(axis.get_majorticklocs()), axis.get_majorticklabels()
    labels = [text.get_text() for text in texts]
    level = not any(text.get_rotation() for text in texts)
    if len(labels) < 2 or not level:
        return
    if not any(label.isdigit() for label in labels):
        _shrink(axis, room, across)
        return
    taken = _width(max(labels, key=len), texts[0]) if across else LINE * float(texts[0].get_fontsize()) / 72
    readable = _apart(places, labels, taken / room * float(np.ptp(axis.get_view_interval())))
    if len(readable) < len(labels):
        axis.set_ticks([places[at] for at in readable], labels=[labels[at] for at in readable])


def _shrink(axis: Axis, room: float, across: bool) -> None:
    """Shrinks row labels down to `SMALLEST` points; if they still do not fit, keeps every second, third, ... one."""
    places, texts = list(axis.get_majorticklocs()), axis.get_majorticklabels()
    step = float(np.min(np.abs(np.diff(places)))) / float(np.ptp(axis.get_view_interval()) or 1) * room
    if across or not step or LINE * float(texts[0].get_fontsize()) / 72 <= step:
        return
    axis.set_tick_params(labelsize=max(72 * step / LINE, SMALLEST))
    every = int(np.ceil(LINE * SMALLEST / 72 / step - 1e-6))
    if every > 1:
        axis.set_ticks(places[::every], labels=[text.get_text() for text in texts[::every]])


def _apart(places: Sequence[float], labels: Sequence[str], apart: float) -> list[int]:
    """Selects labels at least `apart` from each other: all letters, and every n-th number for the smallest such n."""
    letters = [at for at, label in enumerate(labels) if not label.isdigit()]
    step = float(np.min(np.abs(np.diff(places))))
    every = max(int(np.ceil(apart / step - 1e-6)), 1) if step else 1
    numbers = [at for at in range(0, len(labels), every) if at not in letters]
    free = [at for at in numbers if all(abs(places[at] - places[letter]) >= apart for letter in letters)]
    return sorted([*letters, *free])


def _break(text: Text, lines: Sequence[str], room: float) -> None:
    """Breaks lines that are longer than `room`, in inches."""
    longest = max(int(room * CHARACTERS * 8 / float(text.get_fontsize())), 8)
    if any(len(line) > longest for line in lines):
        parts = (part for line in lines for part in textwrap.wrap(line, longest, break_long_words=False))
        text.set_text("\n".join(parts))


def _inches(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in inches."""
    box, figure = axes.bbox, axes.get_figure(root=True)
    assert figure is not None
    return box.width / figure.dpi, box.height / figure.dpi
