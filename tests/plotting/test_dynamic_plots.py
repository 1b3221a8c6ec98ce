"""Figures of the dynamic analyses: complete, readable for few and many experts, and made of nothing but the Dataset."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small_batches import ByHand, corpus_of, layer_of, random_routing

import moe_probe
from moe_probe import comparisons, dynamic, plotting
from moe_probe.errors import InputError
from moe_probe.plotting._tokens import rows

TEXTS = [
    "def area(r):\n    return 3.14 * r ** 2",
    "It costs $12 or $13.",
    "The file is closed at the end of the block.",
]
PLAIN = [dynamic.NormScoreRanks, dynamic.OutputSimilarity, dynamic.ExpertLoad, dynamic.RouterScores]
PLAIN += [dynamic.Coactivation, dynamic.TokenSpecialization, dynamic.OutputNorms, dynamic.GateChoices]
PLAIN += [dynamic.TaskLoad, dynamic.ExpertCapacity, dynamic.AdaptiveMixtures]
WIDE = [dynamic.Complexity, lambda: dynamic.FFNExpertsPerToken(1), lambda: dynamic.SubtokenDivergence(["4"])]


@pytest.fixture(scope="module", params=["tiny-moe-plus-plus", "tiny-mh-moe"])
def results(request, tmp_path_factory):
    analyses = [cls() for cls in PLAIN] + [dynamic.IntermediateStates(), dynamic.ActiveNeurons()]
    analyses.append(dynamic.SubtokenDivergence(words=["file", "block"]))
    if request.param == "tiny-moe-plus-plus":
        analyses += [dynamic.Complexity(), dynamic.FFNExpertsPerToken(1, "textblob")]
    analyses.append(dynamic.RoutingTrace(tmp_path_factory.mktemp("trace") / "trace"))
    model = moe_probe.load(f"ckpt/{request.param}")
    found = dynamic.run(model, TEXTS, analyses, labels=["code", "prose", "prose"], layers=[3], progress=False)
    tokens = dynamic.output_similarity(model, TEXTS, per_token=True, layers=[3], progress=False)
    residual = (
        [comparisons.gating_residual(model, TEXTS, layers=[3], progress=False)] if "plus" in request.param else []
    )
    return [*found.values(), tokens, *residual]


def assert_all_text_is_inside(stem, figure):
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    box, tight = figure.bbox_inches, figure.get_tightbbox()
    assert tight.x0 > -0.05, stem
    assert tight.y0 > -0.05, stem
    assert tight.x1 < box.x1 + 0.05, stem
    assert tight.y1 < box.y1 + 0.05, stem


@pytest.mark.thorough
def test_every_figure_has_all_its_text_inside(results):
    stems = []
    for dataset in results:
        before = dataset.copy(deep=True)
        for stem, figure in plotting.figures(dataset):
            stems.append(stem)
            assert_all_text_is_inside(stem, figure)
        assert dataset.identical(before)
    assert len(stems) == len(set(stems))


@pytest.mark.thorough
@pytest.mark.parametrize("experts", [8, 64, 256])
@pytest.mark.parametrize("analysis", [*PLAIN, *WIDE])
def test_labels_do_not_overlap_for_few_and_many_experts(analysis, experts):
    kinds = ("ffn",) * (experts - 2) + ("copy", "zero")
    layer, corpus = (
        layer_of(experts, 2, index=31, kinds=kinds),
        corpus_of([[4, 5, 4, 6], [4, 4], [6, 5, 5]], ["a", "b", "a"]),
    )
    found = analysis()
    for batch in random_routing(layer, corpus, 0):
        found.update(batch)
    for stem, figure in plotting.figures(found.result(ByHand(layer).on(corpus))):
        assert_all_text_is_inside(stem, figure)
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            inside = [box for box in boxes if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
            for one, other in pairwise(inside):
                assert not one.overlaps(other.shrunk(0.8, 0.8)), stem


def test_titles_name_the_chosen_experts(results):
    for dataset in results:
        if dataset.attrs["analysis"] != "output_similarity" or "token" not in dataset.dims:
            continue
        figure = plotting.plot(dataset, layer=3, tokens=[2])
        flat = rows(dataset)
        chosen = flat.topk_expert.sel(layer=3).isel(token=2).values[:6]
        assert "experts " + ", ".join(map(str, chosen)) in figure.axes[0].get_title()


def test_bars_and_maps_show_the_numbers(results):
    by_name = {dataset.attrs["analysis"]: dataset for dataset in results if "rank" not in dataset.dims}
    ranks = by_name["norm_score_ranks"]
    heights = [patch.get_height() for patch in plotting.plot(ranks).axes[0].patches]
    if ranks.sizes["norm_rank"] <= 16:
        assert sorted(heights) == sorted(ranks.total.values.flatten())
    choices = by_name["gate_choices"]
    image = plotting.plot(choices, layer=3).axes[0].images[0].get_array()
    flat = rows(choices)
    expected = flat.weight.sel(layer=3).values[(flat.document == 0).values][: image.shape[1]].T
    np.testing.assert_allclose(image, expected)


def test_what_a_result_does_not_hold_is_refused(results):
    by_name = {dataset.attrs["analysis"]: dataset for dataset in results}
    with pytest.raises(InputError, match="has the tokens 0 to"):
        plotting.plot(by_name["output_norms"], tokens=[10**6])
    with pytest.raises(InputError, match="start=5000 is outside document"):
        plotting.plot(by_name["gate_choices"], start=5000)
    with pytest.raises(InputError, match="no variable 'sum'; there are lift"):
        plotting.plot(by_name["coactivation"], variable="sum")
    with pytest.raises(InputError, match="no plot for the analysis 'record'"):
        plotting.plot(xr.Dataset(attrs={"analysis": "record"}))
