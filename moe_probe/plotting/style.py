"""The look that all figures share: readable at column width, fonts embedded, colour-blind-safe colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis

COLUMN, PAGE = 3.3, 6.9  # widths of a single and a double column, inches
COLORMAP = "viridis"
DIVERGING = "PuOr"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
PROJECTION_COLORS = {"up": BLUE, "gate": ORANGE, "down": GREEN}
MAX_TICKS = 9
RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's style, and leave matplotlib's settings as they were."""
    with matplotlib.rc_context(RC):
        yield


def label_ticks(axes: Axes, labels: Sequence[str], x: bool = True, y: bool = True) -> None:
    """Tick labels at the cells of a heat map, thinned to about nine; the last label, if it is a letter, stays."""
    step = -(-len(labels) // MAX_TICKS)
    at = list(range(0, len(labels), step))
    letters = [i for i, label in enumerate(labels) if not label.isdigit()]
    at = [i for i in at if not any(0 < abs(i - letter) < step for letter in letters)]
    at = sorted({*at, *letters})
    axes.set_xticks(at, [labels[i] for i in at] if x else [])
    axes.set_yticks(at, [labels[i] for i in at] if y else [])


def thin_ticks(axis: Axis, labels: Sequence[str], most: int = MAX_TICKS) -> None:
    """Tick labels 0, 1, 2, ... along one axis, thinned to about `most`."""
    at = range(0, len(labels), -(-len(labels) // most))
    axis.set_ticks(list(at), [labels[i] for i in at])
