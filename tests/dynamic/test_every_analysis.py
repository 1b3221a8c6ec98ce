"""Every analysis of the registry, those of other packages too, keeps the promises that all analyses make."""

import inspect
import sys
from dataclasses import fields
from importlib.metadata import EntryPoint
from types import ModuleType

import joblib
import numpy as np
import pytest
import xarray as xr
from conftest import FIXTURES

import moe_probe
from moe_probe import dynamic
from moe_probe.dynamic import driver
from moe_probe.dynamic.asking import ANALYSES, make_analyses
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import InputError, NoSuchName, NotFitting, WrongType
from moe_probe.options import DEFAULTS, completed
from moe_probe.routing import ROUTING

LABELS = ["a", "b", "a", "b", "a", "b"]


def texts():
    generator = np.random.default_rng(1)
    return [generator.integers(4, 60, length).tolist() for length in (9, 17, 4, 9, 30, 5)]


def source_of(name="moe_plus_plus", **options):
    asked = completed({"labels": LABELS, **options})
    return open_source(moe_probe.load(FIXTURES / name / "checkpoint"), texts(), asked)


@pytest.fixture
def example(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    return dynamic.names()[request.param].example()


every = pytest.mark.parametrize("example", list(dynamic.names()), indirect=True)


def observed(analysis, source, **options):
    """What an analysis finds; two runs may not write to one folder at a time, so it is asked for once."""
    (seen,) = driver.observe(source, [analysis], {"progress": False, **options})
    return seen


def assert_same(found, expected):
    assert list(found.data_vars) == list(expected.data_vars)
    xr.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert {k: v for k, v in found.attrs.items() if k != "flow_from"}.keys() == expected.attrs.keys() - {"flow_from"}


@every
def test_neither_batches_nor_execution_nor_workers_nor_order_matter(example):
    expected = observed(example, source_of()).result(source_of())
    small = source_of(batch_tokens=24)
    assert_same(observed(example, small).result(small), expected)
    layerwise = source_of(batch_tokens=24, execution="layerwise")
    assert_same(observed(example, layerwise).result(layerwise), expected)
    with joblib.parallel_config(backend="threading"):
        split = source_of()
        assert_same(observed(example, split, n_jobs=2).result(split), expected)


@every
def test_states_are_written_and_read_back(example):
    source = source_of()
    seen = observed(example, source)
    state = seen.state()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.values())
    restored = example.fresh()
    restored.restore(state)
    assert {key: value.tolist() for key, value in restored.state().items()} == {
        key: value.tolist() for key, value in state.items()
    }
    assert example.state() == {}
    assert_same(restored.result(source), seen.result(source))


@every
def test_progress_is_resumed_after_every_step(example, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    source = source_of(batch_tokens=24)
    expected = observed(example, source).result(source)
    monkeypatch.setattr("moe_probe.dynamic.saved_states.SECONDS", -1)
    save = driver.SavedStates.save
    steps = []

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        steps.append(arguments[-1])
        raise Stopped

    monkeypatch.setattr(driver.SavedStates, "save", save_and_stop)
    for _ in range(3):
        with pytest.raises(Stopped):
            observed(example, source_of(batch_tokens=24), checkpoint_dir=tmp_path / "progress")
    assert steps == [1, 2, 3]
    monkeypatch.setattr(driver.SavedStates, "save", save)
    again = source_of(batch_tokens=24)
    assert_same(observed(example, again, checkpoint_dir=tmp_path / "progress").result(again), expected)


@every
def test_a_trace_gives_the_same_where_routing_is_all_that_is_needed(example, tmp_path):
    dynamic.run(source_of().model, texts(), dynamic.RoutingTrace(tmp_path / "t"), labels=LABELS, progress=False)
    trace = open_source(tmp_path / "t", None, completed({}))
    if not example.needed() <= ROUTING:
        with pytest.raises(NotFitting, match="which a trace does not hold"):
            driver.check(trace, [example])
        return
    expected = observed(example, source_of()).result(source_of())
    assert_same(observed(example, trace).result(trace), expected)
    parts = open_source(tmp_path / "t", None, completed({}))
    with joblib.parallel_config(backend="threading"):
        assert_same(observed(example, parts, n_jobs=2).result(parts), expected)


@every
def test_variables_say_what_they_are_and_no_name_is_hidden(example):
    found = observed(example, source_of()).result(source_of())
    for name, variable in found.data_vars.items():
        assert not hasattr(xr.Dataset, name)
        assert variable.attrs["long_name"]
        assert "units" in variable.attrs
    assert found.attrs["analysis"] == example.name


@every
def test_an_analysis_says_what_it_is_and_its_function_what_it_takes(example):
    cls = type(example)
    assert cls.title
    assert inspect.getdoc(cls)
    function = getattr(dynamic, cls.name)
    parameters = inspect.signature(function).parameters
    own = {field.name for field in fields(cls) if field.init}
    assert list(parameters)[:2] == ["source", "texts"]
    assert own | set(DEFAULTS) | {"source", "texts"} == set(parameters)
    for name in own - {"baseline"}:
        assert parameters[name].default == inspect.signature(cls).parameters[name].default
    with pytest.raises(NoSuchName, match="did you mean 'batch_tokens'"):
        function("ckpt/tiny-mixtral", [[1]], batch_token=3)


ENTROPY = '''
from dataclasses import dataclass

import torch

from moe_probe import dynamic
from moe_probe.routing import Need
from moe_probe.statistics.states import Total


@dataclass
class RouterEntropy(dynamic.Analysis):
    """Mean entropy of the router's distribution over the experts, in nats."""

    name = "router_entropy"
    title = "Router entropy"
    needs = frozenset({Need.SCORES})
    entropy, rows = Total(), Total()

    def update(self, batch):
        self.entropy.add(batch, torch.special.entr(batch.scores).sum())
        self.rows.add(batch, len(batch.scores))

    def variables(self, source):
        return {"entropy": self.entropy.array / self.rows.array}
'''


@pytest.fixture
def plugin(monkeypatch):
    """An analysis in a package of somebody else, found by its entry point."""
    module = ModuleType("somebody_s_router_entropy")
    exec(compile(ENTROPY, "router_entropy.py", "exec"), vars(module))  # a file of twenty lines
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint("router_entropy", module.__name__, "moe_probe.dynamic")
    found = {**ANALYSES._places, "router_entropy": point}
    monkeypatch.setitem(vars(ANALYSES), "_places", found)
    yield module
    ANALYSES._picked.pop("router_entropy", None)


def test_an_analysis_of_another_package_is_everywhere(plugin):
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    found = dynamic.run(model, texts(), "router_entropy", progress=False)["router_entropy"]
    score = dynamic.record(model, texts(), progress=False).score.astype(float)
    expected = -(score * np.log(score)).sum("expert").mean("token")
    np.testing.assert_allclose(found.entropy, expected, rtol=1e-5)
    xr.testing.assert_identical(dynamic.router_entropy(model, texts(), progress=False), found)
    assert "router_entropy" in dynamic.names()
    layerwise = dynamic.router_entropy(model, texts(), progress=False, execution="layerwise")
    np.testing.assert_allclose(layerwise.entropy, found.entropy, rtol=1e-5)
    assert found.attrs["score_function"] == "softmax"


def test_analyses_are_asked_for_by_instance_class_or_name():
    one, two, three = make_analyses([dynamic.GateChoices(), dynamic.ExpertLoad, "complexity"])
    assert [type(each).name for each in (one, two, three)] == ["gate_choices", "expert_load", "complexity"]
    assert make_analyses("record")[0].outputs == "none"
    with pytest.raises(NoSuchName, match="did you mean 'expert_load'"):
        make_analyses("expert_lod")
    with pytest.raises(WrongType, match="patch_divergence needs grid; pass grid="):
        make_analyses("patch_divergence")
    with pytest.raises(WrongType, match="3 is not an analysis"):
        make_analyses([3])


def test_the_three_kinds_of_source_refuse_alike(tmp_path):
    model, prompts = "ckpt/tiny-mixtral", ["A short text.", "12 * 3 = 36"]
    dynamic.routing_trace(model, prompts, path=tmp_path / "t", progress=False)
    drivers = [
        lambda analyses: dynamic.run(model, prompts, analyses, progress=False),
        lambda analyses: dynamic.generate(model, prompts, analyses, max_new_tokens=2, progress=False),
        lambda analyses: dynamic.from_trace(tmp_path / "t", analyses, progress=False),
    ]
    for drive in drivers:
        with pytest.raises(NotFitting, match="No analysis is given"):
            drive([])
        with pytest.raises(NotFitting, match="expert_load is given twice"):
            drive([dynamic.ExpertLoad(), dynamic.ExpertLoad(threshold=1)])
        with pytest.raises(NotFitting, match="only FFN experts"):
            drive([dynamic.Complexity()])
    for drive in drivers[:2]:
        with pytest.raises(NotFitting, match="max_bytes is 10 bytes"):
            drive([dynamic.Record(max_bytes=10)])


def test_misspelt_options_have_the_nearest_name():
    with pytest.raises(NoSuchName, match="did you mean 'bootstrap'"):
        dynamic.expert_load("ckpt/tiny-mixtral", ["A text."], bootstrp=3)
    with pytest.raises(NoSuchName, match="did you mean 'max_length'"):
        dynamic.run("ckpt/tiny-mixtral", ["A text."], "expert_load", max_lenght=3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_tokens": 0}, "batch_tokens is 0; pass a whole number of at least 1"),
        ({"batch_tokens": 2.5}, "batch_tokens is 2.5; pass a whole number"),
        ({"max_length": -1}, "max_length is -1; pass a whole number of at least 1"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"execution": "layer"}, "did you mean 'layerwise'"),
        ({"progress": "yes"}, "progress is 'yes'"),
        ({"checkpoint_dir": 3}, "checkpoint_dir is 3; pass a string or a path"),
    ],
)
def test_values_out_of_range_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        dynamic.run("ckpt/tiny-mixtral", ["A text."], "gate_choices", **options)
