"""Options that all plot functions share: axes, size, names and title."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self, TypedDict

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import FigureBase

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.plotting._fitting import NARROW
from moe_probe.plotting._style import COLUMN, LONGEST_LINE, Figure, style
from moe_probe.signatures import check_number, check_types

TITLE = 0.2  # inches
FOLDED = 4  # panels that stand two by two in a narrow figure
NOTE = {"fontsize": 6, "color": "0.35"}
KEY_LINE, HANDLE = 16, 7  # characters: of an inch of a legend; that a handle and what is left beside it take
Drawn = Any  # the Figure; where axes were given, those


class Look(TypedDict, total=False):
    """Keyword options that every plot function takes.

    Attributes:
        ax: axes to draw on, for a figure of one panel; the plot returns them.
        axes: axes to draw on, one for each panel, row by row; the plot returns them.
        figure: a figure or subfigure to draw in; the plot returns it, with its default size as `natural_size`.
        figsize: width and height in inches; by default column width (3.3) or page width (6.9).
        labels: new names for models, checkpoints, document labels and the like: `{"mixtral": "Mixtral 8x7B"}`.
        title: a title; True for model and layer; none by default, because papers have captions.
    """

    ax: Axes | None
    axes: Sequence[Axes] | np.ndarray | None
    figure: FigureBase | None
    figsize: tuple[float, float] | None
    labels: Mapping[str, str] | None
    title: str | bool | None


class Page:
    """A figure under construction, or given axes; as a context, it draws in the project's style.

    Attributes:
        ds: the result, with the names of `labels`.
        figure: the figure, once it has panels.
    """

    figure: Any

    def __init__(self, ds: xr.Dataset, look: Look) -> None:
        check_look(look)
        self.ds = relabelled(ds, look.get("labels") or {})
        self.look = look
        self.given = _given(look)
        self._notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(style())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def panels(
        self, rows: int = 1, columns: int = 1, size: tuple[float, float] = (COLUMN, 2.4), **options: Any
    ) -> np.ndarray:
        """Returns axes (rows, columns): new ones, or those given; narrow figures arrange four in a row two by two.

        Raises:
            NotFitting: the number of given axes is not that of the panels.
        """
        if self.given is not None:
            if len(self.given) != rows * columns:
                raise NotFitting(
                    f"This figure has {rows * columns} panels, and {len(self.given)} axes were given; pass axes= with "
                    "one for each, or none."
                )
            self.figure = self.given[0].get_figure(root=False)
            return np.array(self.given, object).reshape(rows, columns)
        above = TITLE if self.look.get("title") else 0
        natural_size = (size[0], size[1] + above)
        self.figure = self.look.get("figure")
        if self.figure is None:
            self.figure = Figure(figsize=self.look.get("figsize") or natural_size, layout="constrained")
        else:
            self.figure.natural_size = natural_size
        if rows == 1 and columns == FOLDED and self.narrow and "gridspec_kw" not in options:
            return self.figure.subplots(2, columns // 2, squeeze=False, **options).reshape(rows, columns)
        return self.figure.subplots(rows, columns, squeeze=False, **options)

    def panel(self, size: tuple[float, float] = (COLUMN, 2.4), **options: Any) -> Axes:
        """Returns the axes of a figure of one panel."""
        return self.panels(size=size, **options)[0, 0]

    def colorbar(self, image: ScalarMappable, axes: Any, label: str, **options: Any) -> Colorbar:
        """Adds a color bar next to axes."""
        where = list(np.ravel(axes)) if np.size(axes) > 1 else np.ravel(axes)[0]
        return self.figure.colorbar(image, ax=where, label=label, **options)

    def legend(self, *axes: Axes, title: str | None = None, columns: int | None = None) -> None:
        """Adds one legend for several axes above all panels, with each name once."""
        named: dict[str, Any] = {}
        for each in axes:
            for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
        self.key(list(named.values()), list(named), title, columns)

    def key(
        self, handles: Sequence[Any], names: Sequence[str], title: str | None = None, columns: int | None = None
    ) -> None:
        """Adds a legend of handles with names, above all panels."""
        if not handles:
            return
        most = min(columns or len(names), _beside(names, self.width * KEY_LINE))
        columns = -(-len(names) // -(-len(names) // most))  # as many in every row
        look: dict[str, Any] = {"frameon": False, "ncols": columns, "title": title}
        if self.given is not None:
            self.given[0].legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, **look)
        else:
            self.figure.legend(handles, names, loc="outside upper center", borderaxespad=0.2, **look)

    def note(self, *lines: str) -> None:
        """Adds an explanation of marks below all panels, unless the axes were given."""
        self._notes += [line for line in lines if line]

    def finish(self, title: str = "") -> Drawn:
        """Adds title and notes; returns the figure, or the axes that were given."""
        asked = self.look.get("title")
        text = title if asked is True else asked or ""
        if self.given is not None:
            if text:
                self.given[0].set_title(text)
            return self.given[0] if self.look.get("ax") is not None else self.look.get("axes")
        if text:
            self._write_title(text)
        if self._notes:
            notes = textwrap.wrap("; ".join(dict.fromkeys(self._notes)), int(self.width * LONGEST_LINE))
            self.figure.supxlabel("\n".join(notes), **NOTE)
        return self.figure

    def _write_title(self, text: str) -> None:
        """Writes the title; if there is a legend, as its title, because matplotlib would put both at one place."""
        if self.figure.legends:
            self.figure.legends[0].set_title(text, prop={"size": "medium"})
        else:
            self.figure.suptitle(text)

    @property
    def narrow(self) -> bool:
        """Whether the figure's width is closer to a column than to a page."""
        return self.width < NARROW

    @property
    def width(self) -> float:
        """Width of the whole figure in inches."""
        root = self.figure.figure if self.given is None else self.given[0].figure
        return float(root.get_figure(root=True).get_figwidth())


def _beside(names: Sequence[str], room: float) -> int:
    """Largest number of legend columns, filled one after the other, that fit into `room` characters."""
    for columns in range(len(names), 1, -1):
        parts = np.array_split(np.array([len(name) for name in names]), columns)
        if sum(part.max() + HANDLE for part in parts) <= room:
            return columns
    return 1


def check_look(look: Look) -> None:
    """Raises an error if an option is not one that every plot function takes.

    Raises:
        NoSuchName: a name is not one of those of `Look`.
        WrongType: a value is of another type.
        OutOfRange: a side of `figsize` is not positive.
        NotFitting: more than one of `ax`, `axes` and `figure` is given, or `axes` is empty.
    """
    for name in look:
        if name not in Look.__annotations__:
            raise NoSuchName.among("option of this plot", name, Look.__annotations__)
    check_types(Look, dict(look))
    for side in look.get("figsize") or ():
        check_number("figsize", side, 0.5, 100, whole=False)
    if sum(look.get(name) is not None for name in ("ax", "axes", "figure")) > 1:
        raise NotFitting("ax, axes and figure all say where to draw; pass one of them.")
    axes = look.get("axes")
    if axes is not None and not all(isinstance(each, Axes) for each in np.ravel(np.asarray(axes, object))):
        raise NotFitting("axes holds something other than axes of matplotlib; pass those of figure.subplots().")
    if axes is not None and not np.size(np.asarray(axes, object)):
        raise NotFitting("axes is empty; pass one for each panel.")


def _given(look: Look) -> list[Axes] | None:
    if (ax := look.get("ax")) is not None:
        return [ax]
    axes = look.get("axes")
    return None if axes is None else list(np.ravel(np.asarray(axes, object)))


def relabelled(ds: xr.Dataset, labels: Mapping[str, str]) -> xr.Dataset:
    """Returns a result with other names for its models, labels and other strings."""
    if not labels:
        return ds
    attrs = {name: labels.get(value, value) if isinstance(value, str) else value for name, value in ds.attrs.items()}
    attrs["analysis"] = ds.attrs["analysis"]
    named = {
        name: (coordinate.dims, [labels.get(str(each), str(each)) for each in coordinate.values])
        for name, coordinate in ds.coords.items()
        if coordinate.dtype.kind in "UO" and coordinate.ndim == 1
    }
    return ds.assign_coords(named).assign_attrs(attrs)
