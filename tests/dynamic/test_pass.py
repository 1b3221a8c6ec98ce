"""A pass gives the same numbers however it is cut into batches, processes and runs, and refuses what it cannot do."""

import json

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import FIXTURES
from interrupted import run_and_kill

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import FamilyError, InputError, WeightError
from moe_probe.results import load_result, save

LENGTHS = (3, 17, 1, 9, 9, 30, 5)
FAMILIES = ["mixtral", "deepseek", "moe_plus_plus", "grok1_hf", "mh_moe", "x_moe"]


def texts():
    generator = np.random.default_rng(0)
    return [generator.integers(4, 60, length).tolist() for length in LENGTHS]


def analyses():
    return [dynamic.OutputSimilarity("angular"), dynamic.NormScoreRanks(), dynamic.OutputNorms(), dynamic.GateChoices()]


def run(family="mixtral", ids=None, **options):
    model = moe_probe.load(FIXTURES / family / "checkpoint")
    return dynamic.run(model, ids or texts(), analyses(), progress=False, **options)


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        xr.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_batches_nor_execution_matter(family):
    tolerance = 1e-4 if family == "grok1_hf" else 1e-5  # float32 over 12 layers
    expected = run(family, batch_tokens=10**6)
    assert_same(run(family, batch_tokens=1), expected, tolerance)
    assert_same(run(family, batch_tokens=24, execution="layerwise"), expected, tolerance)


def test_documents_do_not_see_each_other_and_padding_is_not_seen():
    together = run(batch_tokens=10**6)["gate_choices"]
    assert together.sizes["token"] == sum(LENGTHS)
    for number, ids in enumerate(texts()):
        alone = run(ids=[ids])["gate_choices"]
        np.testing.assert_allclose(together.weight.isel(token=together.document == number), alone.weight, atol=1e-5)


def test_the_order_of_documents_does_not_matter_for_means():
    forward, backward = run(), run(ids=texts()[::-1])
    np.testing.assert_allclose(
        forward["output_similarity"].similarity, backward["output_similarity"].similarity, atol=1e-6
    )
    np.testing.assert_array_equal(forward["norm_score_ranks"].pairs, backward["norm_score_ranks"].pairs)


@pytest.mark.xdist_group("workers")  # on one worker: processes are started once
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_processes_share_the_corpus(backend):
    with joblib.parallel_config(backend=backend):
        found = run(n_jobs=2)
    assert_same(found, run())


def test_the_tokens_of_a_result_are_those_of_the_documents():
    found = run(batch_tokens=24)["gate_choices"]
    assert found.token_id.values.tolist() == [token for ids in texts() for token in ids]
    assert found.position.values.tolist() == [place for length in LENGTHS for place in range(length)]


def test_labels_and_strings_are_coordinates():
    model = moe_probe.load("ckpt/tiny-mixtral")
    found = dynamic.gate_choices(model, ["def f(x):", "2 + 3 = 5"], labels=["code", "arithmetic"], progress=False)
    assert set(found.label.values) == {"code", "arithmetic"}
    assert "".join(found.string.values[found.document == 1]).endswith("2 + 3 = 5")


def test_capture_leaves_the_model_as_it_was():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    ids = torch.tensor([texts()[1]])
    before = module(ids).logits
    dynamic.run(module, texts(), analyses(), progress=False)
    assert torch.equal(module(ids).logits, before)
    hooks = [hook for part in module.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)]
    fresh = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    assert len(hooks) == sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in fresh.modules())


def test_only_the_layers_asked_for_are_looked_at():
    found = run(layers=[1, 2])
    assert found["output_norms"].layer.values.tolist() == [1, 2]
    assert_same(
        {k: v for k, v in found.items() if k != "norm_score_ranks"},
        {k: v.sel(layer=[1, 2]) for k, v in run().items() if k != "norm_score_ranks"},
    )


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_a_killed_run_goes_on_where_it_was(execution, tmp_path):
    run_and_kill("test_pass", batch_tokens=12, execution=execution, checkpoint_dir=str(tmp_path))
    state = tmp_path / "part-0" / "state.npz"
    assert state.is_file()
    assert_same(run(batch_tokens=12, execution=execution, checkpoint_dir=tmp_path), run())
    with pytest.raises(InputError, match="another model, corpus or set of analyses"):
        run(ids=texts()[1:], batch_tokens=12, execution=execution, checkpoint_dir=tmp_path)


def test_long_corpora_wait_in_temporary_files_that_are_gone_at_once(monkeypatch, tmp_path):
    expected = run()
    monkeypatch.setattr("moe_probe.forward.running.SPILL_BYTES", 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert_same(run(execution="layerwise", batch_tokens=12), expected)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_near():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint", dtype=torch.bfloat16)
    found = dynamic.output_similarity(model, texts(), metric="angular", progress=False)
    np.testing.assert_allclose(found.similarity, run()["output_similarity"].similarity, atol=0.05)


def test_bad_input_is_refused_in_one_sentence(tmp_path):
    model, dense = (moe_probe.load(FIXTURES / name / "checkpoint") for name in ("mixtral", "mistral"))
    choices = [dynamic.GateChoices()]
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        dynamic.run(model, ["a text"], choices)
    with pytest.raises(InputError, match="Document 1 has the token id 9999"):
        dynamic.run(model, [[1, 2], [3, 9999]], choices)
    with pytest.raises(InputError, match="corpus is empty"):
        dynamic.run(model, [[]], choices)
    with pytest.raises(InputError, match="not a file of texts"):
        dynamic.run(model, tmp_path / "none.txt", choices)
    with pytest.raises(InputError, match="No analysis"):
        dynamic.run(model, [[1]], [])
    with pytest.raises(InputError, match="given twice"):
        dynamic.run(model, [[1]], choices * 2)
    with pytest.raises(InputError, match="baseline="):
        dynamic.run(model, [[1]], [dynamic.OutputSimilarity(baseline=True)])
    with pytest.raises(InputError, match="no execution 'fast'"):
        dynamic.run(model, [[1]], choices, execution="fast")
    with pytest.raises(FamilyError, match="dense mistral model"):
        dynamic.run(dense, [[1]], choices)
    with pytest.raises(InputError, match="2 labels for 1 documents"):
        dynamic.run(model, [[1]], choices, labels=["a", "b"])
    with pytest.raises(InputError, match="live model is already in memory"):
        dynamic.run(model.module, [[1]], choices, execution="layerwise")


def test_documents_beyond_the_models_maximum_are_cut_with_a_warning():
    model = moe_probe.load("ckpt/tiny-mixtral")
    with pytest.warns(UserWarning, match="1 of 2 documents are longer than the 512 tokens .* 88 tokens are left out"):
        found = dynamic.gate_choices(model, [[5] * 600, [6]], layers=[0], progress=False)
    assert found.sizes["token"] == 513


def test_values_that_are_not_finite_are_named_with_layer_and_document():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    with torch.no_grad():
        module.model.embed_tokens.weight[41] = float("nan")
    with pytest.raises(WeightError, match=r"Layer 0: the router logits are not finite in document 1, position 0"):
        dynamic.run(module, [[5, 6], [7, 8, 41]], [dynamic.GateChoices()], progress=False)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_texts_come_from_files(suffix, tmp_path):
    model, rows = moe_probe.load("ckpt/tiny-mixtral"), ["one text", "another, longer text"]
    path = tmp_path / f"texts{suffix}"
    frame = pd.DataFrame({"text": rows, "domain": ["a", "b"]})
    if suffix == ".txt":
        path.write_text("\n".join(rows) + "\n\n")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    labels = None if suffix == ".txt" else "domain"
    found = dynamic.gate_choices(model, path, labels=labels, layers=[0], progress=False)
    expected = dynamic.gate_choices(model, rows, layers=[0], progress=False)
    np.testing.assert_array_equal(found.weight, expected.weight)
    if labels:
        assert set(found.label.values) == {"a", "b"}
    with pytest.raises(InputError, match="no column 'missing'"):
        dynamic.gate_choices(model, [{"text": "x"}], labels="missing")


def test_a_result_saves_and_loads(tmp_path):
    found = run()
    for name, dataset in found.items():
        loaded = load_result(save(dataset, tmp_path / f"{name}.nc"))
        xr.testing.assert_equal(loaded, dataset)
        assert loaded.attrs["analysis"] == name
