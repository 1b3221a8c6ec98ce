"""A record holds everything of a short text, as the model computed it."""

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FIXTURES

import moe_probe
from moe_probe import dynamic
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import InputError
from moe_probe.options import completed

TEXTS = [[5, 6, 7, 8, 9], [10, 11]]


@pytest.mark.parametrize("family", ["mixtral", "deepseek", "moe_plus_plus", "mh_moe"])
def test_weighted_outputs_add_up_to_the_routed_output(family):
    kept = dynamic.record(FIXTURES / family / "checkpoint", TEXTS, outputs="all", progress=False)
    weights = dynamic.gate_choices(FIXTURES / family / "checkpoint", TEXTS, progress=False).weight
    combined = (kept.output * weights).sum("expert").transpose(*kept.routed_output.dims)
    np.testing.assert_allclose(combined, kept.routed_output, atol=1e-5)
    np.testing.assert_allclose(
        kept.norm, np.linalg.norm(kept.output.transpose(..., "expert", kept.output.dims[-1]), axis=-1), rtol=1e-5
    )
    chosen = dynamic.record(FIXTURES / family / "checkpoint", TEXTS, outputs="selected", progress=False)
    width = kept.output.dims[-1]
    picked = kept.output.isel(expert=kept.topk_expert).transpose(*chosen.selected_output.dims)
    assert chosen.selected_output.dims[-2:] == ("rank", width)
    np.testing.assert_allclose(picked, chosen.selected_output, atol=1e-5)


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_logits_are_those_of_the_model(execution):
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    kept = dynamic.record(model, TEXTS, logits=True, execution=execution, progress=False)
    with torch.no_grad():
        expected = torch.cat([model.module(torch.tensor([ids])).logits[0] for ids in TEXTS])
    np.testing.assert_allclose(kept.logits, expected, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.xdist_group("workers")  # on one worker: processes are started once
def test_parts_of_a_corpus_are_put_together():
    folder = FIXTURES / "mixtral" / "checkpoint"
    options = {"outputs": "all", "logits": True, "progress": False}
    xr.testing.assert_allclose(
        dynamic.record(folder, TEXTS, n_jobs=2, **options), dynamic.record(folder, TEXTS, **options), atol=1e-5
    )


def test_what_would_not_fit_is_refused_beforehand_and_counted():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    with pytest.raises(InputError, match=r"record needs 24.9 kB \(7 tokens, 4 layers\); max_bytes is 100 bytes"):
        dynamic.record(model, TEXTS, max_bytes=100)
    kept = dynamic.record(model, TEXTS, outputs="all", logits=True, progress=False)
    analysis = dynamic.Record(outputs="all", logits=True)
    size = sum(kept[name].size * 4 for name in kept.data_vars)
    source = open_source(model, TEXTS, completed({}))
    assert analysis.size(source) == pytest.approx(size, rel=0.05)
