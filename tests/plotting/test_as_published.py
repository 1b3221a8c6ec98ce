"""Plots that follow a paper's layout where it is not the default: panels, order, colors, scales."""

import numpy as np
import pytest
import results_by_hand as by_hand
from figure_checks import check_texts, rendered

from moe_probe import dynamic, plotting, static

TEXTS = ["The bank of the river."]


def images(figure):
    return [axes.get_images()[0] for axes in figure.axes if axes.get_images()]


def test_load_is_drawn_as_selections_per_token_with_the_first_layer_on_top():
    ds = dynamic.expert_load("ckpt/tiny-mixtral", TEXTS, bootstrap=0, permutations=0, progress=False)
    axes = plotting.plot(ds, as_published=True).axes[0]
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), ds.frequency.transpose("layer", "expert"))
    assert image.cmap.name == "viridis"
    assert image.get_clim() == (0, float(ds.frequency.max()))
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize("model", ["tiny-mixtral", "tiny-deepseek-moe"])
def test_norms_and_scores_of_all_tokens_are_bars_in_one_row(model):
    ds = dynamic.output_norms(f"ckpt/{model}", TEXTS, layers=[1], progress=False).isel(token=slice(8))
    figure = plotting.plot(ds, tokens=range(8), as_published=True)
    _, texts = rendered(figure)
    check_texts(figure, texts, "norms")
    left, right = figure.axes[:8], figure.axes[8:]
    assert len({axes.get_position().y0 for axes in left}) == 1
    for token in range(8):
        np.testing.assert_allclose([bar.get_height() for bar in left[token].patches], ds.norm[0, token], rtol=1e-6)
        np.testing.assert_allclose([bar.get_height() for bar in right[token].patches], ds.score[0, token], rtol=1e-6)


def test_mean_outputs_stand_beside_the_matrices_in_colors_of_their_own():
    outputs = dynamic.output_similarity("ckpt/tiny-mixtral", TEXTS, metric="angular", layers=[1], progress=False)
    weights = static.similarity("ckpt/tiny-mixtral", layers=[1])
    figure = plotting.plot(outputs, layer=1, beside=weights, diagonal=True)
    first, *others = images(figure)
    np.testing.assert_array_equal(first.get_array(), outputs.similarity[0])
    assert first.get_clim() == (float(outputs.similarity.min()), 1)
    for image, name in zip(others, ("up", "gate", "down"), strict=True):
        np.testing.assert_array_equal(image.get_array(), weights.cosine.sel(layer=1, projection=name))
        assert image.get_clim()[0] == float(weights.cosine.min())
    assert len({axes.get_position().y0.round(3) for axes in figure.axes if axes.get_images()}) == 1


def test_states_of_tokens_are_named_by_the_chosen_experts_and_end_at_one():
    ds = dynamic.intermediate_states("ckpt/tiny-mixtral", TEXTS, layers=[1, 2], progress=False)
    figure = plotting.plot(ds, layer=1, tokens=[0, 1, 2], scale="all", as_published=True)
    assert {image.get_clim() for image in images(figure)} == {(float(ds.activation.min()), 1.0)}
    for token, axes in enumerate(figure.axes[:3]):
        chosen = ", ".join(map(str, ds.topk_expert.sel(layer=1)[token].values))
        assert axes.get_title(loc="left").endswith(f"experts {chosen}")
    own = plotting.plot(ds, layer=1, as_published=True)
    of_layer = ds.activation.sel(layer=1)
    assert {image.get_clim() for image in images(own)} == {(float(of_layer.min()), float(of_layer.max()))}


def test_ranks_have_the_papers_ten_colors_and_a_legend_of_as_many():
    few = plotting.plot(by_hand.norm_score_ranks(8), as_published=True)
    names = [text.get_text() for text in few.legends[0].get_texts()]
    assert names == [f"score rank {rank}" for rank in range(1, 9)]
    many = plotting.plot(by_hand.norm_score_ranks(16), bars=True, as_published=True)
    assert not many.legends
    assert len({patch.get_facecolor() for patch in many.axes[0].patches}) == 10


@pytest.mark.parametrize("steps", [False, True])
def test_the_picture_stands_first_beside_one_map_and_last_after_steps(steps):
    pictures = [np.linspace(0, 1, 24).reshape(4, 6)]
    ds = dynamic.patch_divergence(
        "ckpt/tiny-mh-moe", [[10, 11, 12, 13, 14, 15]], grid=(2, 3), pictures=pictures, bootstrap=0, progress=False
    )
    if steps:
        ds = ds.assign(divergence_mean=ds.divergence_mean.expand_dims(step=["1k", "2k"]))
    titles = [axes.get_title() for axes in plotting.plot(ds).axes[:-1]]
    assert titles == (["1k", "2k", "picture"] if steps else ["picture", ""])
