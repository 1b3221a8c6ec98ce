"""Every interval, chance level and p-value of every analysis is held against a simulation whose truth is known.

The rates here are of few corpora, and find what is grossly wrong; `benchmarks/calibration.py` measures them.
"""

import re

import numpy as np
import pytest
from simulated import SIMULATIONS, World, seen
from test_every_analysis import observed, source_of, texts

from moe_probe import comparisons, dynamic, static
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
        if re.search(r"_(low|high)$", name):
            names.add(re.sub(r"_(low|high)$", "", name))
        elif SAID.fullmatch(name):
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


def results():
    """A result of every analysis that can be asked for alone, by name."""
    accuracy = {"a": 0.1, "b": 0.2, "c": 0.3}
    labels = ["a", "b", "c", "a", "b", "c"]
    for name, cls in dynamic.names().items():
        if name in ("routing_trace", "record"):
            continue
        analysis = cls.example() if name != "task_load" else dynamic.TaskLoad(accuracy)
        source = source_of(labels=labels)
        yield name, observed(analysis, source).result(source)
    model = source_of().model
    for name in static.names():
        if models(name) == 1:
            yield name, static.names()[name](model)
    base = {"one": model}, {"two": model}
    yield "routing_drift", comparisons.routing_drift(*base, texts(), progress=False)
    yield "router_saturation", comparisons.router_saturation({**base[0], **base[1]}, texts(), progress=False)


def test_nothing_is_promised_that_is_not_simulated():
    lacking = {}
    for name, dataset in results():
        names = {BY_ANALOGY.get(each, each) for each in promised(dataset)}
        missing = names - simulated(name) if names else set()
        if missing:
            lacking[name] = sorted(missing)
    assert not lacking, f"add simulations of these to tests/dynamic/simulated.py: {lacking}"


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
