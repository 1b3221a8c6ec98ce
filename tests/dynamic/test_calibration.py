"""Every interval, chance level and p-value of every analysis is held against a simulation whose truth is known.

The rates here are of few corpora, and find what is grossly wrong; `benchmarks/calibration.py` measures them.
"""

import inspect
import re
from functools import cache

import numpy as np
import pytest
from conftest import FIXTURES
from simulated import SIMULATIONS, World, seen
from test_every_analysis import observed, source_of

from moe_probe import comparisons, dynamic, intervene, pruning, static
from moe_probe.static import models

REPEATS = 6
FALSE_POSITIVES, MISSES = 0.2, 0.2  # of few corpora
SAID = re.compile(r"(.*)_(low|high|chance|p|q)$|(p_value|q_value|chance|first_chance|chance_lift)$")
BY_ANALOGY = {  # variables whose simulation has another name: an interval that stands for all classes of tokens
    "pos_density": "word_density",
    "saturation": "saturation",
}


def promised(dataset):
    """The variables of a result with an interval, and its chance levels and p-values."""
    names = set()
    for name in map(str, dataset.data_vars):
        base = re.sub(r"_(low|high)$", "", name)
        if {f"{base}_low", f"{base}_high"} <= set(dataset.data_vars):
            names.add(base)
        elif SAID.fullmatch(name) and base == name:
            names.add(name)
    return names


def simulated(name):
    of = [function for key, (function, _) in SIMULATIONS.items() if key == name or key.startswith(f"{name}_")]
    rng = np.random.default_rng(0)
    found = set()
    for function in of:
        worlds = next(worlds for each, worlds in SIMULATIONS.values() if each is function)
        for world in worlds:
            found |= {key.split(": ")[0] for key in function(rng, world)}
    return found


def dynamic_results():
    """A result of every analysis that can be asked for alone, by name."""
    accuracy = {"a": 0.1, "b": 0.2, "c": 0.3}
    labels = ["a", "b", "c", "a", "b", "c"]
    for name, cls in dynamic.names().items():
        if name in ("routing_trace", "record"):
            continue
        analysis = cls.example() if name != "task_load" else dynamic.TaskLoad(accuracy)
        source = source_of(labels=labels)
        yield name, observed(analysis, source).result(source)


def static_results():
    """A result of every analysis of one model's weights, by name."""
    model = source_of().model
    for name, analysis in static.names().items():
        if models(name) == 1:
            yield name, analysis(model)


def pictures():
    return dynamic.PatchDivergence(grid=(1, 2), pictures=[np.zeros((8, 16))] * 2)


MIXTRAL = FIXTURES / "mixtral" / "checkpoint"
SHORT = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14], [6, 7, 9], [4, 8, 12]]
HALVES = ["a", "b", "a", "b", "a"]
RUN = {"progress": False, "layers": [0, 1]}
PAIR = {"one": MIXTRAL, "two": MIXTRAL}


@cache
def ablated():
    return intervene.ablate(MIXTRAL, SHORT, by_unit=True, labels=HALVES, **RUN)


@cache
def attributed():
    return intervene.attribution(MIXTRAL, SHORT, labels=HALVES, **RUN)


@cache
def scored():
    return pruning.scores(MIXTRAL, SHORT, ["reap", "frequency"], **RUN)


MEASURED = {  # how each function that compares or changes models is asked for a small result, and who simulates it
    comparisons.expert_activation: ("", lambda: comparisons.expert_activation(PAIR, SHORT, **RUN)),
    comparisons.gating_residual: (
        "",
        lambda: comparisons.gating_residual(FIXTURES / "moe_plus_plus" / "checkpoint", SHORT, progress=False),
    ),
    comparisons.patch_divergence_over_steps: (
        "patch_divergence",
        lambda: comparisons.patch_divergence_over_steps(
            dict.fromkeys(("1", "2"), FIXTURES / "mh_moe" / "checkpoint"), [[4, 5], [6, 7]], pictures(), progress=False
        ),
    ),
    comparisons.router_saturation: ("router_saturation", lambda: comparisons.router_saturation(PAIR, SHORT, **RUN)),
    comparisons.routing_drift: (
        "routing_drift",
        lambda: comparisons.routing_drift({"one": MIXTRAL}, {"two": MIXTRAL}, SHORT, **RUN),
    ),
    comparisons.weight_drift: ("", lambda: static.weight_drift(MIXTRAL, MIXTRAL, layers=0, progress=False)),
    intervene.ablate: ("loss_changes", ablated),
    intervene.agreement: (
        "score_agreement",
        lambda: intervene.agreement(ablated(), attributed()),
    ),
    intervene.attribution: ("loss_changes", attributed),
    intervene.claims: ("loss_changes", lambda: intervene.claims(MIXTRAL, SHORT, **RUN)),
    intervene.effect: (
        "loss_changes",
        lambda: intervene.effect(MIXTRAL, SHORT, {"none": intervene.Zero(layer=0, experts=[1])}, progress=False),
    ),
    intervene.search: (
        "loss_changes",
        lambda: intervene.search(MIXTRAL, SHORT, "a", 0.0, labels=HALVES, most=2, controls=1, **RUN),
    ),
    pruning.agreement: ("score_agreement", lambda: pruning.agreement(scored(), ablated())),
    pruning.curve: (
        "loss_changes",
        lambda: pruning.curve(MIXTRAL, scored(), [[20, 21, 22], [23, 24, 25]], [0.25], random=1, progress=False),
    ),
    pruning.merging: (
        "loss_changes",
        lambda: pruning.merging(
            MIXTRAL, pruning.groups(MIXTRAL, SHORT, 4, **RUN), [[20, 21, 22], [23, 24, 25]], random=1, progress=False
        ),
    ),
    pruning.naee: ("", lambda: pruning.naee(MIXTRAL, SHORT, 1, **RUN)),
    pruning.read_observer: ("", scored),  # as of scores
    pruning.scores: ("", scored),
    pruning.super_experts: (
        "",
        lambda: pruning.super_experts(MIXTRAL, pruning.scores(MIXTRAL, SHORT, "max_activation", **RUN)),
    ),
}


def test_every_function_that_gives_a_result_is_looked_through():
    public = {
        function
        for room in (comparisons, intervene, pruning)
        for function in (getattr(room, name) for name in dir(room))
        if inspect.isfunction(function) and str(inspect.signature(function).return_annotation) == "xr.Dataset"
    }
    assert {function.__name__ for function in public - set(MEASURED)} == set(), "add them to MEASURED"


def lacking(simulation, dataset):
    """What a result promises that the simulation of that name does not give."""
    names = {BY_ANALOGY.get(each, each) for each in promised(dataset)}
    return sorted(names - simulated(simulation)) if names else []


@pytest.mark.parametrize("results", [dynamic_results, static_results])
def test_nothing_is_promised_that_is_not_simulated(results):
    missing = {name: lacking(name, dataset) for name, dataset in results()}
    assert not any(missing.values()), f"add simulations of these to tests/dynamic/simulated.py: {missing}"


@pytest.mark.parametrize("function", MEASURED, ids=lambda function: function.__name__)
def test_nothing_is_promised_of_models_that_is_not_simulated(function):
    simulation, result = MEASURED[function]
    missing = lacking(simulation, result())
    assert not missing, f"add simulations of these to tests/dynamic/simulated.py: {missing}"


def test_an_analysis_with_an_interval_and_no_simulation_is_found(monkeypatch):
    class Undeclared(dynamic.ExpertLoad):
        name = "undeclared"

        def variables(self, source):
            share = super().variables(source)["share"]
            return {"spread": share, "spread_low": share, "spread_high": share, "spread_p": share}

    monkeypatch.setattr(dynamic, "names", lambda: {"undeclared": Undeclared})
    missing = {name: lacking(name, dataset) for name, dataset in dynamic_results()}
    assert missing == {"undeclared": ["spread", "spread_p"]}


def rates(name, repeats=REPEATS):
    function, worlds = SIMULATIONS[name]
    rng = np.random.default_rng(5)
    found = {}
    for world in worlds:
        for _ in range(repeats):
            for key, hits in function(rng, world).items():
                found.setdefault(key, []).append(np.ravel(hits))
    return {key: np.concatenate(hits) for key, hits in found.items()}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_intervals_hold_the_truth_and_chance_is_seldom_excluded(name):
    for key, hits in rates(name).items():
        if key.endswith("cover"):
            assert hits.mean() > 1 - MISSES, (key, hits.mean())
        else:
            assert hits.mean() <= FALSE_POSITIVES, (key, hits.mean())


def test_effects_are_found():
    rng = np.random.default_rng(1)
    world = World(word=1.5)
    ds = seen(dynamic.TokenSpecialization(), *world.draw(rng)).isel(layer=0)
    assert (ds.vocabulary_specialization_low > ds.vocabulary_chance).mean() > 0.8
    assert ds.context_independence_low > ds.context_chance
    corpus, logits = World(documents=40, labels=2).draw(rng)
    label = np.repeat([document.label == "t1" for document in corpus.documents], 40)
    logits[label, 0] += 1.0
    load = seen(dynamic.ExpertLoad(), corpus, logits).isel(layer=0)
    assert float(load.label_share_q.sel(expert="0").max()) < 0.01
    tasks = seen(dynamic.TaskLoad(), corpus, logits).isel(layer=0)
    assert tasks.task_distance_p < 0.01
    assert tasks.task_distance > tasks.task_distance_chance_high
    assert tasks.task_distance_low > 0


@pytest.mark.parametrize("documents", [1, 2, 4])
def test_few_documents_have_no_intervals(documents):
    corpus, logits = World(documents=documents, topic=1.0).draw(np.random.default_rng(2))
    for analysis in (dynamic.ExpertLoad(), dynamic.Coactivation(), dynamic.TokenSpecialization()):
        found = seen(analysis, corpus, logits)
        for name in found.data_vars:
            if str(name).endswith(("_low", "_high")):
                assert found[name].isnull().all(), name


@pytest.mark.parametrize("function", [dynamic.ExpertLoad, dynamic.Coactivation, dynamic.TokenSpecialization])
def test_the_order_of_lines_changes_nothing(function):
    rng = np.random.default_rng(3)
    ids = [rng.integers(0, 9, 12).tolist() for _ in range(90)]
    labels = ["a", "b", "c"] * 30
    order = rng.permutation(90)
    model = source_of().model
    found = [
        dynamic.run(model, [ids[at] for at in places], function(), labels=[labels[at] for at in places], progress=False)
        for places in (np.arange(90), order)
    ]
    for name in found[0][function.name].data_vars:
        one, other = (each[function.name][name].values for each in found)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=str(name))
