"""Each kind of intervention does what it says, with others in any order, in every family."""

import copy
from functools import cache, partial
from itertools import permutations

import numpy as np
import pytest
import torch
from golden_cases import documents, opened

import moe_probe
from moe_probe import dynamic, intervene
from moe_probe.errors import CannotWatch, FamilyError, InputError, NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.intervene import (
    Bias,
    Mask,
    Mean,
    Merge,
    Noise,
    Only,
    Patch,
    Permute,
    Random,
    Replace,
    Replay,
    RouteByNorm,
    Scale,
    Steer,
    TopK,
    Uniform,
    Where,
    Zero,
)

TINY = ["tiny-mixtral", "tiny-deepseek-moe", "tiny-grok-1", "tiny-mh-moe", "tiny-x-moe", "tiny-moe-plus-plus"]
IDS = [[5, 6, 7, 8, 9, 3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27]]


@cache
def tiny(name):
    return moe_probe.load(f"ckpt/{name}")


def record(model, ids=IDS, **options):
    return dynamic.record(model, ids, logits=True, progress=False, **options)


@cache
def unedited(name):
    return record(tiny(name))


def logits(model, **options):
    return record(model, layers=model.moe_layers[-1], **options).logits.values


def middle(model):
    """A layer in the middle, and its two experts that are chosen most."""
    layer = model.moe_layers[min(1, len(model.moe_layers) - 1)]
    chosen = dynamic.expert_load(model, IDS, layers=layer, progress=False).selections.values[0]
    first, second = np.argsort(-chosen, kind="stable")[:2].tolist()
    return layer, first, second


def together(layer, first, second, top_k):
    """Every kind, with others that it goes together with."""
    yield [Bias(layer, [second], 2.0), RouteByNorm(layer), Replace(layer, first, second), Noise(layer, [second], 0.3)]
    yield [
        Mask(layer, [first]),
        TopK(layer, top_k + 1),
        Permute(layer, 3),
        Mean(layer, [second]),
        Scale(layer, "all", 1.5),
    ]
    yield [Random(layer, 3), Steer([(layer, second)], [(layer, first)]), Merge(layer, [[0, 1]]), Uniform(layer)]
    yield [
        Zero(layer, [first]),
        Patch(layer, [second], where={"position": [0, 1]}),
        TopK(layer, 1),
        Bias(layer, [0], 1.0),
    ]


@pytest.mark.parametrize("name", TINY)
def test_every_kind_is_the_same_in_memory_layer_by_layer_live_and_in_other_batches(name):
    model, live = tiny(name), moe_probe.load(tiny(name).module)
    base, (layer, first, second) = logits(model), middle(tiny(name))
    for edits in together(layer, first, second, model.layer(layer).top_k):
        found = logits(model.under(*edits))
        layerwise = logits(model.under(*edits), execution="layerwise")
        otherwise = logits(live.under(*reversed(edits)), batch_tokens=1)
        np.testing.assert_allclose(layerwise, found, atol=1e-4, err_msg=str(edits))
        np.testing.assert_allclose(otherwise, found, atol=1e-4, err_msg=str(edits))
        assert np.abs(found - base).max() > 1e-4, edits


@pytest.mark.parametrize("name", TINY)
def test_what_asks_for_nothing_new_changes_no_bit(name):
    model, (layer, *_) = tiny(name), middle(tiny(name))
    base = logits(model)
    for edit in (
        Only(layer, range(model.layer(layer).num_experts)),
        Only(layer, "all"),
        Bias(layer, [0, 1], 0.0),
        TopK(layer, model.layer(layer).top_k),
        Scale(layer, "all", 1.0),
        Noise(layer, "all", 0.0),
        Replay(),
        Replay(of=intervene.reference(model, IDS, progress=False)),
    ):
        np.testing.assert_array_equal(logits(model.under(edit)), base, err_msg=str(edit))


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-deepseek-moe"])
def test_an_expert_that_is_never_chosen_changes_nothing(name):
    model, ids = tiny(name), IDS[1:2]
    load = dynamic.expert_load(model, ids, progress=False).selections
    layer = int(load.layer[(load == 0).any("expert").values.argmax()])
    idle = int((load.sel(layer=layer).values == 0).argmax())
    base = record(model, ids).logits.values
    for kind in (Zero, Mean, Patch, partial(Scale, factor=3.0), partial(Noise, sd=1.0), partial(Replace, by=0)):
        np.testing.assert_allclose(record(model.under(kind(layer, [idle])), ids).logits.values, base, atol=1e-5)
    if name == "tiny-mixtral":  # weights are divided by their sum, so that a mask does not show in them either
        np.testing.assert_allclose(record(model.under(Mask(layer, [idle])), ids).logits.values, base, atol=1e-5)


def test_equal_experts_make_every_other_choice_the_same():
    module = copy.deepcopy(opened("mixtral").module)
    for layer in module.model.layers:
        for parameter in layer.mlp.experts.parameters():
            parameter.data[:] = parameter.data[:1]
    model = moe_probe.load(module)
    base = record(model, documents("mixtral"), layers=[3]).logits.values
    for edit in (
        Mask(1, [0, 1]),
        Only(1, [2, 3]),
        Random(1, 5),
        RouteByNorm(1),
        Permute(1),
        Replace(1, 0, 1),
        TopK(1, 4),
    ):
        found = record(model.under(edit), documents("mixtral"), layers=[3]).logits.values
        np.testing.assert_allclose(found, base, atol=2e-5, err_msg=str(edit))
    merged = model.under(Merge(1, [range(8)]))
    np.testing.assert_allclose(record(merged, documents("mixtral"), layers=[3]).logits.values, base, atol=2e-5)


def test_a_mask_carries_no_logit_of_the_expert_to_the_next_layer():
    """MoE++: the next layer's gate map has lost the expert's column."""
    model, (layer, first, _) = tiny("tiny-moe-plus-plus"), middle(tiny("tiny-moe-plus-plus"))
    block = model.module.model.layers[layer + 1].mlp
    router = block.gate
    edited = record(model.under(Mask(layer, [first])))
    before = torch.from_numpy(edited.router_logits.sel(layer=layer).values)
    own = router.wg(torch.from_numpy(edited.expert_input.sel(layer=layer + 1).values) / block.input_scale)
    carried = before.masked_fill(before == -torch.inf, 0) @ router.gate_map.weight.T
    np.testing.assert_allclose(edited.router_logits.sel(layer=layer + 1), (own + carried).detach(), atol=1e-4)


def test_a_bias_is_carried_to_the_next_layer():
    model, (layer, first, _) = tiny("tiny-moe-plus-plus"), middle(tiny("tiny-moe-plus-plus"))
    base, edited = unedited("tiny-moe-plus-plus"), record(model.under(Bias(layer, [first], 2.0)))
    difference = (edited.router_logits - base.router_logits).sel(layer=layer)
    np.testing.assert_allclose(difference.sel(expert=str(first)), 2, atol=1e-5)
    np.testing.assert_allclose(difference.drop_sel(expert=str(first)), 0, atol=1e-5)


def test_steered_experts_come_just_above_and_just_below_all_others():
    model, base = tiny("tiny-mixtral"), unedited("tiny-mixtral").router_logits.sel(layer=1).values
    found = record(model.under(Steer(promote=[(1, 2), (1, 5)], demote=[(1, 0)]))).sel(layer=1)
    expected = base.copy()
    expected[:, [2, 5]] = base.max(1, keepdims=True) + 0.01
    expected[:, 0] = base.min(1) - 0.01
    np.testing.assert_allclose(found.router_logits, expected, atol=1e-5)
    assert set(found.topk_expert.values.flatten().tolist()) == {2, 5}
    np.testing.assert_allclose(found.topk_weight, 0.5, atol=1e-5)


def test_uniform_weights_keep_their_sum_and_permuted_experts_their_weights():
    model, base = tiny("tiny-deepseek-moe"), unedited("tiny-deepseek-moe").sel(layer=2)
    even = record(model.under(Uniform(2))).sel(layer=2)
    mean = base.topk_weight.mean("rank")
    np.testing.assert_allclose(even.topk_weight, mean.expand_dims(rank=4).transpose(*even.topk_weight.dims), atol=1e-6)
    exchange = Permute(2, seed=4).exchange(16).numpy()
    assert (exchange != np.arange(16)).all()
    moved = record(model.under(Permute(2, seed=4))).sel(layer=2)
    np.testing.assert_array_equal(moved.topk_expert, exchange[base.topk_expert])
    np.testing.assert_array_equal(moved.topk_weight, base.topk_weight)


def test_random_choices_are_uniform_and_belong_to_their_token():
    model, ids = tiny("tiny-mixtral"), [np.random.default_rng(0).integers(5, 90, 60).tolist() for _ in range(20)]
    found = dynamic.record(model.under(Random(1, seed=7)), ids, progress=False, layers=[1]).sel(layer=1)
    counts = np.bincount(found.topk_expert.values.flatten(), minlength=8)
    assert np.abs(counts - 300).max() < 5 * np.sqrt(300 * 7 / 8)  # 2,400 choices, five standard deviations
    alone = dynamic.record(model.under(Random(1, seed=7)), ids[:1], progress=False, layers=[1]).sel(layer=1)
    np.testing.assert_array_equal(alone.topk_expert, found.topk_expert[:60])
    other = dynamic.record(model.under(Random(1, seed=8)), ids, progress=False, layers=[1]).sel(layer=1)
    assert (other.topk_expert != found.topk_expert).mean() > 0.5


def test_noise_has_its_standard_deviation():
    model, ids = tiny("tiny-mixtral"), [np.random.default_rng(0).integers(5, 90, 60).tolist() for _ in range(5)]
    base, noisy = (
        dynamic.record(each, ids, progress=False, layers=[1]).sel(layer=1)
        for each in (model, model.under(Noise(1, "all", 0.5)))
    )
    difference = (noisy.routed_output - base.routed_output).values
    scale = np.sqrt((base.topk_weight.values**2).sum(1))[:, None]
    assert abs((difference / scale).std() / 0.5 - 1) < 0.02
    assert abs((difference / scale).mean()) < 0.01


def test_a_patch_gives_what_the_expert_gives_on_the_other_texts():
    model, other = tiny("tiny-mixtral"), [[9, 8, 7, 6, 5, 4], [13, 12, 11], [27, 26, 25, 24]]
    source = intervene.reference(model, other, inputs=True, progress=False)
    clean = dynamic.record(model, other, outputs="all", progress=False).sel(layer=0)
    found = record(model.under(Patch(0, "all", source=source))).sel(layer=0)
    for token in range(3):
        weights, experts = found.topk_weight[token].values, found.topk_expert[token].values
        expected = (weights[:, None] * clean.output[token].values[experts]).sum(0)
        np.testing.assert_allclose(found.routed_output[token], expected, atol=1e-5)
    base = unedited("tiny-mixtral").sel(layer=0)  # the third document is longer than its counterpart
    np.testing.assert_array_equal(found.routed_output[-4:], base.routed_output[-4:])
    with pytest.raises(NotFitting, match="lacks document 2"):
        record(model.under(Patch(0, "all", source=intervene.reference(model, other[:2], inputs=True, progress=False))))


def test_merged_experts_run_with_averaged_weights_and_matched_neurons():
    module = copy.deepcopy(tiny("tiny-mixtral").module)
    experts = module.model.layers[1].mlp.experts
    order = torch.randperm(experts.down_proj.shape[2], generator=torch.Generator().manual_seed(0))
    gate, up = experts.gate_up_proj.data[0].chunk(2)
    experts.gate_up_proj.data[1] = torch.cat([gate[order], up[order]])
    experts.down_proj.data[1] = experts.down_proj.data[0][:, order]
    model = moe_probe.load(module)  # experts 0 and 1 are the same, with neurons in another order
    base = logits(model)
    np.testing.assert_allclose(logits(model.under(Merge(1, [[0, 1]], aligned=True))), base, atol=1e-4)
    assert np.abs(logits(model.under(Merge(1, [[0, 1]]))) - base).max() > 1e-3
    averaged = copy.deepcopy(module)
    for parameter in averaged.model.layers[1].mlp.experts.parameters():
        parameter.data[2:5] = parameter.data[2:5].mean(0)
    np.testing.assert_allclose(logits(model.under(Merge(1, [[2, 3, 4]]))), logits(moe_probe.load(averaged)), atol=1e-4)
    for before, after in zip(module.parameters(), model.module.parameters(), strict=True):
        assert before is after


def test_shared_experts_are_zeroed_scaled_and_replaced_by_their_mean():
    model, layer = tiny("tiny-deepseek-moe"), 2
    base = unedited("tiny-deepseek-moe").sel(layer=layer)
    shared = (base.block_output - base.routed_output).values
    for edit, expected in (
        (Zero(layer, ["S"]), 0 * shared),
        (Scale(layer, ["S"], 3.0), 3 * shared),
        (Mean(layer, ["S"]), np.broadcast_to(shared.mean(0), shared.shape)),
    ):
        found = record(model.under(edit)).sel(layer=layer)
        np.testing.assert_allclose(found.block_output - found.routed_output, expected, atol=1e-5)
        np.testing.assert_array_equal(found.routed_output, base.routed_output)


# Tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "document", "expected"),
    [
        ({"position": [1, 2]}, 0, [0, 1, 1, 0, 0, 0]),
        ({"token_id": [9, 3, 12]}, 0, [0, 0, 0, 0, 1, 1]),
        ({"label": "b"}, 1, [1, 1, 1]),
        ({"label": "b"}, 0, [0] * 6),
        (Where(mask={1: [True, False, True]}), 1, [1, 0, 1]),
        ({"label": ["a", "b"], "position": 0}, 1, [1, 0, 0]),
    ],
)
def test_only_the_tokens_that_where_names_are_changed(where, document, expected):
    model, layer = tiny("tiny-mixtral"), 1
    options = {"labels": ["a", "b", "a"]}
    base = record(model, **options).sel(layer=layer)
    for edit in (
        Scale(layer, "all", 2.0, where=where),
        Permute(layer, where=where),
        Bias(layer, [0], 9.0, where=where),
    ):
        found = record(model.under(edit), **options).sel(layer=layer)
        changed = np.abs(found.routed_output - base.routed_output).max("hidden") > 1e-6
        np.testing.assert_array_equal(changed[base.document == document], np.array(expected, bool), err_msg=str(edit))


def test_tokens_can_choose_different_numbers_of_experts():
    model = tiny("tiny-mixtral")
    found = record(model.under(TopK(1, 1, where={"position": 0}), TopK(1, 3, where={"position": [1, 2]}))).sel(layer=1)
    used = (found.topk_weight > 0).sum("rank").values
    np.testing.assert_array_equal(used[:6], [1, 3, 3, 2, 2, 2])
    np.testing.assert_allclose(found.topk_weight.sum("rank"), 1, atol=1e-6)
    alone = record(model.under(TopK(1, 3))).sel(layer=1)
    np.testing.assert_allclose(found.topk_weight[1:3], alone.topk_weight[1:3], atol=1e-6)


def test_a_model_that_writes_is_changed_in_what_it_writes_alone():
    model = tiny("tiny-mixtral")
    edited = model.under(Only(1, [2, 3], where={"label": "generated"}), Noise(0, "all", 0.1, seed=2))
    found = dynamic.generate(edited, IDS[:1], "gate_choices", max_new_tokens=5)["gate_choices"]
    chosen = found.weight.sel(layer=1) > 0
    assert set(found.expert.values[chosen[found.label == "generated"].any("token")]) <= {"2", "3"}
    assert not set(found.expert.values[chosen[found.label == "prompt"].any("token")]) <= {"2", "3"}
    again = dynamic.run(model.under(Noise(0, "all", 0.1, seed=2)), [found.token_id.values.tolist()[:6]], "gate_choices")
    np.testing.assert_allclose(found.weight[:, :6], again["gate_choices"].weight, atol=1e-5)  # noise by position


# Together ------------------------------------------------------------------------------------------------------------


def test_the_order_of_interventions_does_not_matter():
    model = tiny("tiny-mixtral")
    several = [Mask(1, [0]), Bias(1, [3], 1.0), Bias(1, [3], 0.5), Zero(1, [3]), Scale(1, [3, 4], 2.0), Uniform(1)]
    several += [Steer([(1, 5)]), Replace(1, 6, 7), Noise(1, [7], 0.1), Mean(1, [7]), Random(1, 1), TopK(1, 3)]
    base = logits(model.under(*several))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(several))
        np.testing.assert_allclose(logits(model.under(*(several[at] for at in order))), base, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        (Replay(), Mask(1, [0]), "exclude each other in layer 1"),
        (RouteByNorm(1), Random(1), "both set the choice in layer 1"),
        (TopK(1, 1), TopK(1, 3), "both set the number of experts"),
        (Mean(1, [0, 2]), Patch(1, [2]), "both set the output of expert 2"),
        (Merge(1, [[0, 1]]), Mean(1, [1]), "both set the output of expert 1"),
        (Replace(1, 0, 1), Replace(1, 0, 2), "who runs in the place of expert 0"),
        (Replace(1, 0, 1), Replace(1, 1, 2), "form a chain"),
        (Replace(1, 0, 1), Permute(1), "who runs in the place of expert 0"),
        (Mask(1, [0, 1, 2]), Mask(1, [3, 4, 5, 6]), "masking 7 of 8 leaves 1"),
        (TopK(1, 5), Mask(1, [0, 1, 2, 3]), "chooses 5 experts per token; masking 4 of 8 leaves 4"),
    ],
)
def test_what_has_no_meaning_together_is_refused_in_either_order(one, other, sentence):
    for edits in permutations([one, other]):
        with pytest.raises(NotFitting, match=sentence):
            tiny("tiny-mixtral").under(*edits)


def test_what_acts_on_different_tokens_can_be_different():
    model = tiny("tiny-mixtral")
    first, rest = Random(1, 1, where={"position": 0}), RouteByNorm(1, where={"position": [1, 2]})
    found = record(model.under(first, rest)).sel(layer=1).topk_expert
    np.testing.assert_array_equal(found[0], record(model.under(Random(1, 1))).sel(layer=1).topk_expert[0])
    np.testing.assert_array_equal(found[1:3], record(model.under(RouteByNorm(1))).sel(layer=1).topk_expert[1:3])
    overlapping = RouteByNorm(1, where={"position": [0, 1]})
    with pytest.raises(NotFitting, match="two interventions set the choice for one token"):
        record(model.under(first, overlapping))


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: TopK(1, 0), OutOfRange, "k is 0; pass a whole number from 1 to 8"),
        (lambda: TopK(1, 9), OutOfRange, "k is 9; pass a whole number from 1 to 8"),
        (lambda: Zero(1, ["S"]), NotFitting, "has no shared expert; omit 'S'"),
        (lambda: Mask(1, ["S"]), NotFitting, "Mask acts on routed experts"),
        (lambda: Zero(1, ["x"]), WrongType, "'S' for the shared block, or 'all'"),
        (lambda: Only(1, [0]), NotFitting, "leaves 1"),
        (lambda: Steer(), NotFitting, "Steer names no expert"),
        (lambda: Steer([(1, 0)], [(1, 0)]), NotFitting, "promotes and demotes expert 0"),
        (lambda: Steer([(1, 0), (1, 1), (1, 2)]), NotFitting, "promotes 3 experts of layer 1, which chooses 2"),
        (lambda: Steer([(7, 0)]), OutOfRange, "MoE layers 0-3"),
        (lambda: Merge(1, [[0], [1, 2]]), NotFitting, "groups needs two or more experts"),
        (lambda: Merge(1, [[0, 9]]), OutOfRange, "experts 0 to 7, not 9"),
        (lambda: Replace(1, 0, 8), OutOfRange, "experts 0 to 7, not 8"),
        (lambda: Replace(1, 0), NotFitting, "pass by="),
        (lambda: Noise(1, [0], -1.0), OutOfRange, "sd is -1.0"),
        (lambda: Random(1, -1), OutOfRange, "seed is -1"),
        (lambda: Replay(after=3), NotFitting, "no MoE layer after 3"),
        (lambda: Zero(1, [0], where={"lable": "a"}), NoSuchName, "did you mean 'label'"),
        (lambda: Zero(1, [0], where={}), NotFitting, "no condition"),
        (lambda: Zero(1, [0], where={"position": -1}), OutOfRange, "position is -1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(make, error, sentence):
    with pytest.raises(error, match=sentence):
        tiny("tiny-mixtral").under(make())


def test_labels_and_documents_that_the_texts_lack_are_refused():
    model = tiny("tiny-mixtral")
    for where, sentence in (
        ({"label": "cod"}, "no label of the texts 'cod'; did you mean 'code'"),
        ({"mask": {5: [True]}}, "masks document 5"),
        ({"mask": {1: [True]}}, "masks 1 tokens of document 1, which has 3"),
    ):
        with pytest.raises(InputError, match=sentence):
            record(model.under(Zero(1, [0], where=where)), labels=["code", "prose", "code"])


def test_without_texts_what_needs_another_run_is_refused():
    model = tiny("tiny-mixtral")
    for edit in (Mean(1, [0]), Replay(), Patch(1, [0])):
        with pytest.raises(NotFitting, match="needs the unedited run"):
            dynamic.generate(model.under(edit), IDS[:1], "gate_choices", max_new_tokens=2)
    known = Mean(1, [0], of=intervene.reference(model, IDS, progress=False))
    dynamic.generate(model.under(known), IDS[:1], "gate_choices", max_new_tokens=2)
    with pytest.raises(NotFitting, match="no inputs of the experts of layer 1"):
        model.under(Patch(1, [0], source=intervene.reference(model, IDS, progress=False)))


def test_a_router_without_a_top_k_of_all_experts_cannot_choose_otherwise():
    from transformers import Llama4ForCausalLM, Llama4TextConfig, PhimoeConfig, PhimoeForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": 64, "num_local_experts": 4}
    phimoe = moe_probe.load(PhimoeForCausalLM(PhimoeConfig(**sizes, bos_token_id=1, eos_token_id=2)))
    with pytest.raises(CannotWatch, match="does not choose by one top-k"):
        record(phimoe.under(TopK(1, 1)))
    config = Llama4TextConfig(**sizes, head_dim=8, intermediate_size_mlp=32, moe_layers=[1], num_experts_per_tok=1)
    with pytest.raises(FamilyError, match="multiplies the experts' inputs"):
        record(moe_probe.load(Llama4ForCausalLM(config)).under(Zero(1, [0])))


class TestTheDenseModelInThePlaceOfExperts:
    MODEL, DENSE = "ckpt/tiny-mixtral", "ckpt/tiny-mistral"

    def test_where_it_runs_for_all_of_them_the_block_is_its_ffn(self):
        model, dense = moe_probe.load(self.MODEL), moe_probe.load(self.DENSE)
        edited = model.under(Replace(1, "all", by="F", baseline=dense))
        expected = copy.deepcopy(model.module)
        ffn = dense.module.model.layers[1].mlp
        expected.model.layers[1].mlp.register_forward_hook(lambda block, args, output: ffn(args[0]))
        with torch.no_grad():
            wanted = [expected(torch.tensor([ids])).logits[0].numpy() for ids in IDS]
        np.testing.assert_allclose(logits(edited), np.concatenate(wanted), atol=2e-5)
        np.testing.assert_allclose(logits(edited, execution="layerwise"), np.concatenate(wanted), atol=2e-5)
        live = model.under(Replace(1, "all", by="F", baseline=dense.module))
        np.testing.assert_allclose(logits(live), np.concatenate(wanted), atol=2e-5)

    def test_experts_that_were_not_chosen_change_nothing(self):
        model = tiny("tiny-mixtral")
        kept = Where(token_id=[59])
        edited = model.under(Replace(1, [0, 3], by="F", baseline=self.DENSE, where=kept))
        np.testing.assert_array_equal(logits(edited), unedited("tiny-mixtral").logits.values)

    def test_weights_that_were_changed_in_memory_are_those_that_run(self):
        model, dense = tiny("tiny-mixtral"), moe_probe.load(self.DENSE)
        before = logits(model.under(Replace(1, "all", by="F", baseline=dense)))
        with torch.no_grad():
            dense.module.model.layers[1].mlp.down_proj.weight.zero_()
        after = logits(model.under(Replace(1, "all", by="F", baseline=dense)))
        assert np.abs(after - before).max() > 1e-3
        silent = logits(model.under(Zero(1, "all")))
        np.testing.assert_allclose(after, silent, atol=2e-5)

    def test_another_baseline_is_another_model(self):
        model, dense = tiny("tiny-mixtral"), moe_probe.load(self.DENSE)
        changed = copy.deepcopy(dense.module)
        changed.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
        edits = [Replace(1, [0], by="F", baseline=each) for each in (dense, changed)]
        assert len({model.under(edit).fingerprint for edit in edits}) == 2

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"by": "F"}, "by='F' and baseline= together"),
            ({"by": 2, "baseline": "ckpt/tiny-mistral"}, "by='F' and baseline= together"),
            ({"by": "F", "baseline": "ckpt/tiny-mixtral"}, "has no dense FFN in layer 1"),
            ({"by": "F", "baseline": "ckpt/tiny-grok-1"}, "has no dense FFN in layer 1"),
        ],
    )
    def test_what_cannot_run_is_refused(self, options, said):
        with pytest.raises(NotFitting, match=said):
            tiny("tiny-mixtral").under(Replace(1, [0], **options))

    def test_sub_tokens_are_of_another_width(self):
        with pytest.raises(NotFitting, match="takes inputs of 64, the experts of tiny-mh-moe of"):
            tiny("tiny-mh-moe").under(Replace(tiny("tiny-mh-moe").moe_layers[0], [0], by="F", baseline=self.DENSE))
