"""The style of all figures: readable at column width, embedded fonts, color-blind-safe colors, any script."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter

from moe_probe.plotting._fitting import fit_texts
from moe_probe.shown import printable

COLUMN, PAGE = 3.3, 6.9  # widths of a single and a double column, inches
COLORMAP = "viridis"
DIVERGING = "PuOr"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
PURPLE, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
OKABE_ITO = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, "#000000")  # beyond these, what is picked has colors
PROJECTION_COLORS = {"up": BLUE, "gate": ORANGE, "down": GREEN}
MAX_TICKS = 9
LONGEST_LINE, LONGEST_TICK = 20, 28  # characters: of a line, an inch of the figure; of a tick's label
RC = matplotlib.rc_params_from_file(Path(__file__).with_name("moe_probe.mplstyle"), use_default_template=False)
# fonts that are tried in this order for what the first one cannot write; those that are not there are skipped
FONTS = (
    *("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP"),
    *("Noto Sans KR", "Source Han Sans SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "Arial Unicode MS", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol"),
)


@contextmanager
def style() -> Iterator[None]:
    """A context that draws in the project's style, and restores matplotlib's settings afterwards.

    A dollar sign stays a dollar sign: labels come from users and tokenizers, and are not formulas.
    """
    look: Any = {**RC, "text.parse_math": False, "font.family": list(_present_fonts(len(fontManager.ttflist)))}
    with matplotlib.rc_context(look):
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """A context without garbage collection, which takes a quarter of a page's time: its 100,000 objects are in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@lru_cache(maxsize=4)
def _present_fonts(count: int) -> tuple[str, ...]:
    """The fonts among `FONTS` that this machine has; `count`, the number of all its fonts, keys the cache."""
    there = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FONTS if name in there)


@cache
def _characters(path: Any) -> frozenset[int]:
    """The characters that a font file has glyphs for."""
    return frozenset(get_font(path).get_charmap())


@lru_cache(maxsize=64)
def _writable(families: tuple[str, ...], count: int) -> frozenset[int]:
    """The characters that some font of `families` has glyphs for; `count`, the number of all fonts, keys the cache."""
    paths = fontManager._find_fonts_by_props(FontProperties(family=list(families)))
    return frozenset().union(*(_characters(path) for path in paths))


def drawable(text: str, families: Sequence[str] | None = None, longest: int = LONGEST_TICK) -> str:
    r"""Returns a text that fonts can draw: characters without a glyph become their codes, long lines are cut.

    Args:
        text: any text; its line ends stay.
        families: names of fonts; by default those of `style()`.
        longest: most characters per line.

    Examples:
        >>> drawable("a\u202eb \U0001f9e0")
        'a\\u202eb <U+1F9E0>'
    """
    if text.isascii() and text.isprintable() and len(text) <= longest:
        return text
    count = len(fontManager.ttflist)
    known = _writable(tuple(families or _present_fonts(count)), count)
    lines = printable(text, keep="\n").split("\n")
    shown = ["".join(c if ord(c) in known else f"<U+{ord(c):04X}>" for c in line) for line in lines]
    return "\n".join(line if len(line) <= longest else line[: longest - 1] + "…" for line in shown)


class Figure(matplotlib.figure.Figure):
    """A figure that keeps the project's style when it is drawn and saved, and that notebooks display.

    It embeds fonts as TrueType, and draws characters that no font has as their codes.
    """

    _fitted = False  # whether texts are fitted into their axes

    def draw(self, renderer: RendererBase) -> None:
        """As matplotlib's."""
        with style():
            _make_drawable(self)
            if not self._fitted:
                fit_texts(self)
                self._fitted = True
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """As matplotlib's."""
        with style(), uncollected():
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


def _make_drawable(figure: matplotlib.figure.Figure) -> None:
    """Rewrites texts of a figure that cannot be drawn, including fixed tick labels."""
    for axes in figure.axes:
        for axis in axes._axis_map.values():
            if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
                _rewrite_ticks(axis)
    longest = int(LONGEST_LINE * figure.get_figwidth())
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (shown := drawable(text.get_text(), text.get_fontfamily(), longest)) != text.get_text():
            text.set_text(shown)


def _rewrite_ticks(axis: Axis) -> None:
    places, labels = axis.get_majorticklocs(), [label.get_text() for label in axis.get_majorticklabels()]
    families = axis.get_majorticklabels()[0].get_fontfamily() if labels else None
    shown = [drawable(label, families) for label in labels]
    if shown != labels and len(shown) == len(places):
        axis.set_ticks(places, labels=shown)


def label_ticks(axes: Axes, labels: Sequence[str], x: bool = True, y: bool = True, most: int = MAX_TICKS) -> None:
    """Sets tick labels at the cells of a square map, thinned to `most`; the last label, if it is a letter, stays."""
    at = round_places(labels, most)
    letters = [i for i, label in enumerate(labels) if not label.isdigit()]
    if 0 < len(letters) <= 2:
        apart = max(len(labels) // most, 1)
        at = sorted({*(i for i in at if all(abs(i - letter) >= apart for letter in letters)), *letters})
    axes.set_xticks(at, [labels[i] for i in at] if x else [])
    axes.set_yticks(at, [labels[i] for i in at] if y else [])


def thin_ticks(axis: Axis, labels: Sequence[str], most: int = MAX_TICKS) -> None:
    """Sets tick labels 0, 1, 2, ... along one axis, thinned to about `most`."""
    at = round_places(labels, most)
    axis.set_major_locator(FixedLocator(at))  # makes no ticks yet, as set_ticks does: small multiples have thousands
    axis.set_major_formatter(FixedFormatter([labels[i] for i in at]))


def round_places(labels: Sequence[str], most: int = MAX_TICKS) -> list[int]:
    """Positions of at most `most` labels: numbers that are multiples of 1, 2, 4, 8, ..., others evenly spaced.

    Examples:
        >>> round_places([str(number) for number in range(48)])
        [0, 8, 16, 24, 32, 40]
    """
    numbers = [int(label) if label.isascii() and label.isdigit() else None for label in labels]
    rising = [number for number in numbers if number is not None]
    if len(rising) > len(labels) // 2 and rising == sorted(rising):
        step = 1
        while sum(number % step == 0 for number in rising) > most:
            step *= 2
        at = [i for i, number in enumerate(numbers) if number is not None and number % step == 0]
        if len(at) > 1 or len(labels) == 1:
            return at
    return list(range(0, len(labels), -(-len(labels) // most)))
