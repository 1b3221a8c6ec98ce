"""What runs is what was read, and a live model is left as it was, whoever else uses it."""

import threading

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FIXTURES
from transformers import MixtralConfig, MixtralForCausalLM

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import NotFinite, NotFitting
from moe_probe.forward.differentiating import LayerwisePass
from moe_probe.texts.corpus import Batch

IDS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]


def tied(folder):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("source", [tied, lambda _: "ckpt/tiny-grok-1"], ids=["tied Mixtral", "tiny-grok-1"])
def test_logits_of_a_tied_head_are_the_same_layer_by_layer(source, tmp_path):
    path = source(tmp_path)
    resident, layerwise = (
        dynamic.record(path, IDS, logits=True, progress=False, execution=how).logits
        for how in ("resident", "layerwise")
    )
    np.testing.assert_allclose(layerwise, resident, atol=1e-4)


def test_logits_that_are_not_finite_are_named_with_their_document():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    with torch.no_grad():
        module.lm_head.weight[3] = torch.nan
    with pytest.raises(NotFinite, match="the logits are not finite in document 1, position 0"):
        dynamic.record(module, IDS, logits=True, progress=False)


def test_a_module_in_training_mode_is_evaluated_and_left_in_training():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    expected = dynamic.gate_choices(module, IDS, progress=False)
    for part in module.modules():
        if hasattr(part, "jitter_noise"):
            part.jitter_noise = 0.3
    module.train()
    frozen = module.model.layers[0].eval()
    found = dynamic.gate_choices(module, IDS, progress=False)
    xr.testing.assert_equal(found, expected)
    assert module.training
    assert module.model.layers[1].training
    assert not frozen.training


def test_threads_on_one_live_model_get_right_numbers():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    names = ["gate_choices", "intermediate_states", "norm_score_ranks", "output_similarity"]
    expected = {name: dynamic.run(module, IDS, name, progress=False)[name] for name in names}
    found, errors = [], []

    def work(name):
        try:
            found.append((name, dynamic.run(module, IDS, name, progress=False)[name]))
        except Exception as error:  # the test says which
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == len(threads)
    for name, result in found:
        xr.testing.assert_equal(result, expected[name])


def test_a_baseline_beside_some_layers_alone():
    options = {"baseline": "ckpt/tiny-mistral", "layers": [1], "progress": False}
    part = dynamic.output_similarity("ckpt/tiny-mixtral", IDS, **options)
    whole = dynamic.output_similarity("ckpt/tiny-mixtral", IDS, **options | {"layers": None})
    xr.testing.assert_allclose(part, whole.sel(layer=[1]))


def test_the_flow_into_a_layer_does_not_depend_on_the_layers_that_are_asked_for():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    whole = dynamic.coactivation(model, IDS, progress=False)
    part = dynamic.coactivation(model, IDS, layers=[0, 3], progress=False)
    np.testing.assert_array_equal(part.flow.sel(layer=3), whole.flow.sel(layer=3))
    assert whole.attrs["flow_from"] == "1 from 0; 2 from 1; 3 from 2"
    assert part.attrs["flow_from"] == "3 from 2"


def test_a_trace_without_the_layer_before_has_no_flow(tmp_path):
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    dynamic.run(model, IDS, dynamic.RoutingTrace(tmp_path / "trace"), layers=[0, 2, 3], progress=False)
    found = dynamic.from_trace(tmp_path / "trace", [dynamic.Coactivation()])["coactivation"]
    whole = dynamic.coactivation(model, IDS, progress=False)
    assert found.attrs["flow_from"] == "3 from 2"
    assert bool(found.flow.sel(layer=[0, 2]).isnull().all())
    np.testing.assert_array_equal(found.flow.sel(layer=3), whole.flow.sel(layer=3))


def test_layer_by_layer_runs_on_one_device():
    model = moe_probe.load("ckpt/tiny-mixtral", device="auto")
    with pytest.raises(NotFitting, match="one device, not 'auto'"):
        dynamic.gate_choices(model, IDS, execution="layerwise", progress=False)


def test_of_what_leaves_a_layer_hidden_states_are_not_kept_beside_the_pass():
    """They wait with the pass, on disk where they are many."""
    running = LayerwisePass(Batch(()), spills=True)
    hidden, beside = torch.zeros(1, 2, 3), torch.ones(2)
    running.leave((hidden, beside), last=False)
    assert running.left[0] is None
    assert running.left[1] is beside
    running.leave(hidden, last=True)
    assert running.left[0] is hidden
