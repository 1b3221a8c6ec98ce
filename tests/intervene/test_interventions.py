"""A model under interventions does what they say, to the digit, wherever it goes; the model itself stays as it is."""

import joblib
import numpy as np
import pytest
import torch
import xarray as xr
from budget import one_in_three
from golden_cases import FOLDERS, cases, edits, expected

import moe_probe
from moe_probe import dynamic, intervene
from moe_probe.errors import InputError, NoSuchName, NotFitting, OutOfRange
from moe_probe.routing import Intervention

TINY = ["tiny-mixtral", "tiny-deepseek-moe", "tiny-grok-1", "tiny-mh-moe", "tiny-x-moe", "tiny-moe-plus-plus"]
IDS = [[5, 6, 7, 8, 9, 3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27]]


def logits(model, ids, **options):
    return dynamic.record(model, ids, logits=True, progress=False, **options).logits.values


@pytest.mark.parametrize("execution", ["resident", "layerwise", "live"])
@pytest.mark.parametrize(
    "named", one_in_three((name, case) for name in FOLDERS for case in cases(name)["cases"]), ids=" ".join
)
def test_logits_are_those_of_the_block_written_out_by_hand(named, execution):
    name, case = named
    model = moe_probe.load(FOLDERS[name])
    if execution == "live":
        model = moe_probe.load(model.module)
    wanted = expected(name)[f"{case}.logits"]
    documents = cases(name)["documents"]  # all of them: means are over all
    options = {} if execution == "live" else {"execution": execution}
    found = logits(model.under(*edits(name, case)), documents, **options)
    np.testing.assert_allclose(found[: len(documents[0])], wanted, atol=3e-5)


def middle_layer(model):
    return model.moe_layers[min(1, len(model.moe_layers) - 1)]


@pytest.mark.parametrize("kind", [intervene.Zero, intervene.Mask])
@pytest.mark.parametrize("name", TINY)
def test_every_family_gives_the_same_in_memory_and_layer_by_layer(name, kind):
    model = moe_probe.load(f"ckpt/{name}")
    layer = middle_layer(model)
    used = dynamic.expert_load(model, IDS, layers=layer, progress=False).selections.values[0]
    expert = int(used.argmax())
    edited = model.under(kind(layer, [expert]))
    resident, layerwise = (
        dynamic.run(edited, IDS, ["gate_choices", "router_scores"], progress=False, execution=how)
        for how in ("resident", "layerwise")
    )
    for analysis in resident:
        xr.testing.assert_allclose(resident[analysis], layerwise[analysis], atol=1e-4)
    assert float(resident["gate_choices"].weight.sel(layer=layer, expert=str(expert)).max()) == 0
    base = dynamic.gate_choices(model, IDS, progress=False)
    moved = abs(resident["gate_choices"].weight - base.weight)
    assert float(moved.sel(layer=layer).max()) > 0
    assert all(float(moved.sel(layer=before).max()) == 0 for before in model.moe_layers if before < layer)


def test_a_masked_expert_is_never_chosen_and_the_scores_say_so():
    model = moe_probe.load("ckpt/tiny-mixtral").under(intervene.Mask(1, [0, 3]))
    found = dynamic.record(model, IDS, progress=False).sel(layer=1)
    assert not np.isin(found.topk_expert, [0, 3]).any()
    assert np.isneginf(found.router_logits.sel(expert=["0", "3"])).all()
    np.testing.assert_allclose(found.score.sum("expert"), 1, atol=1e-6)


def test_the_model_stays_as_it_is_and_shares_its_weights():
    model = moe_probe.load(FOLDERS["mixtral"])
    before = model.module(torch.tensor(IDS[:1])).logits
    edited = model.under(intervene.Zero(0, [1, 2]))
    assert edited.module is model.module
    assert edited.fingerprint != model.fingerprint
    assert edited.name == "checkpoint under Zero(layer=0, experts=(1, 2))"
    assert model.under(intervene.Zero(0, [1])).fingerprint != edited.fingerprint
    dynamic.gate_choices(edited, IDS, progress=False)
    assert torch.equal(model.module(torch.tensor(IDS[:1])).logits, before)
    assert model.interventions == ()


def test_results_say_what_was_done():
    edited = moe_probe.load(FOLDERS["mixtral"]).under(intervene.Zero(0, [1]))
    attrs = dynamic.gate_choices(edited, IDS, progress=False).attrs
    assert attrs["fingerprint"] == edited.fingerprint
    assert attrs["model"].endswith("under Zero(layer=0, experts=(1,))")


def test_interventions_add_up_whether_they_are_given_at_once_or_one_after_the_other():
    model = moe_probe.load(FOLDERS["mixtral"])
    one, other = intervene.Zero(0, [1]), intervene.Mask(2, [3])
    together, apart = model.under(one, other), model.under(one).under(other)
    assert together.interventions == apart.interventions
    np.testing.assert_array_equal(logits(together, IDS), logits(apart, IDS))


@pytest.mark.xdist_group("workers")  # on one worker: processes are started once
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_run_under_interventions_too(backend):
    edited = moe_probe.load(FOLDERS["mixtral"]).under(intervene.Mask(1, [0]))
    expected = dynamic.gate_choices(edited, IDS, progress=False)
    with joblib.parallel_config(backend=backend):
        found = dynamic.gate_choices(edited, IDS, progress=False, n_jobs=2)
    xr.testing.assert_allclose(found, expected, atol=1e-6)


def test_writing_runs_under_interventions_too():
    model = moe_probe.load(FOLDERS["mixtral"])
    edited = model.under(intervene.Mask(1, [0]))
    found = dynamic.generate(edited, IDS[:1], "gate_choices", max_new_tokens=5)["gate_choices"]
    assert float(found.weight.sel(layer=1, expert="0").max()) == 0
    again = dynamic.gate_choices(edited, [found.token_id.values.tolist()], progress=False)
    np.testing.assert_allclose(found.weight, again.weight, atol=1e-5)


def test_progress_of_the_unedited_model_is_not_resumed(tmp_path):
    model = moe_probe.load(FOLDERS["mixtral"])
    dynamic.gate_choices(model, IDS, progress=False, checkpoint_dir=tmp_path)
    with pytest.raises(NotFitting, match="belongs to another model"):
        dynamic.gate_choices(model.under(intervene.Zero(0, [1])), IDS, progress=False, checkpoint_dir=tmp_path)


def test_an_intervention_on_outputs_changes_what_the_model_adds():
    class Negated(Intervention):
        layer = 1

        def output(self, call, routed):
            return -routed

    model = moe_probe.load(FOLDERS["mixtral"])
    found, base = (dynamic.record(m, IDS, progress=False).sel(layer=1) for m in (model.under(Negated()), model))
    np.testing.assert_array_equal(found.routed_output, -base.routed_output)
    np.testing.assert_array_equal(found.topk_weight, base.topk_weight)


def test_a_router_that_chooses_a_masked_expert_all_the_same_is_refused():
    class TooFew(intervene.Mask):
        def check(self, model):
            """Let it through."""

    model = moe_probe.load(FOLDERS["mixtral"])
    with pytest.raises(moe_probe.errors.CannotWatch, match="masked was chosen all the same"):
        dynamic.gate_choices(model.under(TooFew(1, range(7))), IDS, progress=False)


def test_what_the_model_lacks_is_refused_at_once():
    model = moe_probe.load(FOLDERS["mixtral"])
    with pytest.raises(InputError, match="MoE layers 0-3"):
        model.under(intervene.Zero(9, [0]))
    with pytest.raises(OutOfRange, match="experts 0 to 7, not 8"):
        model.under(intervene.Zero(0, [8]))
    with pytest.raises(OutOfRange, match="experts is empty"):
        model.under(intervene.Mask(0, []))
    with pytest.raises(NotFitting, match="masking 7 of 8 leaves 1"):
        model.under(intervene.Mask(0, range(7)))
    with pytest.raises(NoSuchName, match="did you mean 'num_experts_per_tok'"):
        model.under(intervene.Config(num_experts_per_tokn=3))


def test_a_changed_configuration_leaves_the_module_in_memory_alone():
    model = moe_probe.load(moe_probe.load("ckpt/tiny-moe-plus-plus").module)
    other = model.under(intervene.Config(moe_gate_residual=False))
    assert other.module is not model.module
    assert not other.module.config.moe_gate_residual
    assert model.module.config.moe_gate_residual
    weights = zip(other.module.parameters(), model.module.parameters(), strict=True)
    assert all(one is two for one, two in weights)
