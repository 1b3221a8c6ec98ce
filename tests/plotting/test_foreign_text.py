"""Labels, tokens and names that others wrote: drawn as they are, or as the codes of their characters."""

import logging
import warnings

import pytest
import results_by_hand as by_hand
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from moe_probe import plotting
from moe_probe.plotting import _style
from moe_probe.plotting._style import drawable

HOSTILE = [
    "$a_{$",
    r"$\b$",
    "数学",
    "👩‍👩‍👧",
    "\x1b[31m\x07",
    "\u202eabc",
    "a\0b",
    "\udc80",
    "x_^\\frac{1}",
    "",
    "L" * 3000,
]


@pytest.fixture(autouse=True)
def nothing_is_warned_of(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        yield
    assert not caplog.records


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(_style.Text) if text.get_text()]


@pytest.mark.parametrize(
    "dataset",
    [
        by_hand.expert_load(labels=HOSTILE, layers=1),
        by_hand.task_load(tasks=HOSTILE, layers=1),
        by_hand.router_saturation(HOSTILE),
        by_hand.similarity(layers=1),
    ],
    ids=lambda dataset: dataset.attrs["analysis"],
)
@pytest.mark.parametrize("suffix", ["pdf", "png"])
def test_any_label_and_name_can_be_drawn(dataset, suffix, tmp_path):
    for stem, figure in plotting.figures(dataset.assign_attrs(model="$\\b$ 数_" + "x" * 300)):
        figure.savefig(tmp_path / f"{stem}.{suffix}")
        assert max(len(line) for text in texts_of(figure) for line in text.split("\n")) < 160


def test_a_dollar_sign_is_a_dollar_sign_and_a_missing_glyph_is_named():
    figure = plotting.plot(by_hand.task_load(tasks=["cost $5", "and $6", "数"], layers=1))
    figure.draw_without_rendering()
    texts = texts_of(figure)
    assert {"cost $5", "and $6", "<U+6570>"} <= set(texts)
    assert not any(text.get_parse_math() for text in figure.findobj(_style.Text) if text.get_text())


def test_numbers_on_logarithmic_axes_need_no_formula():
    axes = _style.Figure().subplots()
    axes.set_yscale("symlog")
    axes.set_ylim(0, 1e4)
    from moe_probe.plotting._lines import plain_numbers

    plain_numbers(axes)
    axes.figure.draw_without_rendering()
    assert "1000" in [label.get_text() for label in axes.get_yticklabels()]


def test_a_font_of_the_machine_that_has_the_glyph_writes_it(tmp_path, monkeypatch):
    pen = TTGlyphPen(None)
    for point in ((0, 0), (500, 0), (500, 700)):
        (pen.moveTo if point == (0, 0) else pen.lineTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "one"])
    builder.setupCharacterMap({0x6570: "one"})
    builder.setupGlyf({name: pen.glyph() for name in (".notdef", "one")})
    builder.setupHorizontalMetrics({name: (600, 0) for name in (".notdef", "one")})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Glyph", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "one.ttf")
    monkeypatch.setattr(_style, "FONTS", (*_style.FONTS, "One Glyph"))
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "one.ttf")
    try:
        assert drawable("数学") == "数<U+5B66>"
        figure = plotting.plot(by_hand.task_load(tasks=["数学", "b"], layers=1))
        figure.savefig(tmp_path / "figure.pdf")
        assert "数<U+5B66>" in texts_of(figure)
    finally:
        fontManager.ttflist = before


def test_matplotlibs_own_settings_stay():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plotting.plot(by_hand.similarity()).draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
