"""Golden values of arXiv 2406.18219's experiments, with the model in memory and layer by layer."""

import numpy as np
import pytest
import torch
from conftest import FIXTURES

import moe_probe
from moe_probe import dynamic

BASELINES = {"mixtral": "mistral", "deepseek": None, "grok": None}
FOLDERS = {"grok": "grok1_hf"}


def open_model(family):
    return None if family is None else moe_probe.load(FIXTURES / FOLDERS.get(family, family) / "checkpoint")


def assert_close(found, expected, atol=0.0, rtol=0.0):
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=atol, rtol=rtol)


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
@pytest.mark.parametrize("family", BASELINES)
def test_long_texts(family, execution, golden):
    model, baseline = open_model(family), open_model(BASELINES[family])
    texts = [golden[f"{family}.long_ids.{number}"].flatten().tolist() for number in range(3)]
    similarity = dynamic.OutputSimilarity("angular", baseline=baseline is not None, shared=family == "deepseek")
    analyses = [similarity, dynamic.NormScoreRanks(), dynamic.OutputNorms(), dynamic.GateChoices()]
    found = dynamic.run(model, texts, analyses, baseline=baseline, execution=execution, batch_tokens=40)
    for layer in model.moe_layers:

        def value(analysis, name, layer=layer):
            return found[analysis][name].sel(layer=layer)

        assert_close(value("output_similarity", "similarity"), golden[f"{family}.long.angular_avg.{layer}"], 1e-5)
        assert_close(value("norm_score_ranks", "pairs"), golden[f"{family}.long.rank_count.{layer}"])
        # relative to the layer's largest: in which order float32 sums are taken depends on the number of threads
        norms = golden[f"{family}.long.norm.{layer}"]
        assert_close(value("output_norms", "norm"), norms, 1e-5 * float(norms.max()))
        assert_close(value("output_norms", "score"), golden[f"{family}.long.gate_score.{layer}"], 2e-5)
        index, weight = (golden[f"{family}.long.choice_{name}.{layer}"] for name in ("index", "weight"))
        dense = torch.zeros(len(index), model.layer(layer).num_experts).scatter_(1, index, weight)
        assert_close(value("gate_choices", "weight"), dense, 2e-5)
    assert_close(found["norm_score_ranks"].total, golden[f"{family}.long.rank_count.all"])


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
@pytest.mark.parametrize("family", BASELINES)
def test_short_texts(family, execution, golden):
    model, baseline = open_model(family), open_model(BASELINES[family])
    texts = [golden[f"{family}.short_ids"].flatten().tolist()]
    dense = baseline is not None
    similarity = dynamic.OutputSimilarity(per_token=True, baseline=dense, shared=family == "deepseek")
    states = dynamic.IntermediateStates(baseline=dense)
    found = dynamic.run(model, texts, [similarity, states], baseline=baseline, execution=execution)
    for layer in model.moe_layers:
        cosine = found["output_similarity"].similarity.sel(layer=layer)
        assert_close(cosine, golden[f"{family}.short.output_sim.{layer}"], 1e-5)
        activation = found["intermediate_states"].activation.sel(layer=layer).transpose("expert", "token", "neuron")
        assert_close(activation, golden[f"{family}.short.act.{layer}"], 2e-5)
