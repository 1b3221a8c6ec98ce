"""Experts and routers of zeros, equal, tiny, huge, far from 0: right numbers, NaN with a reason, or a sentence."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import MixtralConfig, MixtralForCausalLM

import moe_probe
from moe_probe import plotting, static
from moe_probe.errors import InputError, NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.static.gram import SMALLEST_SQUARE


def live(up, gates=None):
    """A one-layer model whose experts' up and gate projections are `up` (E, ff, d), and whose down is its transpose."""
    experts, ff, d = up.shape
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = MixtralConfig(vocab_size=64, hidden_size=d, intermediate_size=ff, num_local_experts=experts, **heads)
    module = MixtralForCausalLM(config).eval()
    mlp = module.model.layers[0].mlp
    with torch.no_grad():
        mlp.experts.gate_up_proj[:] = torch.cat([up, up], 1)
        mlp.experts.down_proj[:] = up.transpose(1, 2)
        if gates is not None:
            mlp.gate.weight[:] = gates
    return moe_probe.load(module)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def one_zero():
    up = normal(5, 32, 32)
    up[2] = 0
    return live(up, normal(5, 32, seed=1) * torch.tensor([1, 1, 1, 1, 0])[:, None])


@pytest.fixture(scope="module")
def equal():
    return live(normal(1, 32, 32).expand(6, 32, 32), torch.zeros(6, 32))


def undefined(variable, **at):
    """The variable is undefined there and nowhere else, and says why."""
    assert variable.attrs["undefined"]
    mask = xr.zeros_like(variable, dtype=bool)
    for dim in ("expert", "other"):
        if dim in variable.dims:
            mask = mask | (variable[dim] == at["expert"])
    np.testing.assert_array_equal(variable.isnull(), mask.transpose(*variable.dims))


@pytest.mark.parametrize("options", [{}, {"level": "neuron_mean"}, {"level": "neuron_aligned"}, {"metric": "cka"}])
def test_an_expert_of_zeros_has_no_cosine_not_even_with_itself(one_zero, options):
    found = static.similarity(one_zero, **options)
    for name in found.data_vars:
        undefined(found[name], expert="2")
    plotting.plot(found).draw_without_rendering()


def test_an_expert_of_zeros_is_at_a_distance(one_zero):
    found = static.similarity(one_zero, metric="l2").l2
    norm = one_zero.expert_weight(0, "0", "up").double().norm()
    np.testing.assert_allclose(found.sel(projection="up", expert="2", other="0"), norm.item(), rtol=1e-6)
    assert "undefined" not in found.attrs


def test_a_gate_embedding_of_zeros_has_no_cosine(one_zero):
    undefined(static.gate_similarity(one_zero).cosine, expert="4")


def test_a_regression_leaves_out_pairs_without_a_similarity(one_zero):
    found = static.gate_regression(one_zero)
    pairs = [pair for pair in found.pair.values if not set(pair.split("-")) & {"2", "4"}]
    x, y = found.similarity.sel(pair=pairs)[0, 0], found.gate.sel(pair=pairs)[0]
    np.testing.assert_allclose(found.r[0, 0], np.corrcoef(x, y)[0, 1], rtol=1e-9)


def test_drift_of_zeros_is_undefined(one_zero):
    found = static.weight_drift(one_zero, one_zero)
    undefined(found.cosine, expert="2")
    undefined(found.relative_change, expert="2")
    assert found.nearest.sel(projection="up").values.tolist() == [[0, 1, -1, 3, 4]]
    assert found.router_cosine.isnull().values.tolist() == [[False] * 4 + [True]]
    assert found.router_relative_change.isnull().values.tolist() == [[False] * 4 + [True]]


@pytest.mark.parametrize("level", ["neuron_mean", "matrix"])
def test_no_line_goes_through_equal_experts(equal, level):
    found = static.gate_regression(equal, level)
    for name in ("r", "r_squared", "slope", "p_value", "r_squared_average"):
        assert found[name].isnull().all()
        assert found[name].attrs["undefined"]
    for _, figure in plotting.figures(found):
        figure.draw_without_rendering()


def test_equal_experts_after_are_the_same_ones(equal):
    assert static.weight_drift(equal, equal).nearest.values[0, 0].tolist() == list(range(6))


@pytest.mark.parametrize("standardize", [True, False])
def test_equal_experts_span_no_plane(equal, standardize):
    with pytest.raises(NotFitting, match=r"All experts of the chosen layers of .* are the same"):
        static.pca(equal, standardize=standardize)


def test_neurons_of_zeros_span_no_plane():
    with pytest.raises(NotFitting, match="All neurons"):
        static.pca(live(torch.zeros(3, 8, 16)), "neuron")


def test_a_router_of_zeros_has_no_rank(equal):
    found = static.router_spectrum(equal)
    assert found.effective_rank.isnull().all()
    assert found.effective_rank.attrs["undefined"]
    assert not found.singular_value.any()
    plotting.plot(found).draw_without_rendering()


@pytest.mark.parametrize("zeros", [1, 3])
def test_many_features_and_experts_of_zeros_are_no_obstacle(zeros, monkeypatch):
    monkeypatch.setattr("moe_probe.static.analyses.pca.DENSE_EIGENSOLVER", 16)
    up = normal(4, 24, 32)
    up[:zeros] = 0
    up[3] *= normal(32, seed=3) - normal(32, seed=3).mean()
    found = static.pca(live(up), "neuron", standardize=False, projections="up")
    points = up.reshape(-1, 32).double().numpy()
    expected = np.linalg.svd(points - points.mean(0), compute_uv=False)[:2] ** 2 / (len(points) - 1)
    np.testing.assert_allclose(found.explained_variance.values[0, 0], expected, rtol=1e-5)


def test_a_start_in_the_null_space_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("moe_probe.static.analyses.pca.DENSE_EIGENSOLVER", 16)
    up = torch.zeros(4, 24, 32)
    up[..., 0], up[..., 1] = normal(4, 24), 0
    up[..., 1] = -up[..., 0]
    found = static.pca(live(up), "neuron", standardize=False, projections="up")
    np.testing.assert_allclose(found.explained_variance_ratio.values[0, 0], [1, 0], atol=1e-9)


def largest(points, standardize):
    centered = points - points.mean(0)
    if standardize:
        deviation = centered.std(0, ddof=1)
        centered = centered[:, deviation > 0] / deviation[deviation > 0]
    squares = np.linalg.svd(centered, compute_uv=False) ** 2
    return squares[0] / (len(points) - 1), squares[0] / squares.sum()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("kind", ["constant", "offset", "tiny"])
def test_neurons_far_from_zero_vary_as_they_do(kind, standardize):
    up = normal(4, 48, 32) * {"constant": 0.02, "offset": 1e-3, "tiny": 1e-22}[kind]
    if kind == "constant":
        up[..., 0] = 0.3
    up += kind == "offset"
    found = static.pca(live(up), "neuron", projections="up", standardize=standardize)
    points = up.reshape(-1, 32).double().numpy()
    if kind == "constant":
        points[:, 0] = 0
    variance, ratio = largest(points, standardize)
    np.testing.assert_allclose(found.explained_variance.values[0, 0, 0], variance, rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio.values[0, 0, 0], ratio, rtol=1e-4)


@pytest.mark.parametrize("experts", [3, 5, 7])
def test_entries_that_all_experts_share_do_not_vary(experts):
    up = normal(1, 32, 32).repeat(experts, 1, 1)
    up[:, :2] += 0.01 * normal(experts, 2, 32, seed=1)
    found = static.pca(live(up), projections="up")
    variance, _ = largest(up.reshape(experts, -1).double().numpy(), True)
    np.testing.assert_allclose(found.explained_variance.values[0, 0, 0], variance, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e18])
def test_no_scale_changes_a_cosine_or_a_component(scale):
    up = normal(4, 32, 32)
    for options in ({}, {"level": "neuron_mean"}, {"level": "neuron_aligned"}, {"metric": "cka"}):
        found, expected = (
            static.similarity(live(weights), projections="up", **options) for weights in (up * scale, up)
        )
        for name in expected.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
    for options in ({}, {"level": "neuron"}):
        found, expected = (static.pca(live(weights), projections="up", **options) for weights in (up * scale, up))
        np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-4)
    assert SMALLEST_SQUARE > 0


def test_no_analysis_changes_a_live_model():
    model = live(normal(4, 32, 32), normal(4, 32))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    for options in ({}, {"level": "neuron_mean"}, {"level": "neuron_aligned"}, {"metric": "cka"}, {"metric": "l2"}):
        static.similarity(model, **options)
    for options in ({}, {"level": "neuron"}, {"standardize": False}):
        static.pca(model, **options)
    for analysis in (static.gate_similarity, static.gate_regression, static.router_spectrum):
        analysis(model)
    static.weight_drift(model, model)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), name


BAD = [
    ("similarity", {"level": "matix"}, NoSuchName, "did you mean 'matrix'"),
    ("similarity", {"metric": "cosin"}, NoSuchName, "did you mean 'cosine'"),
    ("similarity", {"metric": "l2", "level": "neuron_aligned"}, NotFitting, "level='matrix' or 'neuron_mean'"),
    ("similarity", {"n_jobs": 0}, OutOfRange, "pass 1 or more"),
    ("similarity", {"n_jobs": "two"}, WrongType, "whole number"),
    ("similarity", {"shared": "yes"}, WrongType, "pass True or False"),
    ("similarity", {"projections": []}, NotFitting, "pass at least one of them"),
    ("similarity", {"projections": ["upp"]}, NoSuchName, "did you mean 'up'"),
    ("similarity", {"projections": 1.5}, WrongType, "pass a list"),
    ("similarity", {"experts": [1, 1]}, NotFitting, "each expert once"),
    ("similarity", {"experts": []}, NotFitting, "needs at least 2"),
    ("pca", {"n_components": 0}, OutOfRange, "not 2 or 3"),
    ("pca", {"n_components": 7}, OutOfRange, "not 2 or 3"),
    ("pca", {"standardize": 1}, WrongType, "pass True or False"),
    ("pca", {"outliers": 3}, WrongType, r"pass \(a number, a whole number\)"),
    ("pca", {"outliers": (0, 3)}, OutOfRange, "pass eps above 0"),
    ("pca", {"outliers": (1, 2), "level": "neuron"}, NotFitting, "at level='matrix' only"),
    ("pca", {"level": "neurons"}, NoSuchName, "did you mean 'neuron'"),
    ("gate_regression", {"level": "mean"}, NoSuchName, "there are neuron_mean|did you mean"),
    ("gate_regression", {"n_jobs": 0}, OutOfRange, "pass 1 or more"),
]


@pytest.mark.parametrize(("name", "options", "error", "sentence"), BAD)
def test_arguments_are_taken_or_refused(mixtral, name, options, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        getattr(static, name)(mixtral, **options)
    assert isinstance(raised.value, InputError)
    assert not str(raised.value).startswith("It ")


def test_every_analysis_is_found_with_its_levels():
    assert set(static.names()) >= {"similarity", "pca", "weight_drift"}
    assert static.levels("similarity") == ("matrix", "neuron_mean", "neuron_aligned")
    assert static.levels("router_spectrum") == ()
    assert static.unasked("similarity") == ("matrix", "neuron_mean")
    assert static.unasked("router_spectrum") == (None,)
    assert static.unasked("weight_drift") == ()
    assert [static.models(name) for name in ("pca", "weight_drift")] == [1, 2]
    with pytest.raises(AttributeError):
        static.nonesuch  # noqa: B018
    with pytest.raises(NoSuchName, match="did you mean 'similarity'"):
        static.names()["simlarity"]


def test_every_variable_has_a_name_and_units_and_can_be_reached(mixtral):
    for name, function in static.names().items():
        found = function(*[mixtral] * static.models(name))
        for variable in found.data_vars:
            assert found[variable].attrs["long_name"]
            assert found[variable].attrs["units"]
            assert not hasattr(xr.Dataset, str(variable))
