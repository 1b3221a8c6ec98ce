"""REAP's observer files, written by hand and by us; super experts, by their rules written out."""

import numpy as np
import pytest
import torch
from test_scores import FOLDERS, documents

from moe_probe import pruning
from moe_probe.errors import Damaged, NotComparable, NotFitting

FOLDER = FOLDERS["mixtral"]


@pytest.fixture(scope="module")
def scores():
    return pruning.scores(FOLDER, documents("mixtral"), progress=False)


def by_hand(layers, experts=8):
    generator = torch.Generator().manual_seed(0)
    counts = {layer: torch.randint(1, 9, (experts,), generator=generator) for layer in layers}
    return {
        layer: {
            "total_tokens": torch.tensor(40),
            "expert_frequency": count,
            "pairwise_expert_frequency": count[:, None] + count,
            "ean_sum": torch.rand(experts, generator=generator),
            "reap": torch.rand(experts, generator=generator),
            "online_characteristic_activation_dist": torch.rand(experts, experts),
        }
        for layer, count in counts.items()
    }


def test_a_file_of_the_observer_is_read_as_scores(tmp_path):
    content = by_hand(range(4))
    content[2]["expert_frequency"][3] = 0
    torch.save(content, tmp_path / "observer.pt")
    ds = pruning.read_observer(FOLDER, tmp_path / "observer.pt")
    assert set(ds.score.values.tolist()) == {"ean", "reap", "frequency"}
    np.testing.assert_array_equal(ds.chosen.sel(layer=1), content[1]["expert_frequency"])
    np.testing.assert_allclose(ds.value.sel(score="ean", layer=3), content[3]["ean_sum"])
    np.testing.assert_allclose(ds.value.sel(score="frequency", layer=0) * 40, content[0]["expert_frequency"])
    assert np.isnan(ds.value.sel(score="reap", layer=2, expert="3"))
    assert 3 not in pruning.plan(FOLDER, ds, 0.125, "reap").kept[2]


def test_what_is_written_is_read_again(scores, tmp_path):
    path = pruning.write_observer(FOLDER, scores, tmp_path / "observer.pt")
    ds = pruning.read_observer(FOLDER, path)
    for name in ds.score.values.tolist():
        np.testing.assert_allclose(ds.value.sel(score=name), scores.value.sel(score=name), rtol=1e-12)
    table = torch.load(path, weights_only=True)[1]
    assert int(table["total_tokens"]) == sum(map(len, documents("mixtral")))
    assert table["pairwise_expert_frequency"].shape == (8, 8)
    with pytest.raises(NotFitting, match="reap"):
        pruning.write_observer(FOLDER, scores.sel(score=["ean"]), tmp_path / "other.pt")


@pytest.mark.parametrize("damage", ["text", "no counts", "empty", "list", "code"])
def test_other_files_are_refused(damage, tmp_path):
    path = tmp_path / "observer.pt"
    content = {
        "no counts": {0: {"total_tokens": torch.tensor(3)}},
        "empty": {},
        "list": [1, 2],
        "code": {0: np.random.default_rng},
    }
    if damage == "text":
        path.write_text("no pickle")
    else:
        torch.save(content[damage], path)
    with pytest.raises(Damaged, match="not a file of REAP's observer"):
        pruning.read_observer(FOLDER, path)


def test_a_score_that_a_layer_lacks_is_left_out(tmp_path):
    content = by_hand(range(4))
    del content[3]["reap"]
    torch.save(content, tmp_path / "observer.pt")
    assert set(pruning.read_observer(FOLDER, tmp_path / "observer.pt").score.values.tolist()) == {"ean", "frequency"}
    content[1]["total_tokens"] = torch.tensor([40, 2])
    torch.save(content, tmp_path / "observer.pt")
    with pytest.raises(Damaged, match="total_tokens above 0"):
        pruning.read_observer(FOLDER, tmp_path / "observer.pt")


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save(by_hand([0, 7]), tmp_path / "layers.pt")
    torch.save(by_hand([0], 16), tmp_path / "experts.pt")
    for name in ("layers.pt", "experts.pt"):
        with pytest.raises(NotComparable, match="the model that was observed"):
            pruning.read_observer(FOLDER, tmp_path / name)


def test_super_experts_follow_the_rule_asked_for(scores):
    largest = scores.value.sel(score="max_activation").copy()
    changed = scores.copy(deep=True)
    changed.value.loc[{"score": "max_activation"}] = largest.fillna(0.0)
    for layer, expert, value in ((1, "2", 500.0), (3, "4", 400.0), (2, "1", 49.0)):
        changed.value.loc[{"score": "max_activation", "layer": layer, "expert": expert}] = value
    plain = pruning.super_experts(FOLDER, changed, quantile=0.9)
    assert int(plain.super_expert.sum()) == 4  # of 32, those above the 90 % quantile
    published = pruning.super_experts(FOLDER, changed, quantile=0.9, as_published=True)
    assert np.argwhere(published.super_expert.values).tolist() == [[1, 2]]  # 49 is not above 50; layer 3 is the last
    assert "rounded down" in published.attrs["definition"]
    with pytest.raises(NotFitting, match="max_activation"):
        pruning.super_experts(FOLDER, scores.sel(score=["ean"]))
