"""Figures of the static analyses: complete, readable, and made of nothing but the Dataset."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from moe_probe import plotting, static
from moe_probe.errors import InputError


@pytest.fixture(scope="module")
def results(mixtral, mistral):
    return [
        static.similarity(mixtral, baseline=mistral),
        static.similarity(mixtral, "neuron_aligned", layers=0),
        static.gate_similarity(mixtral),
        static.gate_regression(mixtral),
        static.pca(mixtral, baseline=mistral, outliers=(1.0, 2)),
        static.pca(mixtral, "neuron", n_components=3, layers=0),
        static.router_spectrum(mixtral),
    ]


def test_every_figure_has_all_its_text_inside(results):
    stems = []
    for dataset in results:
        before = dataset.copy(deep=True)
        for stem, figure in plotting.figures(dataset):
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
            stems.append(stem)
            box, tight = figure.bbox_inches, figure.get_tightbbox()
            assert tight.x0 > -0.05, stem
            assert tight.y0 > -0.05, stem
            assert tight.x1 < box.x1 + 0.05, stem
            assert tight.y1 < box.y1 + 0.05, stem
        assert dataset.identical(before)
    assert len(stems) == len(set(stems))


def test_figures_embed_their_fonts(results, tmp_path):
    for dataset in results:
        path = tmp_path / "figure.pdf"
        _, figure = next(iter(plotting.figures(dataset)))
        figure.savefig(path)
        content = path.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content


def test_one_scale_for_all_layers_spans_every_layer(results):
    similarity = results[0]
    pairs = similarity.cosine.where(similarity.expert != similarity.other)
    for scale, values in (("all", pairs), ("layer", pairs.sel(layer=2))):
        image = plotting.plot(similarity, layer=2, scale=scale).axes[0].images[0]
        np.testing.assert_allclose(image.get_clim(), (values.min(), values.max()))
    with pytest.raises(InputError, match="no scale 'both'; there are layer, all"):
        plotting.plot(similarity, scale="both")


def test_ticks_of_many_experts_are_thinned_and_keep_the_shared_block():
    labels = [*map(str, range(256)), "S"]
    cosine = np.random.default_rng(0).uniform(size=(1, 1, 257, 257))
    dims = ("layer", "projection", "expert", "other")
    coords = {"layer": [4], "projection": ["up"], "expert": labels, "other": labels}
    attrs = {"analysis": "similarity", "metric": "cosine", "level": "neuron_mean", "model": "m"}
    axes = plotting.plot(xr.Dataset({"cosine": (dims, cosine)}, coords, attrs)).axes[0]
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(ticks) <= 12
    assert ticks[-1] == "S"


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("experts", [8, 64, 256])
def test_labels_of_points_do_not_overlap(experts, components):
    points = np.random.default_rng(0).standard_t(2, size=(1, 1, experts, components))
    variables = {
        "coordinates": (("layer", "projection", "point", "component"), points),
        "explained_variance_ratio": (("layer", "projection", "component"), np.full((1, 1, components), 0.1)),
    }
    coords = {"layer": [4], "projection": ["up"], "expert": ("point", [str(e) for e in range(experts)])}
    attrs = {"analysis": "pca", "level": "matrix", "model": "m"}
    figure = plotting.plot(xr.Dataset(variables, coords, attrs))
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    boxes = [text.get_window_extent() for text in labels]
    assert len(boxes) == experts if experts == 8 else len(boxes) > 10
    for at, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:at])


def test_a_single_layer_is_the_only_tick_of_its_axis(results):
    axes = plotting.similarity.overview(results[0].isel(layer=[1])).axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [int(results[0].layer[1])]


def test_an_unknown_analysis_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="gate_similarity"):
        plotting.plot(xr.Dataset(attrs={"analysis": "nonesuch"}))
