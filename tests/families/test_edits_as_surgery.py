"""Interventions in every MoE of transformers, against the same model with its weights or its configuration changed."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_transformers_moe import PRESENT
from test_transformers_moe import tiny_model as zeroed_model
from tiny_configs import EXPERTS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import moe_probe
from moe_probe import dynamic, intervene, pruning
from moe_probe.errors import CannotWatch, NotFitting
from moe_probe.families import SHARED

UNWATCHED = {"jetmoe", "llama4_text"}  # refused as a whole
UNDECIDED = {
    "inkling_text": ["mask", "only", "top_k"],
    "phimoe": ["top_k"],
    "deepseek_v4": ["mask", "only", "top_k"],  # its first layers choose by a table of tokens
}
UNCUT = {"deepseek_v4", "inkling_text", "longcat_flash", "zaya"}
QUICK = {"mixtral", "zaya", "longcat_flash"}
WATCHED = [
    each if each in QUICK else pytest.param(each, marks=pytest.mark.thorough)
    for each in PRESENT
    if each not in UNWATCHED
]
COUNTS = "num_experts num_local_experts n_routed_experts moe_num_experts".split()
TOP_K = "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts".split()
DROPPED, KEPT = (1, 3, 4), (0, 2, 5)
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))


def tiny_model(model_type):
    """A model whose tables of experts by token, where it has some, name several."""
    module = zeroed_model(model_type)
    if model_type == "zaya":  # of small weights nothing would be left after its scales
        for name, parameter in module.named_parameters():
            parameter.data.mul_(6).add_(float("scale" in name or "norm" in name))
    for name, table in module.named_buffers():
        if name.endswith("tid2eid"):
            table.copy_(torch.arange(table.numel()).reshape(table.shape) % EXPERTS)
    return module


@torch.no_grad()
def logits(module):
    return module(input_ids=IDS, use_cache=False).logits.float()


def edited(module, *edits):
    with intervene.applied(module, list(edits)):
        return logits(module)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def expert_biases(module, layer):
    """Rows by expert that are added to what an expert's matrices give."""
    prefix = f".{layer}."
    return [value for name, value in module.named_parameters() if name.endswith("_proj_bias") and prefix in name]


@torch.no_grad()
def with_scaled_outputs(module, layer, expert, factor):
    changed = copy.deepcopy(module)
    moe_probe.load(changed).expert_weight(layer, str(expert), "down").mul_(factor)
    for name, bias in changed.named_parameters():
        if name.endswith("down_proj_bias") and f".{layer}." in name:
            bias[expert].mul_(factor)
    return changed


@torch.no_grad()
def with_scaled_shared(module, layer, factor):
    changed = copy.deepcopy(module)
    moe_probe.load(changed).expert_weight(layer, SHARED, "down").mul_(factor)
    return changed


@torch.no_grad()
def with_averaged_experts(module, layer, one, other):
    changed = copy.deepcopy(module)
    model = moe_probe.load(changed)
    for projection in model.layer(layer).projections:
        pair = [model.expert_weight(layer, str(expert), projection) for expert in (one, other)]
        mean = (pair[0] + pair[1]) / 2
        for matrix in pair:
            matrix.copy_(mean)
    for bias in expert_biases(changed, layer):
        bias[[one, other]] = (bias[one] + bias[other]) / 2
    return changed


@torch.no_grad()
def with_copied_expert(module, layer, expert, by):
    changed = copy.deepcopy(module)
    model = moe_probe.load(changed)
    for projection in model.layer(layer).projections:
        model.expert_weight(layer, str(expert), projection).copy_(model.expert_weight(layer, str(by), projection))
    for bias in expert_biases(changed, layer):
        bias[expert].copy_(bias[by])
    return changed


def reconfigured(module, names, value, dropped=()):
    """The same weights under another configuration; rows and modules of dropped experts are left out."""
    config = copy.deepcopy(module.config)
    for part in (config, config.get_text_config(decoder=True), getattr(config, "ffn_config", config)):
        for name in names:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, value)
    smaller = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config).eval()
    before = module.state_dict()
    kept = [expert for expert in range(2 * EXPERTS) if expert not in dropped]
    for block in smaller.modules():
        if type(block).__name__ == "LongcatFlashExperts" and value == 1:
            block.forward = partial(with_a_second_choice, block.forward)
    smaller.load_state_dict(
        {key: without(before[renumbered(key, kept)], value, dropped) for key, value in smaller.state_dict().items()}
    )
    return smaller


def with_a_second_choice(forward, rows, index, weights):
    """LongCat's experts cannot be called with one choice per token; a second one of weight 0 adds nothing."""
    return forward(rows, index.repeat(1, 2), torch.cat([weights, torch.zeros_like(weights)], 1))


def renumbered(key, kept):
    """The name before: of experts that are modules of their own, the number of the one that was kept."""
    before, found, after = key.partition(".experts.")
    number, _, rest = after.partition(".")
    return f"{before}{found}{kept[int(number)]}.{rest}" if number.isdigit() else key


def without(tensor, smaller, dropped):
    """Along the axis that became shorter, without what belongs to the dropped experts."""
    for axis, (size, wanted) in enumerate(zip(tensor.shape, smaller.shape, strict=True)):
        if size != wanted:
            each = (size - wanted) // len(dropped)
            kept = [place for place in range(size) if place // each not in dropped]
            return tensor.index_select(axis, torch.tensor(kept))
    return tensor


def chosen_expert(module, layer):
    """An expert that some token chooses, so that edits of it change something."""
    unedited = logits(module)
    return next(
        each for each in range(EXPERTS) if not torch.equal(edited(module, intervene.Zero(layer, [each])), unedited)
    )


def pairs(module):
    """By kind, edits and the model that they are to be equal to."""
    model = moe_probe.load(module)
    layers, first = model.moe_layers, model.moe_layers[0]
    one = chosen_expert(module, first)
    other = (one + 2) % EXPERTS
    others = range(EXPERTS, model.layer(first).num_experts)  # without weights, which no count in a configuration counts
    shared = {
        "zero shared": ([intervene.Zero(first, [SHARED])], lambda: with_scaled_shared(module, first, 0)),
        "scale shared": ([intervene.Scale(first, [SHARED], 2.5)], lambda: with_scaled_shared(module, first, 2.5)),
    }
    return (shared if model.layer(first).num_shared else {}) | {
        "zero": ([intervene.Zero(first, [one])], lambda: with_scaled_outputs(module, first, one, 0)),
        "scale": ([intervene.Scale(first, [one], 2.5)], lambda: with_scaled_outputs(module, first, one, 2.5)),
        "replace": ([intervene.Replace(first, one, by=other)], lambda: with_copied_expert(module, first, one, other)),
        "merge": ([intervene.Merge(first, [[one, other]])], lambda: with_averaged_experts(module, first, one, other)),
        "top_k": ([intervene.TopK(each, 1) for each in layers], lambda: reconfigured(module, TOP_K, 1)),
        "mask": (
            [intervene.Mask(each, list(DROPPED)) for each in layers],
            lambda: reconfigured(module, COUNTS, len(KEPT), DROPPED),
        ),
        "only": (
            [intervene.Only(each, [*KEPT, *others]) for each in layers],
            lambda: reconfigured(module, COUNTS, len(KEPT), DROPPED),
        ),
    }


@pytest.mark.parametrize("model_type", WATCHED)
def test_edits_are_what_changed_weights_and_configurations_are(model_type):
    module = tiny_model(model_type)
    for kind, (edits, surgery) in pairs(module).items():
        if kind in UNDECIDED.get(model_type, ()):
            with pytest.raises(
                CannotWatch, match=r"no other choice can be put in its place|masked was chosen all the same"
            ):
                edited(module, *edits)
            continue
        close(edited(module, *edits), logits(surgery()))


DOCUMENTS = [IDS[0].tolist(), [*IDS[1].tolist(), *range(5, 17)], IDS[0, :6].tolist(), IDS[1].tolist()]


@torch.no_grad()
def losses(module, *edits):
    """Each document alone: the negative log-likelihood of its tokens but the first, summed."""
    sums = []
    with intervene.applied(module, list(edits)):
        for ids in DOCUMENTS:
            given = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
            sums.append(-given.gather(1, torch.tensor(ids[1:])[:, None]).sum())
    return float(sum(sums)) / sum(len(ids) - 1 for ids in DOCUMENTS)


@pytest.mark.parametrize("model_type", WATCHED)
def test_ablations_that_share_layers_are_those_of_whole_runs(model_type):
    module = tiny_model(model_type)
    model = moe_probe.load(module)
    layers, unedited = sorted({model.moe_layers[0], model.moe_layers[-1]}), losses(module)
    for how, kind in (("zero", intervene.Zero), ("mask", intervene.Mask)):
        if how in UNDECIDED.get(model_type, ()):
            continue
        ds = intervene.ablate(model, DOCUMENTS, how, layers=layers, experts=[0, 5], bootstrap=0, progress=False)
        for layer in layers:
            for expert in (0, 5):
                expected = losses(module, kind(layer, [expert])) - unedited
                found = float(ds.loss_change.sel(path="total", layer=layer, expert=str(expert)))
                assert abs(found - expected) < 2e-5, (how, layer, expert, found, expected)


@pytest.mark.parametrize("model_type", WATCHED)
def test_ablations_and_attributions_are_the_same_layer_by_layer(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path)
    model = moe_probe.load(tmp_path)
    how = "zero" if "mask" in UNDECIDED.get(model_type, ()) else "mask"
    options = {
        "layers": [model.moe_layers[-1]],
        "bootstrap": 0,
        "progress": False,
        "experts": [0, 4],
        "batch_tokens": 30,
    }
    here, there = (
        intervene.ablate(model, DOCUMENTS, how, execution=each, **options) for each in ("resident", "layerwise")
    )
    np.testing.assert_allclose(there.loss_change, here.loss_change, rtol=0, atol=2e-5)
    slopes = [
        intervene.attribution(model, DOCUMENTS, execution=each, bootstrap=0, progress=False).loss_change
        for each in ("resident", "layerwise")
    ]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=0, atol=2e-5)
    layer, step = model.moe_layers[0], 0.003  # no choice changes within it
    module = model.module
    for expert in (0, 3):
        more, less = (losses(module, intervene.Scale(layer, [expert], 1 + sign * step)) for sign in (1, -1))
        expected = -(more - less) / (2 * step)
        assert abs(float(slopes[0].sel(layer=layer, expert=str(expert))) - expected) < 5e-5 + 0.02 * abs(expected)


@pytest.mark.parametrize("model_type", WATCHED)
def test_a_pruned_checkpoint_computes_what_the_masked_model_does(model_type, tmp_path):
    module = tiny_model(model_type)
    module.save_pretrained(tmp_path / "whole")
    scores = pruning.scores(tmp_path / "whole", names="gate_norm", progress=False)
    plan = pruning.plan(tmp_path / "whole", scores, 2 / EXPERTS)
    if model_type in UNCUT:
        with pytest.raises(NotFitting):
            pruning.prune(tmp_path / "whole", plan, tmp_path / "cut")
        assert not (tmp_path / "cut").exists()
        return
    pruning.prune(tmp_path / "whole", plan, tmp_path / "cut")
    close(logits(moe_probe.load(tmp_path / "cut").module), edited(module, *plan.masks()))


def test_a_router_that_cannot_choose_anew_leaves_scores_of_deletion_undefined():
    ds = pruning.scores(tiny_model("deepseek_v4"), DOCUMENTS, ["reap", "naee_single"], progress=False)
    assert ds.value.sel(score="naee_single").isnull().all()
    assert ds.value.sel(score="reap").notnull().any()
    with pytest.raises(CannotWatch, match="masked was chosen all the same"):
        pruning.naee(tiny_model("deepseek_v4"), DOCUMENTS, 2, progress=False)


def test_shared_experts_beside_the_block_have_no_recorded_mean():
    model = moe_probe.load(tiny_model("granitemoeshared"))
    edits = {"mean": [intervene.Mean(model.moe_layers[0], [SHARED])]}
    with pytest.raises(NotFitting, match="outside the MoE block"):
        intervene.effect(model, DOCUMENTS, edits, progress=False)


@pytest.mark.parametrize("model_type", WATCHED)
def test_what_is_recorded_is_the_same_layer_by_layer(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path)
    model = moe_probe.load(tmp_path)
    here, there = (
        dynamic.record(model, DOCUMENTS, outputs="selected", execution=each, batch_tokens=30, progress=False)
        for each in ("resident", "layerwise")
    )
    np.testing.assert_array_equal(there.topk_expert, here.topk_expert)
    for name in ("router_logits", "score", "selection", "topk_weight", "selected_output", "block_output"):
        largest = float(np.abs(here[name].where(np.isfinite(here[name]))).max())
        np.testing.assert_allclose(there[name], here[name], rtol=0, atol=1e-4 * largest, err_msg=name)
