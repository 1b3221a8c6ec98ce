"""A routing trace holds what the model did: every analysis of routing gives the same numbers from it."""

import errno
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from conftest import FIXTURES
from interrupted import run_and_kill

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import InputError, MachineError, NoSuchName, NothingToRead
from moe_probe.traces import writing as trace_module

FAMILIES = ["mixtral", "deepseek", "moe_plus_plus", "grok1_hf", "mh_moe"]
LENGTHS = (3, 17, 1, 9, 9, 30, 5)
LABELS = list("abcabca")


def texts():
    generator = np.random.default_rng(0)
    return [generator.integers(4, 60, length).tolist() for length in LENGTHS]


def of_routing():
    analyses = [dynamic.GateChoices(), dynamic.ExpertLoad(), dynamic.RouterScores(), dynamic.Coactivation()]
    analyses += [dynamic.TokenSpecialization(2, bootstrap=9), dynamic.TaskLoad(bootstrap=9, permutations=9)]
    spans = dynamic.SubtokenDivergence(spans={1: [(0, 4)]}, bootstrap=9, permutations=9)
    return [*analyses, spans, dynamic.ExpertCapacity(factors=[1.0]), dynamic.PatchDivergence(grid=(1, 1))]


def of_zero_computation():
    return [dynamic.FFNExpertsPerToken(min_count=2, bootstrap=9), dynamic.Complexity()]


def run(folder, family="mixtral", norms=False, analyses=(), **options):
    model = moe_probe.load(FIXTURES / family / "checkpoint")
    recorder = dynamic.RoutingTrace(folder, norms=norms)
    return dynamic.run(model, texts(), [recorder, *analyses], labels=LABELS, progress=False, **options)


LONGER = [({"execution": "layerwise"}, 50), ({"norms": True}, 1 << 17)]


@pytest.mark.parametrize(
    ("options", "file_rows"), [({}, 50), *(pytest.param(*each, marks=pytest.mark.thorough) for each in LONGER)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_analyses_of_a_trace_equal_those_of_the_model(family, file_rows, options, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "FILE_ROWS", file_rows)
    monkeypatch.setattr("moe_probe.dynamic.driver.CHUNK_BYTES", 1)  # whatever is cut, routing is not
    analyses = of_routing() + (of_zero_computation() if family == "moe_plus_plus" else [])
    expected = run(tmp_path / "trace", family, analyses=analyses, batch_tokens=24, **options)
    found = dynamic.from_trace(tmp_path / "trace", analyses)
    assert len(dynamic.read_trace(tmp_path / "trace").files) > 1 or file_rows > 50
    for name, dataset in found.items():
        xr.testing.assert_allclose(dataset, expected[name], rtol=1e-12)
        assert dataset.attrs == expected[name].attrs


def test_rows_say_what_every_choice_was(tmp_path):
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    run(tmp_path / "trace", norms=True, batch_tokens=24)
    frame = dynamic.read_trace(tmp_path / "trace").to_dataframe()
    kept = dynamic.record(model, texts(), outputs="selected", progress=False)
    tokens, layers, k = sum(LENGTHS), len(model.moe_layers), 2
    assert len(frame) == tokens * layers * k
    assert frame.label.tolist()[: LENGTHS[0] * k] == ["a"] * LENGTHS[0] * k
    assert set(frame.kind) == {"ffn"}

    def column(name):
        return frame[name].to_numpy().reshape(layers, tokens, k)

    expert = column("expert")
    np.testing.assert_array_equal(np.sort(expert, -1), np.sort(kept.topk_expert, -1))
    for name, variable in (("logit", "router_logits"), ("score", "score")):
        np.testing.assert_allclose(column(name), np.take_along_axis(kept[variable].values, expert, -1), atol=1e-5)
    order = np.argsort(-kept.topk_weight.values, -1, kind="stable")
    np.testing.assert_allclose(column("weight"), np.take_along_axis(kept.topk_weight.values, order, -1), atol=1e-5)
    norms = np.linalg.norm(kept.selected_output.values, axis=-1)
    np.testing.assert_allclose(column("norm"), np.take_along_axis(norms, order, -1), rtol=1e-4)
    assert (np.diff(column("score"), axis=-1) <= 0).all()


def test_a_trace_reads_like_any_parquet_dataset(tmp_path):
    run(tmp_path / "trace")
    trace = dynamic.read_trace(tmp_path / "trace")
    frame = pd.read_parquet(list(trace.files), columns=["document", "layer", "expert"])
    assert len(frame) == trace.num_rows == int(sum(LENGTHS) * 2 * 4)
    some = trace.to_dataframe(["expert", "weight"])
    assert some.columns.tolist() == ["layer", "document", "position", "subtoken", "rank", "expert", "weight"]
    assert trace.to_dataframe(["string"]).string.tolist() == trace.to_dataframe().string.tolist()


def test_a_trace_is_replaced_only_when_asked_for(tmp_path):
    run(tmp_path / "trace")
    with pytest.raises(InputError, match="holds a trace already; pass overwrite=True"):
        dynamic.RoutingTrace(tmp_path / "trace")
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    dynamic.routing_trace(model, [[5, 6, 7]], path=tmp_path / "trace", overwrite=True, progress=False)
    trace = dynamic.read_trace(tmp_path / "trace")
    assert trace.num_rows == 3 * 2 * len(model.moe_layers)
    assert len(list((tmp_path / "trace").glob("part-*"))) == len(trace.files)


WORKERS = pytest.param({"n_jobs": 2}, marks=pytest.mark.xdist_group("workers"))


@pytest.mark.parametrize("options", [WORKERS, {"execution": "layerwise"}, {"batch_tokens": 1}])
def test_a_trace_is_the_same_however_the_pass_runs(options, tmp_path):
    run(tmp_path / "one", batch_tokens=10**6)
    run(tmp_path / "other", **options)
    one, other = (dynamic.read_trace(tmp_path / name).to_dataframe() for name in ("one", "other"))
    exact = ["layer", "document", "position", "rank", "expert", "token_id", "label"]
    pd.testing.assert_frame_equal(one[exact], other[exact])
    for name in ("logit", "score", "weight"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_a_killed_trace_goes_on_where_it_was(execution, tmp_path):
    trace, folder = str(tmp_path / "trace"), str(tmp_path / "state")
    run_and_kill("test_trace", trace, batch_tokens=12, execution=execution, checkpoint_dir=folder)
    with pytest.raises(InputError, match="its run was not finished; run it again"):
        dynamic.read_trace(trace)
    run(trace, batch_tokens=12, execution=execution, checkpoint_dir=folder)
    run(tmp_path / "whole")
    found, expected = (dynamic.read_trace(path).to_dataframe() for path in (trace, tmp_path / "whole"))
    exact = ["layer", "document", "position", "rank", "expert"]
    pd.testing.assert_frame_equal(found[exact], expected[exact])


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "FILE_ROWS", 100)
    writer, written = pq.ParquetWriter, []

    def full(path, *arguments, **options):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return writer(path, *arguments, **options)

    monkeypatch.setattr(trace_module.pq, "ParquetWriter", full)
    with pytest.raises(MachineError, match=r"No space left on device\); free some space"):
        run(tmp_path, batch_tokens=12)
    assert all(pq.ParquetFile(path).metadata.num_rows for path in tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(InputError, match="its run was not finished"):
        dynamic.read_trace(tmp_path)


def test_what_is_no_trace_is_refused(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(b"of somebody else")
    with pytest.raises(NothingToRead, match=r"it holds no trace\.json"):
        dynamic.read_trace(tmp_path)
    assert not dynamic.is_trace(tmp_path)
    run(tmp_path / "trace")
    with pytest.raises(InputError, match="output_norms needs outputs, which a trace does not hold"):
        dynamic.from_trace(tmp_path / "trace", [dynamic.OutputNorms()])
    with pytest.raises(NoSuchName, match="did you mean 'expert'"):
        dynamic.read_trace(tmp_path / "trace").to_dataframe(["exprt"])


def test_files_of_others_in_the_folder_stay(tmp_path):
    theirs = [tmp_path / name for name in ("part-0.parquet", f"part-{'0' * 32}.parquet", "corpus.parquet", "notes")]
    for path in theirs:
        path.write_bytes(b"theirs")
    run(tmp_path)
    dynamic.routing_trace(
        moe_probe.load(FIXTURES / "mixtral" / "checkpoint"), [[5, 6]], path=tmp_path, overwrite=True, progress=False
    )
    assert all(path.read_bytes() == b"theirs" for path in theirs)
    trace = dynamic.read_trace(tmp_path)
    assert len(list(tmp_path.glob("part-*"))) == len(trace.files) + 2


def test_a_pass_can_go_on_at_any_file(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "FILE_ROWS", 50)
    run(tmp_path, batch_tokens=24)
    trace = dynamic.read_trace(tmp_path)
    assert len(trace.files) > 2
    rows, first = [len(batch.tokens) for batch in trace.batches()], trace.file_batches(0)
    assert rows[len(first) :] == [len(batch.tokens) for batch in trace.batches(start_file=1)]
    assert list(trace.batches(start_file=len(trace.files))) == []


def test_a_pass_that_goes_on_after_its_end_finishes_once_more(tmp_path):
    for _ in range(2):
        recorder = dynamic.RoutingTrace(tmp_path / "trace", overwrite=True)
        model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
        dynamic.run(model, texts(), [recorder], labels=LABELS, progress=False, checkpoint_dir=tmp_path / "state")
        assert dynamic.read_trace(tmp_path / "trace").num_rows == sum(LENGTHS) * 2 * 4


def test_a_folder_that_was_moved_still_opens(tmp_path):
    run(tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "other")
    assert dynamic.read_trace(tmp_path / "other").num_rows == sum(LENGTHS) * 2 * 4
