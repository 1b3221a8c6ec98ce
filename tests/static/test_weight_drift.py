"""Drift between two checkpoints against float64, and what cannot be compared."""

import shutil

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from safetensors.torch import load_file, save_file

import moe_probe
from moe_probe import plotting, static
from moe_probe.errors import InputError

MODEL = "ckpt/tiny-mixtral"


@pytest.fixture
def changed(tmp_path):
    """A copy whose layer 0 has one noisier expert and two that changed places, all in bfloat16 precision."""
    folder = tmp_path / "changed"
    shutil.copytree(MODEL, folder)
    generator = torch.Generator().manual_seed(0)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        names = [f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight" for expert in (1, 2)]
        if all(name in tensors for name in names):
            tensors[names[0]], tensors[names[1]] = tensors[names[1]].clone(), tensors[names[0]].clone()
        for name in tensors:
            if "layers.0" in name and "experts.3.w2" in name:
                tensors[name] += 1e-3 * torch.randn(tensors[name].shape, generator=generator).to(tensors[name])
        save_file({k: v.bfloat16().to(v.dtype).contiguous() for k, v in tensors.items()}, path, {"format": "pt"})
    return moe_probe.load(folder)


def unbiased_hsic(K, L):
    """Song et al. 2012, equation 5: of kernels (n, n) as they are."""
    n = len(K)
    K, L = (M - np.diag(np.diag(M)) for M in (K, L))
    return (np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()) / (n * (n - 3))


def test_a_checkpoint_has_not_moved_from_itself():
    found = static.weight_drift(MODEL, MODEL)
    assert float(found.relative_change.max()) == 0
    assert float(found.router_relative_change.max()) == 0
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    np.testing.assert_allclose(found.gram_similarity, 1, atol=1e-12)
    assert (found.nearest == np.arange(8)).all()


def test_drift_equals_a_computation_in_float64(changed):
    before = moe_probe.load(MODEL)
    found = static.weight_drift(before, changed)
    for layer in before.moe_layers:
        for projection in ("up", "gate", "down"):
            one, other = (
                np.stack([m.expert_weight(layer, e, projection).double().numpy().ravel() for e in range(8)])
                for m in (before, changed)
            )
            own = found.sel(layer=layer, projection=projection)
            change = np.linalg.norm(other - one, axis=1) / np.linalg.norm(one, axis=1)
            np.testing.assert_allclose(own.relative_change, change, rtol=1e-5, atol=1e-9)
            hsic = [unbiased_hsic(a @ a.T, b @ b.T) for a, b in ((one, other), (one, one), (other, other))]
            assert float(own.gram_similarity) == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2]), rel=1e-5)
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            np.testing.assert_allclose(own.cosine, (one * other).sum(1) / norms, atol=1e-6)
        routers = [m.router_weight(layer).double().numpy() for m in (before, changed)]
        change = np.linalg.norm(routers[1] - routers[0], axis=1) / np.linalg.norm(routers[0], axis=1)
        np.testing.assert_allclose(found.router_relative_change.sel(layer=layer), change, rtol=1e-9)


def test_experts_that_changed_places_are_found(changed):
    found = static.weight_drift(MODEL, changed).nearest.sel(layer=0)
    assert found.sel(projection="gate").values.tolist() == [0, 2, 1, 3, 4, 5, 6, 7]
    assert found.sel(projection="down").values.tolist() == list(range(8))


def test_only_checkpoints_made_alike_are_compared():
    with pytest.raises(InputError, match="has 12 experts; weight_drift needs two checkpoints of one architecture"):
        static.weight_drift(MODEL, "ckpt/tiny-moe-plus-plus")


def test_figures_say_what_moved(changed):
    found = static.weight_drift(MODEL, changed)
    figures = dict(plotting.figures(found))
    assert "tiny-mixtral to changed" in {text.get_text() for text in plotting.plot(found, title=True).findobj(Text)}
    shown = figures["weight_drift"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, found.relative_change.isel(projection=0))
