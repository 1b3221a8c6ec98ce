"""Comparisons of checkpoints: from models and from traces, by hand, and what cannot be compared."""

import numpy as np
import pytest
import torch

import moe_probe
from moe_probe import comparisons, dynamic, plotting
from moe_probe.errors import InputError

TEXTS = ["The bank of the river.", "It can bear light at the bank.", "def f(x): return x + 1"]


@pytest.fixture(scope="module")
def steps():
    """The model, and the same with noisier routers, as live models."""
    found = {}
    for label, noise in (("early", 0.3), ("late", 0.02), ("final", 0.0)):
        module = moe_probe.load("ckpt/tiny-mixtral").module
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in module.model.layers:
                weight = layer.mlp.gate.weight
                weight += noise * torch.randn(weight.shape, generator=generator)
        found[label] = moe_probe.load(module, tokenizer="ckpt/tiny-mixtral")
    return found


def choices(model):
    frame = {}
    recorded = dynamic.gate_choices(model, TEXTS, progress=False)
    for layer in recorded.layer.values:
        frame[int(layer)] = recorded.weight.sel(layer=layer).values > 0
    return frame


def test_saturation_is_the_share_of_final_choices_made_already(steps):
    found = dynamic.router_saturation(steps, TEXTS, progress=False)
    sets = {label: choices(model) for label, model in steps.items()}
    for label, by_layer in sets.items():
        for layer, chosen in by_layer.items():
            expected = (chosen & sets["final"][layer]).sum(1).mean() / 2
            assert float(found.saturation.sel(checkpoint=label, layer=layer)) == pytest.approx(expected)
    assert (found.saturation.sel(checkpoint="final") == 1).all()
    assert (found.saturation.sel(checkpoint="early").mean() < found.saturation.sel(checkpoint="late").mean()).item()
    inclusion = {label: np.stack([chosen.mean(0) for chosen in by_layer.values()]) for label, by_layer in sets.items()}
    for label, share in inclusion.items():
        np.testing.assert_allclose(found.chance.sel(checkpoint=label), (share * inclusion["final"]).sum(1) / 2)
    assert found.saturation_low.isnull().all()  # three documents


def test_one_document_has_values_but_no_intervals(steps):
    found = dynamic.router_saturation(steps, TEXTS[:1], progress=False)
    assert found.saturation.notnull().all()
    assert found.saturation_low.dims == found.saturation.dims
    assert found.saturation_low.isnull().all()
    drift = dynamic.routing_drift({"early": steps["early"]}, {"final": steps["final"]}, TEXTS[:1], progress=False)
    assert drift.changed_low.isnull().all()


def test_drift_by_hand_and_most_where_margins_are_small(steps):
    found = dynamic.routing_drift({"a": steps["final"]}, {"b": steps["early"]}, TEXTS, bins=4, progress=False)
    one, other = choices(steps["final"]), choices(steps["early"])
    for layer in one:
        own = found.sel(layer=layer)
        assert float(own.changed) == pytest.approx((one[layer] != other[layer]).any(1).mean())
        assert float(own.overlap) == pytest.approx((one[layer] & other[layer]).sum(1).mean() / 2)
    assert float(found.margin_changed.isel(bin=0).mean()) > float(found.margin_changed.isel(bin=-1).mean())
    assert (np.diff(found.margin.values, axis=1) >= 0).all()


def test_traces_give_what_models_give(steps, tmp_path):
    for label, model in steps.items():
        dynamic.run(model, TEXTS, [dynamic.RoutingTrace(tmp_path / label)], progress=False)
    traces = {label: tmp_path / label for label in steps}
    for function in (dynamic.router_saturation, dynamic.expert_activation):
        one, other = function(steps, TEXTS, progress=False), function(traces)
        for name in one:
            if name.endswith("_parameters"):
                continue
            np.testing.assert_allclose(one[name], other[name], err_msg=name)
    both = [
        dynamic.routing_drift({"a": s["early"]}, {"b": s["final"]}, t, **o)
        for s, t, o in ((steps, TEXTS, {"progress": False}), (traces, None, {}))
    ]
    np.testing.assert_allclose(both[0].margin_changed, both[1].margin_changed)


def test_models_of_other_shapes_stand_side_by_side():
    names = ["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe", "ckpt/tiny-moe-plus-plus"]
    found = dynamic.expert_activation(names, TEXTS, threshold=0.01, progress=False)
    for name in names:
        own, load = found.sel(checkpoint=name.removeprefix("ckpt/")), dynamic.expert_load(name, TEXTS, progress=False)
        used = own.frequency.values[: load.sizes["layer"], : load.sizes["expert"]]
        np.testing.assert_allclose(used, load.frequency)
        assert np.isnan(own.frequency.values[load.sizes["layer"] :]).all()
        assert float(own.activation_ratio) == pytest.approx(float((load.frequency > 0.01).mean()))
    rows = found.frequency.sum("expert").sel(checkpoint="tiny-mh-moe").values[:2]
    np.testing.assert_allclose(rows, 4 * 2)  # sub-tokens times k
    module = moe_probe.load("ckpt/tiny-x-moe").module
    total = sum(parameter.numel() for parameter in module.parameters())
    own = found.sel(checkpoint="tiny-x-moe")
    assert float(own.expert_parameters + own.other_parameters) == total
    inside = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    assert float(own.expert_parameters) == inside


def test_patches_over_steps_stand_beside_each_other():
    steps = {"1k": "ckpt/tiny-mh-moe", "2k": moe_probe.load("ckpt/tiny-mh-moe").module}
    steps["2k"] = moe_probe.load(steps["2k"], tokenizer="ckpt/tiny-mh-moe")
    picture = np.random.default_rng(0).random((12, 12))
    patches = dynamic.PatchDivergence((2, 2), [picture])
    found = dynamic.patch_divergence_over_steps(steps, [[5, 6, 7, 8]], patches, progress=False)
    assert found.divergence_mean.dims == ("step", "document", "row", "column")
    assert found.texture_mean.dims == ("step", "texture_group")
    np.testing.assert_array_equal(found.divergence.sel(step="1k"), found.divergence.sel(step="2k"))
    assert len(plotting.plot(found).axes) == 4  # picture, two steps, color bar


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("textured", [False, True])
def test_patches_of_steps_with_other_layers_stand_beside_each_other(textured):
    steps = {"mixtral": "ckpt/tiny-mixtral", "mh-moe": "ckpt/tiny-mh-moe"}
    pictures = [np.random.default_rng(0).random((12, 12))] if textured else None
    patches = dynamic.PatchDivergence((2, 2), pictures)
    found = comparisons.patch_divergence_over_steps(steps, [[5, 6, 7, 8]], patches, progress=False)
    layers = [moe_probe.load(step).moe_layers for step in steps.values()]
    assert layers[0] != layers[1]
    assert list(found.layer) == sorted({*layers[0], *layers[1]})
    only = [layer for layer in layers[0] if layer not in layers[1]]
    assert found.divergence.sel(step="mh-moe", layer=only).isnull().all()
    assert found.divergence.sel(step="mixtral").notnull().all()
    assert found.divergence_mean.notnull().all()


def test_what_cannot_be_compared_is_said():
    with pytest.raises(InputError, match="takes at least 2 checkpoints, but there are 1"):
        dynamic.router_saturation(["ckpt/tiny-mixtral"], TEXTS)
    with pytest.raises(InputError, match="Two checkpoints have one name"):
        dynamic.router_saturation(["ckpt/tiny-mixtral", "ckpt/tiny-mixtral"], TEXTS)
    with pytest.raises(InputError, match="is a model, not a routing trace; pass texts"):
        dynamic.expert_activation(["ckpt/tiny-mixtral", "ckpt/tiny-x-moe"])
    with pytest.raises(InputError, match="differ in their MoE layers or in their experts"):
        dynamic.routing_drift("ckpt/tiny-mixtral", "ckpt/tiny-moe-plus-plus", [[5, 6, 7]], progress=False)


def test_other_tokenizers_are_refused(tmp_path):
    model = moe_probe.load("ckpt/tiny-mixtral")
    for name, texts in (("a", TEXTS), ("b", TEXTS[:2])):
        dynamic.run(model, texts, [dynamic.RoutingTrace(tmp_path / name)], progress=False)
    with pytest.raises(InputError, match="did not see the same tokens"):
        dynamic.routing_drift({"a": tmp_path / "a"}, {"b": tmp_path / "b"})
