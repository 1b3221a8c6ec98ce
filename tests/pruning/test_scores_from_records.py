"""Scores of pairs of experts, of the layer after and of experiments, against what is written out from a record."""

from functools import cache

import numpy as np
import pytest
from test_scores import FOLDERS, documents

from moe_probe import dynamic, intervene, pruning


@cache
def recorded(name):
    """Router logits and outputs (layer, token, expert[, hidden]) and choices (layer, token, expert), float64."""
    ds = dynamic.record(FOLDERS[name], documents(name), outputs="all", progress=False)
    experts = ds.sizes["expert"]
    chosen = (ds.topk_expert.values[..., None] == np.arange(experts)).any(-2)
    return ds.router_logits.values.astype(float), ds.output.values.astype(float), chosen


@cache
def scored(name, execution="resident"):
    return pruning.scores(FOLDERS[name], documents(name), progress=False, execution=execution, batch_tokens=40)


def mean_of_others(similarity):
    experts = len(similarity)
    return np.array([np.nanmean([similarity[e, j] for j in range(experts) if j != e]) for e in range(experts)])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_router_logits_are_compared_over_all_rows(name, execution):
    logits, _, _ = recorded(name)
    for place, layer in enumerate(logits):
        vectors = layer.T / np.linalg.norm(layer.T, axis=1, keepdims=True)
        expected = mean_of_others((vectors @ vectors.T + 1) / 2)
        value = scored(name, execution).value.sel(score="router_logit_similarity")[place]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_outputs_are_compared_on_the_rows_that_chose_either_expert(name, execution):
    _, outputs, chosen = recorded(name)
    for place in range(len(outputs)):
        out, took = outputs[place], chosen[place]
        experts = took.shape[1]
        similarity = np.full((experts, experts), np.nan)
        for i in range(experts):
            for j in range(experts):
                rows = took[:, i] | took[:, j]
                if rows.any():
                    one, other = out[rows, i], out[rows, j]
                    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
                    similarity[i, j] = ((one * other).sum(1) / norms).mean()
        value = scored(name, execution).value.sel(score="routed_output_similarity")[place]
        np.testing.assert_allclose(value, mean_of_others(similarity), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_esi_is_the_entropy_of_the_choices_in_the_next_layer(name, execution):
    _, _, chosen = recorded(name)
    value = scored(name, execution).value.sel(score="esi").values
    assert np.isnan(value[-1]).all()
    for place in range(len(chosen) - 1):
        for expert in range(chosen.shape[2]):
            after = chosen[place + 1][chosen[place][:, expert]].sum(0)
            if after.sum() == 0:
                assert np.isnan(value[place, expert])
                continue
            shares = after[after > 0] / after.sum()
            expected = -(shares * np.log(shares)).sum() / np.log(chosen.shape[2])
            np.testing.assert_allclose(value[place, expert], expected, atol=1e-12)


def test_the_signed_maximum_is_the_published_one():
    _, outputs, chosen = recorded("mixtral")
    expected = np.where(chosen[..., None], outputs, -np.inf).max((1, 3))
    value = scored("mixtral").value.sel(score="max_activation_as_published")
    np.testing.assert_allclose(value, np.where(np.isinf(expected), np.nan, expected), rtol=1e-5)


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_experiments_are_scores_where_they_are_named(execution, tmp_path):
    texts, folder = documents("qwen3_moe"), FOLDERS["qwen3_moe"]
    names = ["ean", "attribution", "ablation"]
    ds = pruning.scores(folder, texts, names, progress=False, execution=execution, checkpoint_dir=tmp_path)
    truth = intervene.ablate(folder, texts, "mask", bootstrap=0, progress=False)
    np.testing.assert_allclose(ds.value.sel(score="ablation"), truth.loss_change.sel(path="total"), atol=2e-6)
    estimate = intervene.attribution(folder, texts, bootstrap=0, progress=False)
    np.testing.assert_allclose(ds.value.sel(score="attribution"), estimate.loss_change, atol=2e-6)
    assert ds.score.values.tolist() == names
    assert len(ds.calibration) == len(texts)
    assert not {"attribution", "ablation"} & set(scored("qwen3_moe").score.values.tolist())
