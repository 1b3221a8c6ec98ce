"""Effects, ablations and attributions are those of the blocks written out by hand, however they are computed."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from golden_cases import FOLDERS, HOW, cases, documents, edits, expected, model_and_options, opened
from interrupted import run_and_kill
from torch import nn

import moe_probe
from moe_probe import dynamic, intervene
from moe_probe.errors import InputError, NoSuchName, NotFitting, NothingToRead, OutOfRange
from moe_probe.forward import streaming
from moe_probe.forward.site_call import CHECKED_ROWS
from moe_probe.intervene import Config, Mask, Mean, Only, Scale, TopK, Zero

IDS = [[5, 6, 7, 8, 9, 3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27], [9]]
PATHS = ("total", "direct")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FOLDERS)
def test_effects_are_those_of_the_golden_values(name, how):
    model, options = model_and_options(name, how)
    asked = {case: list(edits(name, case)) for case in cases(name)["cases"] if case != "base"}
    found = intervene.effect(model, documents(name), asked, direct=True, **options)
    np.testing.assert_allclose(found.base_loss, expected(name)["base.total.loss"], atol=2e-5)
    for case in asked:
        for path in PATHS:
            for measure in ("loss", "kl", "top1"):
                wanted = expected(name)[f"{case}.{path}.{measure}"]
                one = found[measure].sel(edit=case, path=path)
                np.testing.assert_allclose(one, wanted, atol=2e-5, err_msg=f"{case} {path} {measure}")
    np.testing.assert_allclose(found.loss - found.base_loss, found.loss_change, atol=1e-12)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["zero", "mask", "mean"])
@pytest.mark.parametrize("name", FOLDERS)
def test_ablations_are_those_of_the_golden_values(name, kind, how):
    model, options = model_and_options(name, how)
    found = intervene.ablate(model, documents(name), kind, direct=True, **options)
    for path in PATHS:
        wanted = expected(name)[f"ablation.{kind}.{path}"]
        np.testing.assert_allclose(found.loss_change.sel(path=path), wanted, atol=2e-5)
    np.testing.assert_array_equal(found.chosen, expected(name)["count"])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FOLDERS)
def test_attributions_are_those_of_the_golden_values(name, how):
    model, options = model_and_options(name, how)
    found = intervene.attribution(model, documents(name), **options)
    np.testing.assert_allclose(found.loss_change, expected(name)["attribution"], atol=2e-5)
    predicted = np.array([len(ids) - 1 for ids in documents(name)])
    pooled = np.tensordot(predicted, found.document_loss_change.values, 1) / predicted.sum()
    np.testing.assert_allclose(pooled, found.loss_change, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny-grok-1", "tiny-mh-moe", "tiny-x-moe", "tiny-moe-plus-plus"])
def test_attribution_is_the_slope_of_the_loss_in_every_family(name):
    model = moe_probe.load(f"ckpt/{name}")
    found, layerwise = (
        intervene.attribution(model, IDS, progress=False, bootstrap=0, execution=how)
        for how in ("resident", "layerwise")
    )
    xr.testing.assert_allclose(found, layerwise, atol=1e-5)
    layer, step = model.moe_layers[0], 1e-2
    expert = int(np.abs(found.loss_change.sel(layer=layer).values).argmax())
    ends = {"more": Scale(layer, [expert], 1 + step), "less": Scale(layer, [expert], 1 - step)}
    moved = intervene.effect(model, IDS, ends, progress=False, bootstrap=0).mean_loss_change.sel(path="total")
    slope = float(moved.sel(edit="less") - moved.sel(edit="more")) / (2 * step)
    assert slope == pytest.approx(float(found.loss_change.sel(layer=layer, expert=str(expert))), rel=0.02, abs=1e-4)
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("name", ["tiny-moe-plus-plus", "tiny-mh-moe", "tiny-deepseek-moe"])
def test_an_edited_run_that_begins_in_the_middle_is_a_whole_one(name):
    """Gating residual, sub-tokens, dense first layers: against a run of the edited model from the beginning."""
    model = moe_probe.load(f"ckpt/{name}")
    layer = model.moe_layers[-1]
    asked = {"mask": Mask(layer, [1, 2]), "scale": Scale(layer, "all", 1.5), "k": TopK(model.moe_layers[0], 1)}
    found, layerwise = (
        intervene.effect(model, IDS, asked, progress=False, execution=how) for how in ("resident", "layerwise")
    )
    xr.testing.assert_allclose(found, layerwise, atol=1e-5)
    for edit, intervention in asked.items():
        runs = [dynamic.record(m, IDS, logits=True, progress=False) for m in (model, model.under(intervention))]
        base, edited = (torch.from_numpy(run.logits.values).log_softmax(-1) for run in runs)
        for document, ids in enumerate(IDS):
            rows = (runs[0].document == document).values
            before, after = base[rows], edited[rows]
            divergence = (before.exp() * (before - after)).sum(-1).mean()
            assert float(found.kl.sel(edit=edit, path="total")[document]) == pytest.approx(float(divergence), abs=1e-5)
            targets = torch.tensor(ids[1:], dtype=torch.long)
            change = nn.functional.nll_loss(after[:-1], targets) - nn.functional.nll_loss(before[:-1], targets)
            if len(ids) > 1:
                told = float(found.loss_change.sel(edit=edit, path="total")[document])
                assert told == pytest.approx(float(change), abs=1e-5)
            else:
                assert np.isnan(found.loss_change.sel(edit=edit, path="total")[document])
        gone = [
            1 - np.mean([len({*a} & {*b}) / len({*a}) for a, b in zip(*pair, strict=True)])
            for pair in zip(
                *(run.topk_expert.values.reshape(*run.topk_expert.shape[:2], -1) for run in runs), strict=True
            )
        ]
        if model.layer(layer).subtokens == 1:
            rerouted = found.rerouted.sel(edit=edit, path="total")
            lengths = np.array([len(ids) for ids in IDS])
            pooled = (rerouted * lengths).sum("document") / lengths.sum()
            np.testing.assert_allclose(pooled, gone, atol=1e-6)


def test_what_changes_nothing_has_no_effect():
    model = moe_probe.load("ckpt/tiny-mixtral")
    found = intervene.effect(model, IDS, {"all": Only(1, "all"), "k": TopK(1, 2)}, direct=True, progress=False)
    np.testing.assert_allclose(found.loss_change.sel(document=[0, 1, 2]), 0, atol=1e-6)
    np.testing.assert_allclose(found.kl, 0, atol=5e-7)  # single precision of log-probabilities near -7
    assert float(found.top1.min()) == 1
    assert float(found.rerouted.max()) == 0


def test_small_divergences_are_right_to_a_millionth():
    model, edit = moe_probe.load("ckpt/tiny-mixtral"), Scale(1, [2], 1.0001)
    found = intervene.effect(model, IDS, {"hardly": edit}, progress=False).kl.sel(edit="hardly", path="total")
    logits = [dynamic.record(each, IDS, logits=True, progress=False).logits for each in (model, model.under(edit))]
    before, after = (torch.tensor(each.values).double().log_softmax(-1) for each in logits)
    by_token = (before.exp() * (before - after)).sum(-1).numpy()
    lengths = [len(ids) for ids in IDS]
    wanted = [part.mean() for part in np.split(by_token, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_a_direct_effect_reroutes_nothing_and_the_last_layers_effect_is_direct():
    asked = {"first": Mask(0, [2]), "last": Mask(3, [6])}
    found = intervene.effect(opened("mixtral"), documents("mixtral"), asked, direct=True, progress=False)
    assert float(found.rerouted.sel(edit="first", path="direct", layer=[1, 2, 3]).max()) == 0
    assert float(found.rerouted.sel(edit="first", path="total", layer=[1, 2, 3]).max()) > 0
    total, direct = (found.kl.sel(edit="last", path=path) for path in PATHS)
    np.testing.assert_allclose(total, direct, atol=1e-7)


def test_the_interval_is_that_of_documents_drawn_again():
    generator = np.random.default_rng(0)
    model, texts = moe_probe.load("ckpt/tiny-mixtral"), generator.integers(5, 500, (40, 6)).tolist()
    found = intervene.effect(model, texts, {"zero": Zero(0, [6])}, progress=False, bootstrap=4000)
    change, predicted = found.loss_change.values[0, 0], np.array([len(ids) - 1 for ids in texts])
    drawn = np.random.default_rng(1).integers(len(texts), size=(20_000, len(texts)))
    means = (change * predicted)[drawn].sum(1) / predicted[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    close = 0.15 * (high - low)  # of the t type here, of percentiles there
    assert float(found.mean_loss_change_low[0, 0]) == pytest.approx(low, abs=close)
    assert float(found.mean_loss_change_high[0, 0]) == pytest.approx(high, abs=close)
    assert float(found.mean_loss_change[0, 0]) == pytest.approx((change * predicted).sum() / predicted.sum())


def test_ablations_by_label_are_those_of_the_documents_of_the_label():
    model, labels = moe_probe.load("ckpt/tiny-mixtral"), ["a", "b", "a"]
    texts = IDS[:3]
    found = intervene.ablate(model, texts, layers=[0], labels=labels, progress=False)
    for label in ("a", "b"):
        own = [ids for ids, each in zip(texts, labels, strict=True) if each == label]
        alone = intervene.ablate(model, own, layers=[0], progress=False)
        np.testing.assert_allclose(found.label_loss_change.sel(label=label), alone.loss_change, atol=5e-6)
    some = intervene.ablate(model, texts, layers=[0, 2], experts=[1, 5], progress=False)
    assert some.loss_change.shape == (1, 2, 2)
    np.testing.assert_allclose(
        some.loss_change.sel(layer=0), found.loss_change.sel(layer=0, expert=["1", "5"]), atol=1e-6
    )
    chosen = found.chosen.sel(layer=0).values
    for expert in range(8):
        others = [each for each in range(8) if each != expert]
        nearest = min(others, key=lambda each: (abs(chosen[each] - chosen[expert]), each))
        assert float(found.control_loss_change[0, 0, expert]) == float(found.loss_change[0, 0, nearest])


@pytest.mark.xdist_group("workers")
def test_workers_measure_the_same():
    model = opened("mixtral")
    alone = intervene.ablate(model, documents("mixtral"), "mean", progress=False, layers=[1])
    shared = intervene.ablate(model, documents("mixtral"), "mean", progress=False, layers=[1], n_jobs=2)
    xr.testing.assert_allclose(shared, alone, atol=1e-6)


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_a_killed_ablation_resumes_where_it_was(tmp_path, execution, monkeypatch):
    model = opened("mixtral")
    assert not model.module.training  # loaded before the fork
    options = {"progress": False, "execution": execution, "batch_tokens": 20}
    whole = intervene.ablate(model, documents("mixtral"), **options)
    called = SimpleNamespace(run=lambda *args, **kwargs: intervene.ablate(*args, **kwargs))
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name, load=importlib.import_module: called if name == "ablate" else load(name),
    )
    run_and_kill("ablate", model, documents("mixtral"), checkpoint_dir=tmp_path, **options)
    xr.testing.assert_identical(
        intervene.ablate(model, documents("mixtral"), checkpoint_dir=tmp_path, **options), whole
    )
    with pytest.raises(NotFitting, match="belongs to another"):
        intervene.ablate(model, documents("mixtral"), "mask", checkpoint_dir=tmp_path, **options)


def test_layers_before_the_edited_one_never_run_again():
    model, calls = opened("mixtral"), [0, 0, 0, 0]

    def counted(index):
        def count(*_):
            calls[index] += 1

        return count

    handles = [layer.self_attn.register_forward_hook(counted(at)) for at, layer in enumerate(model.module.model.layers)]
    try:
        intervene.ablate(model, documents("mixtral")[:1], layers=[2], experts=[0, 1], how="mask", progress=False)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [1, 1, 2, 2]  # once unedited; both edits together from their layer on


def test_experts_of_the_edited_layer_run_again_on_what_chose_the_expert_alone():
    model, texts, seen = opened("mixtral"), documents("mixtral")[:1], []
    record = dynamic.record(model, texts, layers=[2], progress=False)
    chose = int((record.topk_expert.sel(layer=2) == 0).any("rank").sum())
    activation = model.module.model.layers[2].mlp.experts.act_fn
    handle = activation.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    try:
        intervene.ablate(model, texts, layers=[2], experts=[0], progress=False)
    finally:
        handle.remove()
    assert 0 < chose < record.sizes["token"]
    assert sum(seen) == 2 * (record.sizes["token"] + chose + CHECKED_ROWS)


def test_layerwise_every_weight_is_read_once_for_all_edits(monkeypatch):
    model, reads = moe_probe.load(FOLDERS["mixtral"]), []
    read = streaming.StreamedModule._read
    monkeypatch.setattr(streaming.StreamedModule, "_read", lambda self, names: reads.extend(names) or read(self, names))
    intervene.ablate(model, documents("mixtral"), progress=False, execution="layerwise", batch_tokens=16, direct=True)
    assert len(reads) == len(set(reads))
    reads.clear()
    intervene.attribution(model, documents("mixtral"), progress=False, execution="layerwise")
    assert max(reads.count(name) for name in reads) == 2


def test_a_live_model_is_changed_within_and_bit_equal_afterwards():
    model = opened("mixtral")
    module, ids = model.module, torch.tensor(documents("mixtral")[:1])
    with torch.no_grad():
        before = module(ids).logits
        with intervene.applied(module, [Zero(0, [2]), Scale(1, [7], 2.5, where={"position": [0, 1]})]) as same:
            assert same is module
            inside = module(ids).logits
            with pytest.raises(RuntimeError, match="theirs"), intervene.applied(model, Mask(0, [1])):
                raise RuntimeError("theirs")
            assert torch.equal(module(ids).logits, inside)
        after = module(ids).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, inside)
    edited = model.under(Zero(0, [2]), Scale(1, [7], 2.5, where={"position": [0, 1]}))
    wanted = dynamic.record(edited, documents("mixtral")[:1], logits=True, progress=False).logits
    np.testing.assert_allclose(inside[0], wanted, atol=1e-5)
    for edit in (Mean(0, [1]), Config(num_experts_per_tok=1)):
        with pytest.raises(NotFitting), intervene.applied(model, edit):
            pass


def test_tokens_of_a_live_model_are_known_while_it_writes():
    model = moe_probe.load("ckpt/tiny-mixtral")
    ids = torch.tensor(IDS[:1])
    edit = Only(1, [2, 3], where={"position": [7, 8]})
    with intervene.applied(model, edit) as module:
        written = module.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
    again = dynamic.record(model.under(edit), written[:, :-1].tolist(), logits=True, progress=False).logits
    assert again.values[5:].argmax(-1).tolist() == written[0, 6:].tolist()


def test_the_search_finds_what_a_label_needs():
    module = moe_probe.load("ckpt/tiny-mixtral").module
    texts = {"low": [[5, 6, 7, 8, 9, 3], [12, 5, 8, 4, 11]], "high": [[60, 61, 62, 63, 64], [71, 70, 72, 73, 74]]}
    found = intervene.search(module, texts, "low", 0.2, spared=5.0, most=8, controls=3, progress=False)
    size = found.attrs["found"]
    assert size >= 1
    assert float(found.loss_change.sel(size=size, side="label")) >= 0.2
    assert all(float(found.loss_change.sel(size=s, side="label")) < 0.2 for s in found.size.values if s < size)
    cells = list(
        zip(found.removed_layer.values[:size].tolist(), found.removed_expert.values[:size].tolist(), strict=True)
    )
    removed = [Zero(layer, [expert for at, expert in cells if at == layer]) for layer in {layer for layer, _ in cells}]
    checked = intervene.effect(module, texts["low"], {"removed": removed}, progress=False).mean_loss_change
    assert float(found.loss_change.sel(size=size, side="label")) == pytest.approx(checked.item(), abs=1e-5)
    assert found.control_loss_change.shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m: intervene.effect(m, [[5]], {"a": Zero(0, [1])}), NothingToRead, "single token"),
        (lambda m: intervene.ablate(m, [[5], [6]]), NothingToRead, "single token"),
        (lambda m: intervene.attribution(m, [[5]]), NothingToRead, "single token"),
        (lambda m: intervene.effect(m, IDS, {}), NotFitting, "edits is empty"),
        (lambda m: intervene.effect(m, IDS, {"a": []}), InputError, "at least one"),
        (lambda m: intervene.effect(m, IDS, {"a": Config(num_experts_per_tok=1)}), NotFitting, "acts on no MoE layer"),
        (lambda m: intervene.effect(m, IDS, {"a": Zero(9, [1])}), OutOfRange, "MoE layers 0-3"),
        (lambda m: intervene.ablate(m, IDS, "zeroed"), NoSuchName, "did you mean 'zero'"),
        (lambda m: intervene.ablate(m, IDS, layers=[7]), OutOfRange, "MoE layers 0-3"),
        (lambda m: intervene.ablate(m, IDS, experts=[8]), OutOfRange, "experts 0 to 7, not 8"),
        (lambda m: intervene.ablate(m, IDS, baseline=m), NoSuchName, "no option of ablate 'baseline'"),
        (lambda m: intervene.search(m, IDS, "code", 0.1), NoSuchName, "no label of the texts 'code'"),
        (lambda m: intervene.search(m, {"code": IDS}, "code", 0.1), NotFitting, "All texts have the label"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(opened("mixtral"))
