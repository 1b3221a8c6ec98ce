"""Static analyses beyond the published values: independent float64 numbers, bad input, workers, files."""

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from joblib import parallel_config
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA

import moe_probe
from moe_probe import static
from moe_probe.errors import FamilyError, InputError, WeightError
from moe_probe.results import load_result, save


def neurons(model, layer, label, projection):
    weight = model.expert_weight(layer, label, projection).double()
    return weight.T if projection == "down" else weight


def test_cka_is_the_definition_and_ignores_the_order_of_neurons(deepseek):
    found = static.similarity(deepseek, metric="cka", layers=1, shared=True, as_published=True)
    for projection in ("up", "down"):
        x, y = (neurons(deepseek, 1, label, projection).T for label in ("2", "S"))
        x, y = (m - m.mean(0) for m in (x, y))
        cross, own = (x.T @ y).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
        at = found.cka.sel(layer=1, projection=projection, expert="2", other="S")
        np.testing.assert_allclose(at, (cross / own).item(), rtol=1e-5)


def test_l2_is_the_distance(mixtral, mistral):
    found = static.similarity(mixtral, metric="l2", layers=[2], baseline=mistral)
    a, b = mixtral.expert_weight(2, 1, "up").double(), mistral.expert_weight(2, "F", "up").double()
    at = found.l2.sel(layer=2, projection="up", expert="1", other="F")
    np.testing.assert_allclose(at, (a - b).norm().item(), rtol=1e-5)


@pytest.mark.parametrize("n_components", [2, 3])
@pytest.mark.parametrize("level", ["matrix", "neuron"])
def test_pca_without_standardization_is_scikit_learns(mixtral, level, n_components):
    found = static.pca(mixtral, level, n_components=n_components, standardize=False, layers=1, projections="down")
    rows = [neurons(mixtral, 1, str(e), "down").numpy() for e in range(8)]
    points = np.stack([r.ravel() for r in rows]) if level == "matrix" else np.concatenate(rows)
    reference = PCA(n_components, svd_solver="full").fit(points)
    np.testing.assert_allclose(found.explained_variance.squeeze(), reference.explained_variance_, rtol=1e-4)
    expected = np.abs(reference.transform(points))
    np.testing.assert_allclose(np.abs(found.coordinates.squeeze()), expected, atol=1e-3 * expected.max())


def test_router_spectrum_is_the_singular_values(mixtral):
    found = static.router_spectrum(mixtral)
    expected = np.linalg.svd(mixtral.router_weight(3).double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.singular_value.sel(layer=3), expected, rtol=1e-10)
    share = expected / expected.sum()
    np.testing.assert_allclose(found.effective_rank.sel(layer=3), np.exp(-(share * np.log(share)).sum()), rtol=1e-10)


@pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.xdist_group("workers")), "threading"])
def test_the_number_of_workers_does_not_change_a_digit(mixtral, backend):
    alone = static.similarity(mixtral, "neuron_aligned", layers=0)
    with parallel_config(backend=backend):
        assert static.similarity(mixtral, "neuron_aligned", layers=0, n_jobs=2).equals(alone)
        assert static.similarity(mixtral, n_jobs=2).equals(static.similarity(mixtral))


def test_a_live_model_gives_what_its_files_give(mixtral):
    live = moe_probe.load(mixtral.module)
    assert static.similarity(live).equals(static.similarity(mixtral))
    assert static.gate_similarity(live).equals(static.gate_similarity(mixtral))


@pytest.mark.parametrize("analysis", [static.similarity, static.pca, lambda m: static.similarity(m, "neuron_mean")])
def test_nan_is_named_with_layer_expert_and_projection(mixtral, tmp_path, analysis):
    for path in mixtral.checkpoint.path.iterdir():
        tensors = load_file(path) if path.suffix == ".safetensors" else None
        if tensors is None:
            (tmp_path / path.name).write_bytes(path.read_bytes())
            continue
        key = "model.layers.2.block_sparse_moe.experts.5.w1.weight"
        if key in tensors:
            tensors[key][3, 4] = float("nan")
        save_file(tensors, tmp_path / path.name)
    with pytest.raises(WeightError, match="gate projection of expert 5 in layer 2"):
        analysis(tmp_path)


def test_arguments_that_do_not_fit_are_refused_in_one_sentence(mixtral, mistral, deepseek):
    bad = [
        (lambda: static.similarity(mistral), FamilyError, "dense"),
        (lambda: static.similarity(mixtral, layers=[7]), InputError, "0-3"),
        (lambda: static.similarity(mixtral, "nonesuch"), InputError, "neuron_aligned"),
        (lambda: static.similarity(mixtral, "neuron_mean", metric="cka"), InputError, "not defined"),
        (lambda: static.similarity(mixtral, projections="sideways"), InputError, "sideways"),
        (lambda: static.similarity(mixtral, experts=["1", "12"]), InputError, "12"),
        (lambda: static.similarity(mixtral, baseline=mixtral), InputError, "dense model"),
        (lambda: static.similarity(mixtral, shared=True), InputError, "shared"),
        (lambda: static.similarity(deepseek, shared=True), InputError, "neuron_mean"),
        (lambda: static.pca(mixtral, n_components=4), InputError, "2 or 3"),
        (lambda: static.gate_similarity(deepseek, layers=0), InputError, "1-3"),
    ]
    for call, error, words in bad:
        with pytest.raises(error, match=words):
            call()


def test_results_save_load_and_carry_their_provenance(mixtral, tmp_path):
    found = static.similarity(mixtral, layers=[0])
    loaded = load_result(save(found, tmp_path / "deep" / "result.nc"))
    assert loaded.equals(found)
    assert loaded.attrs["fingerprint"] == mixtral.fingerprint
    assert not list(tmp_path.rglob("*.partial"))
    assert found.to_dataframe().shape == (3 * 64, 1)
    (tmp_path / "other.nc").write_text("no")
    with pytest.raises(InputError, match="not a result"):
        load_result(tmp_path / "other.nc")


def test_constant_entries_are_left_out_of_a_standardized_pca(mixtral):
    from moe_probe.checkpoint import InMemory, Stored
    from moe_probe.static.gram import Matrices, standardized_gram

    values = torch.randn(4, 3, 5)
    values[:, 0] = 2.0
    gram = standardized_gram(Matrices(0, "up", tuple("0123"), tuple(Stored(InMemory(v)) for v in values)))
    np.testing.assert_allclose(gram.trace(), 3 * 10, rtol=1e-5)


def test_experts_without_matrices_are_left_out_and_it_is_said():
    folder = FIXTURES / "moe_plus_plus" / "checkpoint"
    kinds = moe_probe.load(folder).layer(0).expert_kinds
    for dataset in (static.similarity(folder), static.pca(folder), static.gate_regression(folder)):
        assert dataset.attrs["left_out"] == "experts without matrices: 8 (constant), 9 (constant), 10 (copy), 11 (zero)"
    assert static.similarity(folder).expert.values.tolist() == [str(e) for e, k in enumerate(kinds) if k == "ffn"]
    assert static.gate_similarity(folder).sizes["expert"] == 12
