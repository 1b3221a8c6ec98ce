"""A trace gives what was recorded, whatever tool rewrote its files, or says in a sentence that it does not."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from small_batches import batch_of, corpus_of, layer_of, random_routing

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import Damaged, MoEProbeError
from moe_probe.traces.reading import read_trace
from moe_probe.traces.rows import CARD, COLUMNS, DOCUMENTS, MANIFEST, is_part
from moe_probe.traces.writing import card_digest, finish, new_part, to_table, write_file

LENGTHS = (3, 17, 1, 9)


def analyses():
    return [dynamic.ExpertLoad(bootstrap=0), dynamic.Coactivation(bootstrap=0), dynamic.GateChoices()]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A trace with several batches and layers in one file, and what analyses give of it."""
    folder, generator = tmp_path_factory.mktemp("recorded"), np.random.default_rng(0)
    texts = [generator.integers(4, 60, length).tolist() for length in LENGTHS]
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    dynamic.run(model, texts, [dynamic.RoutingTrace(folder)], labels=list("abca"), batch_tokens=20, progress=False)
    return folder, dynamic.from_trace(folder, analyses())


@pytest.fixture
def copied(recorded, tmp_path):
    shutil.copytree(recorded[0], tmp_path / "trace")
    return tmp_path / "trace", recorded[1]


def part_of(folder):
    (path,) = folder.glob("part-*.parquet")
    return path


def rewrite(path, change, **options):
    pq.write_table(change(pq.read_table(path)), path, **options)


def shuffled(table):
    return table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows)))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda table: table, {}),
        (lambda table: table, {"row_group_size": 7}),
        (lambda table: table, {"compression": "none", "use_dictionary": False}),
        (lambda table: table.select(table.column_names[::-1]), {}),
        (lambda table: table.set_column(7, "expert", table["expert"].cast(pa.int64())), {}),
        (lambda table: table.set_column(4, "label", table["label"].cast(pa.string())), {}),
        (lambda table: table.append_column("more", pa.array(np.arange(table.num_rows))), {}),
    ],
)
def test_files_that_a_tool_rewrote_give_the_same_numbers(change, options, copied):
    folder, expected = copied
    rewrite(part_of(folder), change, **options)
    found = dynamic.from_trace(folder, analyses())
    for name, dataset in found.items():
        xr.testing.assert_allclose(dataset, expected[name], rtol=1e-12)
    frame = dynamic.read_trace(folder).to_dataframe()
    assert len(frame) == sum(LENGTHS) * 2 * 4


@pytest.mark.parametrize(
    "change", [shuffled, lambda table: table.sort_by("expert"), lambda table: table.take([0] * 240)]
)
def test_rows_in_another_order_are_refused(change, copied):
    folder, _ = copied
    rewrite(part_of(folder), change)
    with pytest.raises(Damaged, match=r"not what was recorded, or in another order\); record it again"):
        dynamic.from_trace(folder, analyses())


def change_column(name, value):
    def change(table):
        at, field = table.column_names.index(name), table.schema.field(name)
        values = table[name].to_pylist()
        values[5] = value
        return table.set_column(at, name, pa.array(values, field.type))

    return change


EDITS = {
    "expert": (9999, -1, 0),
    "layer": (77,),
    "document": (999, 1),
    "position": (-5,),
    "rank": (5,),
    "weight": (0.5,),
}
EDITS |= {"subtoken": (3,), "token_id": (10**6,), "label": ("z",), "kind": ("copy",), "score": (None, float("nan"))}
EDITS |= {
    "logit": (9.0,),
    "norm": (1.0,),
    "router_logits": ([1.0], None),
    "scores": ([0.0] * 8,),
    "selection": ([0.0],),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EDITS.items() for value in values])
def test_a_single_value_that_was_edited_is_noticed(name, value, copied):
    folder, _ = copied
    path = part_of(folder)
    before = pq.read_table(path)
    rewrite(path, change_column(name, value))
    if pq.read_table(path)[name].equals(before[name]):
        return
    trace = dynamic.read_trace(folder)
    with pytest.raises(Damaged, match=rf"{path.name} is damaged \(.*\); record it again"):
        list(trace.batches())
    with pytest.raises(Damaged, match="record it again"):
        trace.to_dataframe()


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_column_that_is_missing_is_named(name, copied):
    folder, _ = copied
    rewrite(part_of(folder), lambda table: table.drop_columns([name]))
    with pytest.raises(Damaged, match=f"the column {name} is missing|{name}"):
        dynamic.from_trace(folder, analyses())


def test_rows_and_files_that_are_missing_are_said(copied):
    folder, _ = copied
    path = part_of(folder)
    rewrite(path, lambda table: table.slice(1))
    with pytest.raises(Damaged, match="damaged routing trace: it has 239 of 240 rows"):
        dynamic.read_trace(folder)
    path.unlink()
    with pytest.raises(Damaged, match=f"{path.name} is missing"):
        dynamic.read_trace(folder)
    (folder / DOCUMENTS).unlink()
    with pytest.raises(Damaged, match=r"documents\.parquet is missing"):
        dynamic.read_trace(folder)


def edit_card(folder, change, sealed=False):
    card = json.loads((folder / CARD).read_text())
    change(card)
    if sealed:
        card["digest"] = card_digest(card)
    (folder / CARD).write_text(json.dumps(card))


VALUES = (None, 5, [], {}, "x", ["/etc/passwd"], [{}], {"x": 1})


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("value", VALUES)
def test_a_card_that_was_edited_is_refused(value, sealed, copied):
    folder, _ = copied
    original = json.loads((folder / CARD).read_text())
    for name in original:
        if value == original[name]:
            continue
        edit_card(folder, lambda card, name=name: card.update({**original, name: value}), sealed)
        if sealed and name in ("name", "family", "fingerprint", "digest", "strings", "special", "score_kinds"):
            continue  # whoever can seal a card can write what they like into it; nothing of this is computed with
        with pytest.raises(Damaged):
            dynamic.from_trace(folder, analyses())


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 200_000, b"\xff", b'{"format": 9}', b"{}"])
def test_a_card_that_is_none_is_refused(content, copied):
    folder, _ = copied
    (folder / CARD).write_bytes(content)
    with pytest.raises(Damaged, match="record it again"):
        dynamic.read_trace(folder)


@settings(max_examples=80)
@given(data=st.data())
def test_bytes_that_change_are_noticed_or_mean_the_same(data, recorded, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(recorded[0], folder)
    path = folder / data.draw(st.sampled_from([part_of(folder).name, DOCUMENTS, CARD]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.sampled_from([1, 4, 30]))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content)] * 4 + [len(content) // 2, len(content) - 1]))])
    try:
        found = dynamic.from_trace(folder, analyses())
    except Damaged as error:
        assert len(str(error)) < 700  # noqa: PT017 - either this or the same numbers
    else:
        for name, dataset in found.items():
            xr.testing.assert_equal(dataset, recorded[1][name])


def changed(batch, **changes):
    return type(batch)(**vars(batch) | changes)


class Told:
    """What a trace says of its source."""

    name, family, fingerprint = "by hand", "none", "0"

    def __init__(self, corpus, *layers):
        self.corpus, self.layers = corpus, {layer.index: layer for layer in layers}
        self.moe_layers = tuple(self.layers)


def record(folder, batches, corpus, *layers):
    """Write batches into a trace, a file each."""
    names = []
    for batch in batches:
        names.append(new_part())
        write_file([to_table(batch)], folder / names[-1])
    rows = sum(batch.top_k_index.numel() for batch in batches)
    finish(folder, names, rows, Told(corpus, *layers))
    return read_trace(folder)


def test_what_top_k_ranked_and_the_function_of_the_scores_are_kept(tmp_path):
    layer, corpus = layer_of(5, 2), corpus_of([[1, 2, 3]])
    (batch,) = random_routing(layer, corpus, seed=0)
    selection = batch.scores + torch.tensor([0.0, 0.5, 0.0, float("-inf"), 0.0])
    index = selection.topk(2, dim=1).indices.flip(1)
    batch = changed(batch, selection=selection, top_k_index=index, score_kind="sigmoid (assumed)")
    (found,) = record(tmp_path, [batch], corpus, layer).batches()
    assert torch.equal(found.selection, selection)
    assert torch.equal(found.scores, batch.scores)
    assert found.score_kind == "sigmoid (assumed)"
    assert torch.equal(found.top_k_index, index.flip(1))  # the largest selection score first
    same = changed(batch, selection=batch.scores.clone())
    (found,) = record(tmp_path / "same", [same], corpus, layer).batches()
    assert pq.read_table(part_of(tmp_path / "same"))["selection"].null_count == 6
    assert torch.equal(found.selection, found.scores)


def test_what_another_engine_did_not_record_is_none(tmp_path):
    layer, corpus = layer_of(5, 2), corpus_of([[1, 2, 3]])
    (batch,) = random_routing(layer, corpus, seed=0)
    bare = changed(batch, router_logits=None, scores=None, selection=None, top_k_weights=None)
    (found,) = record(tmp_path, [bare], corpus, layer).batches()
    assert set(found.tensors()) == {"top_k_index"}
    assert torch.equal(found.top_k_index, batch.top_k_index)
    weighted = changed(bare, top_k_weights=torch.tensor([[0.1, 0.9]] * 3))
    (found,) = record(tmp_path / "weighted", [weighted], corpus, layer).batches()
    assert torch.equal(found.top_k_weights, torch.tensor([[0.9, 0.1]] * 3))


@settings(max_examples=25)
@given(data=st.data())
def test_any_routing_comes_back(data, tmp_path_factory):
    experts, subtokens = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    layer = layer_of(
        experts, data.draw(st.integers(1, experts)), index=data.draw(st.integers(0, 9)), subtokens=subtokens
    )
    numbers = st.lists(st.integers(0, 50), min_size=1, max_size=5)
    corpus = corpus_of(data.draw(st.lists(numbers, min_size=1, max_size=3)), None)
    batches = random_routing(layer, corpus, seed=data.draw(st.integers(0, 99)))
    folder = tmp_path_factory.mktemp("any")
    for found, batch in zip(record(folder, batches, corpus, layer).batches(), batches, strict=True):
        for name in ("document", "position", "token_id", "label"):
            np.testing.assert_array_equal(getattr(found.tokens, name), getattr(batch.tokens, name))
        for name in ("router_logits", "scores"):
            assert torch.equal(getattr(found, name), getattr(batch, name))
        assert torch.equal(found.selected, batch.selected)
        assert torch.equal(found.weights, batch.weights)
        assert torch.equal(found.first_choice, batch.first_choice)


def test_a_row_that_is_not_of_the_model_is_refused_even_when_it_was_sealed(tmp_path):
    layer, corpus = layer_of(5, 2, kinds=("ffn",) * 4 + ("zero",)), corpus_of([[1, 2, 3], [4, 5]])
    batches = random_routing(layer, corpus, seed=0)
    record(tmp_path / "good", batches, corpus, layer)
    others = {
        "experts": layer_of(2, 2),
        "kinds": layer_of(5, 2),
        "there is no layer 0": layer_of(5, 2, index=1),
    }
    for number, (words, other) in enumerate(others.items()):
        with pytest.raises(Damaged, match=words):
            list(record(tmp_path / f"layer-{number}", batches, corpus, other).batches())
    corpora = {
        "no document 1": [[1, 2, 3]],
        "document 0 has no position 2": [[1, 2], [4, 5]],
        "another token than 3 at 2": [[1, 2, 9], [4, 5]],
    }
    for number, (words, documents) in enumerate(corpora.items()):
        with pytest.raises(Damaged, match=words):
            list(record(tmp_path / f"document-{number}", batches, corpus_of(documents), layer).batches())
    halved = [
        changed(batches[0], top_k_index=batches[0].top_k_index[:, :1], top_k_weights=batches[0].top_k_weights[:, :1])
    ]
    with pytest.raises(Damaged, match="lack some of the choices of a token"):
        list(record(tmp_path / "halved", halved, corpus, layer).batches())


def test_unfinished_files_are_swept_by_the_next_run_and_only_those(tmp_path):
    layer, corpus = layer_of(5, 2), corpus_of([[1, 2, 3]])
    batches = random_routing(layer, corpus, seed=0)
    stray, theirs = tmp_path / new_part(), tmp_path / new_part()
    write_file([to_table(batches[0])], stray)
    pq.write_table(pa.table({"text": ["theirs"]}), theirs)
    with (tmp_path / MANIFEST).open("a") as file:
        file.write('{"name": "../outside.parquet"}\n{"name": "corpus.parquet"}\n{"half')
    for name in ("corpus.parquet", "../outside.parquet"):
        (tmp_path / name).write_text("theirs")
    record(tmp_path, batches, corpus, layer)
    assert not stray.exists()
    assert all((tmp_path / name).exists() for name in (theirs.name, "corpus.parquet", "../outside.parquet"))
    assert not (tmp_path / MANIFEST).exists()


def test_a_run_whose_files_another_one_took_away_says_so(tmp_path):
    layer, corpus = layer_of(5, 2), corpus_of([[1, 2, 3]])
    batches = random_routing(layer, corpus, seed=0)
    mine = new_part()
    write_file([to_table(batches[0])], tmp_path / mine)
    record(tmp_path, batches, corpus, layer)
    with pytest.raises(MoEProbeError, match=f"Another run removed {mine} from .*; record again, into another folder"):
        finish(tmp_path, [mine], 6, Told(corpus, layer))
    assert read_trace(tmp_path).num_rows == 6


def test_names_of_parts_are_told_from_those_of_others():
    assert is_part(new_part())
    for name in ("part-0.parquet", "part-.parquet", f"part-{'g' * 32}.parquet", f"../{new_part()}", new_part().upper()):
        assert not is_part(name)


def test_a_trace_of_an_older_version_is_refused(copied):
    folder, _ = copied
    edit_card(folder, lambda card: card.pop("format"))
    with pytest.raises(
        Damaged, match=r"recorded in an older version, which this one \(format 2\) cannot read; record it"
    ):
        dynamic.read_trace(folder)
    assert os.listdir(folder)


def test_an_empty_corpus_of_rows_is_no_trouble(tmp_path):
    layer, corpus = layer_of(3, 1), corpus_of([[1]])
    batch = batch_of(layer, corpus, torch.zeros(1, 3), torch.zeros(1, 1, dtype=torch.int64))
    assert record(tmp_path, [batch], corpus, layer).to_dataframe().expert.tolist() == [0]
