"""Experts that are all but equal, or of different scale: numbers right to 1e-4, against float64 from the definition."""

import numpy as np
import pytest
import torch
from test_degenerate import live, normal

from moe_probe import static
from moe_probe.dynamic.analyses.output_similarity import cosine_gaps
from moe_probe.errors import NotFitting

EXPERTS = 6


def upcycled(change, kind):
    """(E, ff, d) float32: copies with noise of a relative size."""
    base = 0.02 * normal(1, 64, 32).expand(EXPERTS, 64, 32)
    noise = 0.02 * change * normal(EXPERTS, 64, 32, seed=1)
    if kind == "two families":
        base = torch.where(torch.arange(EXPERTS)[:, None, None] < 3, base, 0.02 * normal(1, 64, 32, seed=2))
    if kind == "offset":
        return 1 + noise / 0.02
    if kind == "one entry in a hundred":
        noise = noise * (normal(EXPERTS, 64, 32, seed=3) > 2.3)
    if kind == "last rows":
        noise = noise * (torch.arange(64)[:, None] >= 61)
    return base + noise


def gaps(vectors):
    """1 - cosine of each pair from differences of unit vectors, in float64."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array([[((one - other) ** 2).sum() / 2 for other in unit] for one in unit])


def distances(vectors):
    return np.array([[np.linalg.norm(one - other) for other in vectors] for one in vectors])


KINDS = ["all", "two families", "offset", "one entry in a hundred", "last rows"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_similarity_of_upcycled_experts_is_that_of_their_differences(kind, change):
    up = upcycled(change, kind)
    flat = up.double().numpy().reshape(EXPERTS, -1)
    model = live(up)
    found = static.similarity(model, projections="up").cosine.values[0, 0]
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(1 - found, gaps(flat), rtol=1e-4, atol=2.3e-16)
    found = static.similarity(model, metric="l2", projections="up").l2.values[0, 0]
    np.testing.assert_allclose(found, distances(flat), rtol=1e-4)
    mean = up.double().numpy().mean(1)
    found = static.similarity(model, "neuron_mean", metric="l2", projections="up").l2.values[0, 0]
    np.testing.assert_allclose(found, distances(mean), rtol=1e-4)
    found = static.similarity(model, "neuron_mean", projections="down").cosine.values[0, 0]
    np.testing.assert_allclose(1 - found, gaps(mean), rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("change", [1e-3, 1e-6])
def test_components_of_upcycled_experts_are_those_of_their_differences(kind, standardize, change):
    up = upcycled(change, kind)
    points = up.double().numpy().reshape(EXPERTS, -1)
    centered = points - points.mean(0)
    if standardize:
        deviation = centered.std(0, ddof=1)
        varies = np.ptp(points, 0) > 0
        centered = centered[:, varies] / deviation[varies]
    squares = np.linalg.svd(centered, compute_uv=False) ** 2
    found = static.pca(live(up), projections="up", standardize=standardize)
    np.testing.assert_allclose(found.explained_variance[0, 0, 0], squares[0] / (EXPERTS - 1), rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio[0, 0, 0], squares[0] / squares.sum(), rtol=1e-4)


@pytest.mark.parametrize("change", [1e-2, 1e-4])
@pytest.mark.parametrize("biased", [True, False])
def test_cka_of_upcycled_experts(change, biased):
    up = upcycled(change, "all")
    kernels = []
    for expert in up.double().numpy():
        rows = expert - expert.mean(1, keepdims=True)
        kernels.append(rows.T @ rows)
    n = len(kernels[0])

    def product(k, m):
        if biased:
            return (k * m).sum()
        k, m = (each - np.diag(np.diag(each)) for each in (k, m))
        total = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (k * m).sum() + total - 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum()

    expected = [[product(k, m) / np.sqrt(product(k, k) * product(m, m)) for m in kernels] for k in kernels]
    found = static.similarity(live(up), metric="cka", projections="up", as_published=biased).cka.values[0, 0]
    np.testing.assert_allclose(1 - found, 1 - np.array(expected), rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("neurons", [16, 256])
def test_cka_of_unrelated_experts_is_0_on_average(neurons):
    found = static.similarity(live(normal(8, neurons, 32)), metric="cka", projections="up")
    apart = ~np.eye(8, dtype=bool)
    assert abs(found.cka.values[0, 0][apart].mean()) < 0.02
    assert found.attrs["estimator"] == "unbiased HSIC"
    with pytest.raises(NotFitting, match="only to metric='cka'"):
        static.similarity(live(normal(3, 8, 32)), as_published=True)


def test_drift_of_experts_that_hardly_moved():
    before = 0.02 * normal(EXPERTS, 64, 32)
    after = before + 2e-6 * normal(EXPERTS, 64, 32, seed=1)
    gates = normal(EXPERTS, 32)
    found = static.weight_drift(live(before, gates), live(after, gates * (1 + 1e-6 * normal(EXPERTS, 32, seed=2))))
    one, other = (each.double().numpy().reshape(EXPERTS, -1) for each in (before, after))
    expected = np.diag(gaps(np.concatenate([one, other])), EXPERTS)
    np.testing.assert_allclose(1 - found.cosine.sel(projection="up")[0], expected, rtol=1e-4)
    change = np.linalg.norm(other - one, axis=1) / np.linalg.norm(one, axis=1)
    np.testing.assert_allclose(found.relative_change.sel(projection="up")[0], change, rtol=1e-5)
    assert found.nearest.values[0, 0].tolist() == list(range(EXPERTS))
    assert 0 < 1 - found.router_cosine.min() < 1e-11


def test_upcycled_experts_find_themselves_again():
    before = upcycled(1e-4, "all")
    after = before + 1e-6 * normal(EXPERTS, 64, 32, seed=5)
    nearest = static.weight_drift(live(before), live(after), projections="up").nearest.values[0, 0]
    one, other = (each.double().numpy().reshape(EXPERTS, -1) for each in (before, after))
    np.testing.assert_array_equal(nearest, gaps(np.concatenate([one, other]))[:EXPERTS, EXPERTS:].argmin(1))


@pytest.mark.parametrize("change", [1e-2, 1e-4, 1e-6])
def test_arrangements_of_upcycled_experts_are_like_as_far_as_their_own_parts_are(change):
    own, fresh = normal(12, 64, 32, seed=1), [normal(12, 64, 32, seed=100 + seed) for seed in range(20)]
    base = 0.02 * normal(1, 64, 32)

    def similarity(one, other):
        before, after = (live(base + 0.02 * change * each) for each in (one, other))
        return static.weight_drift(before, after, projections="up", progress=False).gram_similarity.item()

    assert similarity(own, own) == pytest.approx(1, abs=1e-9)
    kept = [similarity(own, own + 0.01 * each) for each in fresh[:3]]
    assert min(kept) > 0.98
    assert abs(np.mean([similarity(own, each) for each in fresh])) < 0.15


def test_an_arrangement_of_three_experts_cannot_be_told():
    up = normal(3, 64, 32)
    assert np.isnan(static.weight_drift(live(up), live(up), projections="up").gram_similarity).all()


def test_experts_of_every_scale_have_the_cosines_of_their_directions():
    up = normal(EXPERTS, 64, 32)
    scale = 10.0 ** torch.tensor([-18, -9, 0, 4, 9, 18])[:, None, None]
    found = static.similarity(live(up * scale), projections="up").cosine.values[0, 0]
    expected = 1 - gaps((up * scale).double().numpy().reshape(EXPERTS, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_equal_experts_are_at_no_distance_and_aligned_exactly():
    up = normal(3, 64, 32)[torch.tensor([0, 1, 1, 2, 1, 0])]
    found = static.similarity(live(up), metric="l2", projections="up").l2.values[0, 0]
    same = np.array([0, 1, 1, 2, 1, 0])
    np.testing.assert_array_equal(found == 0, same[:, None] == same)
    shuffled = torch.stack([up[0], up[0][torch.randperm(64, generator=torch.Generator().manual_seed(0))]])
    aligned = static.similarity(live(shuffled), "neuron_aligned", projections="up")
    np.testing.assert_array_equal(aligned.cosine.values[0, 0], 1)


@pytest.mark.parametrize("change", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_outputs_that_are_all_but_equal(change, scale):
    base = normal(5, 1, 48).double() + change * normal(5, 4, 48, seed=1).double()
    found = cosine_gaps(base * scale).numpy()
    expected = np.stack([gaps(token.numpy()) for token in base])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not cosine_gaps(base[:, :1].expand(5, 3, 48)).any()
