"""What every plot function takes and gives back, whatever it shows; several models in one figure."""

import inspect

import gallery
import numpy as np
import pytest
import results_by_hand as by_hand
from budget import one_in_three
from figure_checks import check_figure, check_texts, maps, rendered
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from moe_probe import plotting
from moe_probe.errors import NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.plotting._lines import said_of_intervals

KINDS = plotting.names()


def functions():
    """Every public function that draws one figure, by module and name."""
    for name in KINDS:
        module = getattr(plotting, name)
        for each, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and str(inspect.signature(function)).endswith("-> 'Drawn'"):
                yield name, each


def test_names_beside_low_rows_shrink_and_only_then_make_room():
    ds = gallery.resized(gallery.example("score_agreement"), 128, 48)
    names = ds.sizes["score"]
    for height, size, shown in ((4.6, 7, names), (3.2, None, names), (2.2, 5, names // 2)):
        figure = plotting.plot(ds, figsize=(3.3, height))
        _, texts = rendered(figure)
        check_texts(figure, texts, f"{height} in")
        labels = figure.axes[0].get_yticklabels()
        assert len(labels) == shown
        assert 5 <= labels[0].get_fontsize() <= 7
        assert size is None or labels[0].get_fontsize() == size


def test_experts_of_a_narrow_row_have_their_numbers_each():
    figure = plotting.plot(gallery.example("intermediate_states"))
    rendered(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [str(expert) for expert in range(8)]


@pytest.mark.parametrize(("name", "function"), functions())
def test_every_plot_function_takes_the_same_options(name, function):
    parameters = inspect.signature(getattr(getattr(plotting, name), function)).parameters
    assert next(iter(parameters)) == "ds"
    assert parameters["look"].annotation == "Unpack[Look]"


def panels(figure):
    twins = [axes for axes in figure.axes if axes.yaxis.get_label_position() == "right" and axes.has_data()]
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes not in twins]


@pytest.mark.parametrize("name", one_in_three(KINDS))
def test_axes_that_are_given_are_drawn_on_and_come_back(name):
    ds = gallery.example(name)
    count = len(panels(plotting.plot(ds)))
    kind = {"subplot_kw": {"projection": "3d"}} if name == "pca" else {}
    figure = Figure(figsize=(9, 9))
    axes = figure.subplots(1, count, squeeze=False, **kind)
    assert plotting.plot(ds, axes=axes) is axes
    assert all(each.get_children() for each in axes.ravel())
    rendered(figure)
    if count == 1:
        alone = Figure().subplots(**kind)
        assert plotting.plot(ds, ax=alone) is alone
    with pytest.raises(NotFitting, match=f"has {count} panels, and {count + 1} axes were given"):
        plotting.plot(ds, axes=Figure().subplots(1, count + 1))


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_size_and_title_are_those_asked_for(name):
    figure = plotting.plot(gallery.example(name), figsize=(5, 4.5), title="What is seen")
    np.testing.assert_allclose(figure.get_size_inches(), (5, 4.5))
    written = [text for text, _ in rendered(figure)[1]]
    assert "What is seen" in written
    plain = [text for text, _ in rendered(plotting.plot(gallery.example(name)))[1]]
    assert "What is seen" not in plain
    model = str(gallery.example(name).attrs["model"])
    assert not any(model == text for text in plain)  # papers have captions
    check_figure(plotting.plot(gallery.example(name), title=True), name)


def test_names_are_written_as_asked():
    labels = {"prose": "English prose", "m": "Mixtral 8x7B"}
    figure = plotting.expert_load.by_label(by_hand.expert_load(), 0, labels=labels, title=True)
    written = [text for text, _ in rendered(figure)[1]]
    assert {"English prose", "code", "Mixtral 8x7B, layer 0"} <= set(written)
    figure = plotting.plot(by_hand.router_saturation(), labels={"1k": "step 1,000"})
    assert "step 1,000" in [text for text, _ in rendered(figure)[1]]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"figsize": (0, 3)}, OutOfRange, "figsize"),
        ({"figsize": "wide"}, WrongType, "figsize"),
        ({"title": 3}, WrongType, "title"),
        ({"labels": ["a"]}, WrongType, "labels"),
        ({"ax": 3}, WrongType, "ax"),
        ({"axes": []}, NotFitting, "axes is empty"),
        ({"axes": ["a"]}, (NotFitting, WrongType), "axes"),
        ({"figsiz": (3, 3)}, NoSuchName, "did you mean 'figsize'"),
        ({"layer": 99}, NoSuchName, "no layer 99"),
        ({"order": "size"}, NoSuchName, "there are number, cluster"),
    ],
)
def test_options_are_taken_or_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        plotting.plot(by_hand.similarity(), **options)


def test_where_to_draw_is_said_once():
    axes = Figure().subplots()
    with pytest.raises(NotFitting, match="pass one of them"):
        plotting.plot(by_hand.norm_score_ranks(), ax=axes, axes=[axes])


def test_small_multiples_stand_for_single_layers():
    ds = by_hand.similarity(64, 12)
    assert len(list(plotting.figures(ds))) == 2
    assert len(list(plotting.figures(ds, "all"))) == 2 + 2 * 12
    assert not list(plotting.figures(ds, "none"))
    with pytest.raises(NoSuchName, match="choice of figures"):
        list(plotting.figures(ds, "some"))


def test_small_multiples_share_their_colors_and_show_every_layer():
    ds = by_hand.similarity(16, 5)
    _, figure = next(plotting.figures(ds))
    shown = [image for _, image in maps(figure)]
    assert len(shown) == 15
    assert len({image.get_clim() for image in shown}) == 1
    for image, (layer, projection) in zip(shown, np.ndindex(5, 3), strict=True):
        np.testing.assert_array_equal(image.get_array(), ds.cosine[layer, projection])


def test_clustered_experts_that_are_alike_stand_side_by_side():
    ds = by_hand.similarity(12, 1)
    group = np.arange(12) % 3
    alike = np.equal.outer(group, group).astype(float)
    ds.cosine[:] = 0.1 + 0.8 * alike
    image = plotting.plot(ds, order="cluster").axes[0].images[0]
    order = [label.get_text() for label in plotting.plot(ds, order="cluster").axes[0].get_xticklabels()]
    np.testing.assert_allclose(image.get_array()[:4, :4], 0.9)
    np.testing.assert_allclose(image.get_array()[:4, 4:], 0.1)
    assert order != sorted(order, key=int)


def test_models_side_by_side_have_one_scale():
    small, large = by_hand.similarity(8), by_hand.similarity(64, seed=1)
    large = large.assign(cosine=large.cosine * 2)
    figure = plotting.compare({"Mixtral": small, "OLMoE": large}, layer=1, labels={"OLMoE": "OLMoE 7B"})
    shown = [image for _, image in maps(figure)]
    assert [image.get_array().shape[0] for image in shown] == [8, 8, 8, 64, 64, 64]
    assert len({image.get_clim() for image in shown}) == 1
    assert {"Mixtral", "OLMoE 7B"} <= {text for text, _ in rendered(figure)[1]}
    lines = plotting.compare({"a": by_hand.token_specialization(layers=4), "b": by_hand.token_specialization(layers=9)})
    limits = [axes.get_ylim() for axes in lines.axes if isinstance(axes, Axes)]
    assert limits[:3] == limits[3:]


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_be_compared(name):
    of_sizes = {
        "Mixtral": gallery.resized(gallery.example(name), 8, 4),
        "OLMoE": gallery.resized(gallery.example(name), 64, 16, 1),
    }
    check_figure(plotting.compare(of_sizes), name)


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ({}, "results is empty"),
        ([by_hand.similarity()], "not a mapping"),
        ({"a": by_hand.similarity(), "b": by_hand.coactivation()}, "of similarity, coactivation"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, sentence):
    with pytest.raises(NotFitting, match=sentence):
        plotting.compare(results)


def pixels_of(ds):
    return [rendered(figure, 50)[0].tobytes() for _, figure in plotting.figures(ds)]


SEEN_BY = {"position_share": "position_excess"}  # the interval of the difference from chance is drawn
WITH_INTERVALS = [by_hand.expert_load, by_hand.coactivation, by_hand.task_load, by_hand.router_saturation]


@pytest.mark.thorough
@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("make", [*WITH_INTERVALS, by_hand.token_specialization])
def test_intervals_are_seen_wherever_their_variable_is(make, layers):
    ds = make(layers=layers)
    before = pixels_of(ds)
    for name in {str(each).removesuffix("_low") for each in ds if str(each).endswith("_low")}:
        moved = ds.assign({name: ds[name] * 0.5})
        marked = SEEN_BY.get(name, name)
        wider = ds.assign({f"{marked}_low": ds[name] * -1, f"{marked}_high": ds[name] * 4})
        if pixels_of(moved) != before:
            assert pixels_of(wider) != before, name


@pytest.mark.parametrize("make", WITH_INTERVALS)
def test_notes_say_why_there_are_no_intervals(make):
    ds = make(layers=4)
    ends = [name for name in ds if str(name).endswith(("_low", "_high"))]
    known, unknown = (said_of_intervals(each) for each in (ds, ds.assign({name: ds[name] * np.nan for name in ends})))
    assert known.startswith("95 % over")
    assert unknown == "none: too few or equal documents"
    assert said_of_intervals(ds.assign_attrs(parameters='{"bootstrap": 0}')) == "not computed"


def test_ticks_stand_at_layers_that_there_are():
    ds = by_hand.token_specialization(layers=3).assign_coords(layer=[1, 3, 5])
    for axes in plotting.plot(ds).axes:
        assert set(axes.get_xticks()) <= {1, 3, 5}
    many = by_hand.expert_load(128, 48)
    ticks = [int(label.get_text()) for label in plotting.plot(many).axes[0].get_xticklabels()]
    assert ticks == list(range(0, 128, 16))


def by_layer(name):
    return "layer" in gallery.example(name).dims


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_one_layer_without_its_dimension_is_drawn_as_with_it(name):
    ds = gallery.example(name)
    over_layers = set(getattr(getattr(plotting, name), "OVER_LAYERS", ()))
    if not by_layer(name):
        assert not over_layers
        return
    at = ds.layer.values[-1]
    assert {each for each in ds.data_vars if "layer" not in ds[each].dims} <= over_layers
    pages = [dict(plotting.figures(one)) for one in (ds.sel(layer=at), ds.sel(layer=[at]))]
    assert pages[0].keys() == pages[1].keys()
    for one, other in ((pages[0][stem], pages[1][stem]) for stem in pages[0]):
        assert [text.get_text() for text in texts_of(one)] == [text.get_text() for text in texts_of(other)]
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(data_of(one), data_of(other), strict=True))
    rendered(plotting.plot(ds.sel(layer=at)))


def texts_of(figure):
    return figure.findobj(Text)


def data_of(figure):
    """What lines and maps of a figure show."""
    for axes in figure.axes:
        yield from (np.asarray(line.get_xydata(), float) for line in axes.lines)
        yield from (np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan) for image in axes.get_images())


def test_models_that_are_compared_are_drawn_once_each(monkeypatch):
    ds, calls = gallery.example("gate_similarity"), []
    module = plotting.gate_similarity
    plot = module.plot
    monkeypatch.setattr(module, "plot", lambda ds, layer=None, **look: calls.append(1) or plot(ds, layer, **look))
    figure = plotting.compare({"one": ds, "two": ds, "three": ds})
    assert len(calls) == 3
    alone = plot(ds, title="one").get_size_inches()
    np.testing.assert_allclose(figure.get_size_inches(), [alone[0], min(3 * alone[1], 9.6)])
