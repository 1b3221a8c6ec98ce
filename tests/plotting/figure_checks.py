"""What is asked of every figure, whatever it shows: each check takes a figure that was drawn."""

from itertools import product
from unittest.mock import patch

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import FuncNorm
from matplotlib.legend import Legend
from matplotlib.text import Text

from moe_probe.plotting._style import DIVERGING

WIDEST, HIGHEST = 6.9, 9.8  # inches of a page's text
COLORBAR = "<colorbar>"
LEAST_ROOM, SMALLEST = 0.125, 4.99  # of a figure; points


def rendered(figure, dpi=100):
    """The pixels of a figure, (height, width, 4), and its texts as they were drawn: (text, box in pixels)."""
    drawn, original = [], Text.draw

    def draw(text, renderer):
        original(text, renderer)
        if text.get_visible() and text.get_text().strip():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with patch.object(Text, "draw", draw):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()), drawn


def check_figure(figure, stem):
    """All of the checks."""
    pixels, texts = rendered(figure)
    check_size(figure, stem)
    check_texts(figure, texts, stem)
    check_filled(pixels, stem)
    check_hatches(figure, stem)
    check_legends(figure, stem)
    check_room(figure, stem)
    check_letters(figure, stem)
    check_colors(figure, pixels, stem)
    check_centers(figure, stem)
    check_diagonals(figure, stem)


def check_size(figure, stem):
    width, height = figure.get_size_inches()
    assert width <= WIDEST + 0.01, f"{stem} is {width} in wide"
    assert height <= HIGHEST, f"{stem} is {height} in high"


def check_texts(figure, named, stem):
    """No text is cut off, at the figure's edge or by itself, and none lies over another."""
    for note in (figure.get_supxlabel(), *(text.get_text() for text in figure.texts)):
        assert not note.endswith("…"), f"{stem}: the note {note!r} is cut"
    for text, box in named:
        assert "\\math" not in text, f"{stem}: {text!r} is a formula"
        inside = box.x0 > -1.5 and box.y0 > -1.5
        inside = inside and box.x1 < figure.bbox.x1 + 1.5 and box.y1 < figure.bbox.y1 + 1.5
        assert inside, f"{stem}: {text!r} reaches beyond the figure: {box}"
    boxes = np.array([[box.x0, box.y0, box.x1, box.y1] for _, box in named])
    if not len(boxes):
        return
    wide = np.minimum(boxes[:, None, 2], boxes[None, :, 2]) - np.maximum(boxes[:, None, 0], boxes[None, :, 0])
    high = np.minimum(boxes[:, None, 3], boxes[None, :, 3]) - np.maximum(boxes[:, None, 1], boxes[None, :, 1])
    for one, other in np.argwhere(np.triu((wide > 1.5) & (high > 2.5), 1)):
        raise AssertionError(f"{stem}: {named[one][0]!r} lies over {named[other][0]!r}")
    line = np.minimum(boxes[:, 3] - boxes[:, 1], (boxes[:, 3] - boxes[:, 1])[:, None])
    level = boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1]
    words = level & np.array([" " in text.strip() for text, _ in named])
    for one, other in np.argwhere(np.triu((wide > -6) & (high > 0.8 * line) & words & words[:, None], 1)):
        raise AssertionError(f"{stem}: {named[one][0]!r} and {named[other][0]!r} read as one")


def check_filled(pixels, stem):
    """No band from top to bottom stays empty, as if panels were missing."""
    empty = (pixels[..., :3] > 250).all((0, 2))
    longest, run = 0, 0
    for column in empty:
        run = run + 1 if column else 0
        longest = max(longest, run)
    assert longest < 0.2 * len(empty), f"{stem}: {longest} of {len(empty)} columns of pixels are empty"


def check_hatches(figure, stem):
    """Hatched cells are wide enough for lines that are a thirtieth of an inch apart."""
    for axes in figure.axes:
        for cells in axes.collections:
            if cells.get_hatch() and (paths := cells.get_paths()):
                width = np.ptp(axes.transData.transform(paths[0].vertices)[:, 0])
                assert width > figure.dpi / 30, f"{stem}: hatched cells are {width} pixels wide"


def check_legends(figure, stem):
    """No legend covers axes that show data."""
    data = [axes for axes in figure.axes if axes.axison and axes.get_label() != COLORBAR and axes.has_data()]
    for legend in figure.findobj(Legend):
        box = legend.get_window_extent()
        for axes in data:
            other = axes.bbox
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide < 2 or high < 2, f"{stem}: a legend covers axes"


def check_room(figure, stem):
    """Panels have at least an eighth of the figure: names, legends and notes around them do not crowd them out."""
    panels = [axes.bbox for axes in figure.axes if axes.axison and axes.get_label() != COLORBAR and axes.has_data()]
    part = sum(box.width * box.height for box in panels) / (figure.bbox.width * figure.bbox.height)
    assert not panels or part > LEAST_ROOM, f"{stem}: panels have {part:.0%} of the figure"


def check_letters(figure, stem):
    """No text is smaller than 5 points."""
    for text in figure.findobj(Text):
        size = text.get_fontsize()
        assert size >= SMALLEST or not text.get_text().strip(), f"{stem}: {text.get_text()!r} has {size:.1f} points"


def maps(figure):
    """Axes and image of every map of numbers."""
    for axes in figure.axes:
        for image in axes.get_images():
            if image.get_array().ndim == 2:
                yield axes, image


def check_colors(figure, pixels, stem, sample=200):
    """Cells of maps have the colors of their numbers: of those sampled, nearly all, as marks cover a few."""
    rng = np.random.default_rng(0)
    for axes, image in maps(figure):
        assert image.get_interpolation() == "nearest", stem
        values = np.ma.filled(np.ma.masked_invalid(np.asarray(image.get_array(), float)), np.nan)
        left, right, bottom, top = image.get_extent()
        rows, columns = rng.integers(0, values.shape[0], sample), rng.integers(0, values.shape[1], sample)
        x = left + (columns + 0.5) / values.shape[1] * (right - left)
        down = (rows + 0.5) / values.shape[0]
        y = bottom + down * (top - bottom) if image.origin == "lower" else top + down * (bottom - top)
        places = axes.transData.transform(np.stack([x, y], 1))
        cells = axes.bbox.width / values.shape[1], axes.bbox.height / values.shape[0]
        if min(cells) < 5:
            continue  # smaller than pixels can tell
        expected = image.cmap(image.norm(np.ma.masked_invalid(values[rows, columns])), bytes=True).astype(int)
        right_color = np.zeros(sample, bool)
        for across, up in product((-0.3, -0.1, 0.1, 0.3), repeat=2):
            at = places + np.array([across, up]) * cells
            seen = pixels[(figure.bbox.height - at[:, 1]).astype(int), at[:, 0].astype(int)].astype(int)
            right_color |= np.abs(seen - expected)[:, :3].max(1) <= 3
        covered = [other for other in axes.get_images() if other is not image]
        own = np.ones(sample, bool)
        for cover in covered:
            own &= np.asarray(cover.get_array())[rows, columns, 3] == 0
        right_color |= ~own
        assert right_color.mean() > 0.9, f"{stem}: {right_color.mean():.0%} of cells have their colors"


def check_centers(figure, stem):
    """Diverging colors have their middle at 1, of a ratio, or at 0."""
    for _, image in maps(figure):
        if image.cmap.name == DIVERGING:
            middle = 1.0 if isinstance(image.norm, FuncNorm) else 0.0
            np.testing.assert_allclose(image.norm(middle), 0.5, err_msg=stem)


def check_diagonals(figure, stem):
    """Cells of experts with themselves, where they are covered, do not stretch the colors."""
    shown = {}
    for axes, image in maps(figure):
        covers = [np.asarray(other.get_array()) for other in axes.get_images() if other.get_array().ndim == 3]
        if covers:
            values, same = np.asarray(image.get_array(), float), covers[0][..., 3] > 0
            shown.setdefault(image.get_clim(), []).append((values[~same], values[same]))
    for (_, high), parts in shown.items():
        others, same = (np.concatenate(each) for each in zip(*parts, strict=True))
        if np.isfinite(others).any() and np.nanmax(others) < np.nanmin(same) - 1e-6:
            assert high < np.nanmin(same), stem
