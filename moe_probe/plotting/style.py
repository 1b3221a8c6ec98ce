"""The look that all figures share: readable at column width, fonts embedded, colour-blind-safe colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.axis import Axis

COLUMN, PAGE = 3.3, 6.9  # widths of a single and a double column, inches
COLORMAP = "viridis"
DIVERGING = "PuOr"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
PROJECTION_COLORS = {"up": BLUE, "gate": ORANGE, "down": GREEN}
MAX_TICKS = 9
RC = matplotlib.rc_params_from_file(Path(__file__).with_name("moe_probe.mplstyle"), use_default_template=False)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's style, and leave matplotlib's settings as they were."""
    with matplotlib.rc_context(RC):
        yield


class Figure(matplotlib.figure.Figure):
    """A figure that keeps the project's style when it is saved (fonts embedded as TrueType) and shows in notebooks."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """As matplotlib's."""
        with style():
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


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
