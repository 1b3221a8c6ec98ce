"""Colors, scales and intervals say what the numbers say."""

import io

import numpy as np
import pytest
import results_by_hand as by_hand
from figure_checks import rendered
from PIL import Image

from moe_probe import plotting
from moe_probe.errors import InputError, NoSuchName, NotFitting, WrongType
from moe_probe.plotting import _lines

ALL = [by_hand.expert_load, by_hand.coactivation, by_hand.similarity, by_hand.norm_score_ranks]
ALL += [by_hand.router_scores, by_hand.task_load, by_hand.router_saturation, by_hand.token_specialization]


@pytest.mark.parametrize("make", ALL)
def test_no_map_is_interpolated(make):
    for _, figure in plotting.figures(make()):
        for axes in figure.axes:
            assert {image.get_interpolation() for image in axes.images} <= {"nearest"}


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_maps_of_one_value_have_one_color(value):
    ds = by_hand.similarity(layers=1)
    figure = plotting.plot(ds.assign(cosine=ds.cosine * 0 + value), layer=0)
    rendered(figure)
    images = [image for axes in figure.axes for image in axes.images if image.get_array().ndim == 2][:3]
    colors = {tuple(image.to_rgba(np.array([value]))[0]) for image in images}
    assert len(images) == 3
    assert len(colors) == 1


@pytest.mark.parametrize("chance", [0.0, np.nan])
def test_a_lift_without_chance_is_drawn_around_one(chance):
    ds = by_hand.coactivation()
    ds["chance_lift"] = ds.chance_lift * 0 + chance
    image = plotting.plot(ds).axes[0].images[0]
    low, high = image.get_clim()
    assert low * high == pytest.approx(1)


@pytest.mark.parametrize("dpi", [100, 150, 300])
def test_a_blank_diagonal_has_no_gaps_where_cells_are_smaller_than_pixels(dpi):
    figure = plotting.plot(by_hand.similarity(256, 1), layer=0)
    pixels, _ = rendered(figure, dpi)
    axes, at = figure.axes[0], np.linspace(0.5, 254.5, 2000)
    x, y = axes.transData.transform(np.stack([at, at], 1)).T
    seen = pixels[(figure.bbox.height - y).astype(int), x.astype(int), :3]
    assert np.quantile(seen.min(1), 0.05) > 100  # the map's own colors have less of red or of blue


@pytest.mark.parametrize("count", [64, 256])
def test_two_values_give_two_colours(count):
    ds = by_hand.expert_load(count, 1, ["a", "b", "c"]).drop_vars("label_share_low")
    ds.label_share[:] = 0.5 / count
    ds.label_share[:, 1] = 2 / count
    figure = plotting.expert_load.by_label(ds, 0)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    picture = np.asarray(Image.open(buffer).convert("RGB"))
    box, (height, width) = figure.axes[0].get_position(), picture.shape[:2]
    rows = slice(int(height * (1 - box.y1)) + 4, int(height * (1 - box.y0)) - 4)
    assert len({tuple(color) for color in picture[rows, int(width * (box.x0 + box.x1) / 2)]}) == 2


def color_of(figure, value):
    image = figure.axes[0].images[0]
    return np.array(image.cmap(image.norm(value))[:3])


@pytest.mark.parametrize(("make", "even"), [(by_hand.expert_load, 1.0), (by_hand.coactivation, 1.0)])
def test_a_ratio_is_white_where_nothing_happens_and_symmetric_in_its_logarithm(make, even):
    figure = plotting.plot(make())
    image = figure.axes[0].images[0]
    assert color_of(figure, even).min() > 0.95
    np.testing.assert_allclose(np.log2([image.norm.vmin / even, image.norm.vmax / even]).sum(), 0, atol=1e-9)
    np.testing.assert_allclose(image.norm(even), 0.5)
    assert color_of(figure, 0.0).min() < 0.2  # never chosen: the far end, not white
    figure.draw_without_rendering()


def test_a_ratio_that_is_even_or_undefined_everywhere_can_be_drawn():
    ds = by_hand.coactivation()
    for value in (0.57, 0.0, np.nan):
        plotting.plot(ds.assign(lift=ds.lift * 0 + value)).draw_without_rendering()


def test_counts_start_at_zero():
    figure = plotting.plot(by_hand.norm_score_ranks(128))
    assert figure.axes[0].images[0].get_clim()[0] == 0
    figure = plotting.plot(by_hand.task_load())
    assert [axes.get_ylim()[0] for axes in figure.axes] == [0, 0]
    points = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(points, by_hand.task_load().ffn_per_token[0])
    bars = figure.axes[1].collections[0].get_segments()
    assert max(segment[:, 1].max() for segment in bars) <= figure.axes[1].get_ylim()[1]


def test_colours_of_similarity_are_of_different_experts_and_the_diagonal_is_blank():
    ds = by_hand.similarity(layers=1)
    pairs = ds.cosine.where(ds.expert != ds.other)
    figure = plotting.plot(ds)
    values, cover = figure.axes[0].images
    np.testing.assert_allclose(values.get_clim(), (pairs.min(), pairs.max()))
    np.testing.assert_allclose(values.get_array(), ds.cosine[0, 0])
    np.testing.assert_array_equal(cover.get_array()[..., 3], np.eye(8))
    figure = plotting.plot(ds, diagonal=True)
    assert figure.axes[0].images[0].get_clim()[1] == 1
    assert len(figure.axes[0].images) == 1


def test_undefined_similarities_are_drawn():
    ds = by_hand.similarity()
    for where in ((0, 0, 2), (0,), ()):
        ds.cosine[where] = np.nan
        plotting.plot(ds).draw_without_rendering()


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_intervals_can_be_seen_however_many_layers_there_are(layers):
    ds = by_hand.token_specialization(layers=layers)
    axes = plotting.plot(ds).axes[1]
    if layers < _lines.FEW:
        (bars,) = [c.get_segments() for c in axes.collections if len(c.get_segments()[0]) == 2][:1]
        ends = np.sort([segment[:, 1] for segment in bars], axis=1).T
        np.testing.assert_allclose(ends, [ds.context_independence_low, ds.context_independence_high])
        strokes = axes.collections[-1].get_segments()
        assert all(np.ptp(segment[:, 0]) > 0.3 for segment in strokes)
    else:
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(
            [band.min(), band.max()], [ds.context_independence_low.min(), ds.context_independence_high.max()]
        )


@pytest.mark.parametrize("make", ALL)
def test_part_of_a_result_is_drawn_or_refused_in_one_sentence(make):
    ds = make()
    for part in (ds.mean("layer"), ds[[]], ds.isel(layer=0, drop=True)):
        part = part.assign_attrs(ds.attrs)
        with pytest.raises(NotFitting, match=r"pass|keep"):
            plotting.plot(part)
        with pytest.raises(NotFitting):
            list(plotting.figures(part))
    assert plotting.plot(ds.isel(layer=[0]))
    assert plotting.plot(ds.isel(layer=0))


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (by_hand.similarity, {"layer": 99}, "no layer 99; there are 0, 1"),
        (by_hand.similarity, {"scale": "al"}, "no scale 'al'; did you mean 'all'"),
        (by_hand.similarity, {"variable": "cosin"}, "no variable 'cosin'; did you mean 'cosine'"),
        (by_hand.similarity, {"layr": 0}, "no option of the plot of similarity 'layr'; did you mean 'layer'"),
        (by_hand.coactivation, {"variable": "sum"}, "no variable 'sum'; there are lift"),
        (by_hand.norm_score_ranks, {"layer": 7}, "no layer 7"),
        (by_hand.task_load, {"layer": 7}, "no layer 7"),
        (by_hand.router_scores, {"layer": 7}, "no layer 7"),
    ],
)
def test_options_are_taken_or_refused(make, options, sentence):
    with pytest.raises(NoSuchName, match=sentence):
        plotting.plot(make(), **options)


def test_what_is_no_result_is_refused():
    with pytest.raises(WrongType, match="not DataArray"):
        plotting.plot(by_hand.similarity().cosine)
    with pytest.raises(NoSuchName, match="no plot for the analysis 'record'"):
        plotting.plot(by_hand.similarity().assign_attrs(analysis="record"))
    with pytest.raises(InputError, match=r"lacks|has no variables"):
        plotting.plot(by_hand.similarity().drop_vars("cosine"))


def test_every_result_has_its_module_and_its_helpers_are_none():
    assert "similarity" in plotting.names()
    assert not [name for name in plotting.names() if name.startswith("_")]
    for name in plotting.names():
        module = getattr(plotting, name)
        assert callable(module.plot)
        assert callable(module.figures)
    _, values = plotting.summary(by_hand.expert_load())
    assert values.dims == ("layer", "measure")
    assert plotting.summary(by_hand.coactivation()) is None
