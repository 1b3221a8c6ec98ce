"""Rows of everything that texts come as: what they were, in their order, with their numbers."""

import gzip
import json
import warnings
from collections import UserDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import MoEProbeError, NoSuchName, NotFitting, NothingToRead, OutOfRange, WrongType
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Chat, Row, read_rows

TEXTS = ["one text", "another"]
IDS = [(1, 2, 3), (4, 5)]
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]


class Dataset(list):
    """What `datasets.Dataset` looks like."""

    column_names = ("text", "domain")


def contents(texts, **options):
    return [row.content for row in read_rows(texts, **options)]


def rows_of(texts, **options):
    return [(row.number, row.content, row.label) for row in read_rows(texts, **options)]


FRAME = pd.DataFrame({"text": TEXTS, "domain": ["a", "b"]}, index=[7, 9])


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        tuple(TEXTS),
        (text for text in TEXTS),
        np.asarray(TEXTS),
        np.asarray(TEXTS, dtype=object),
        FRAME,
        FRAME.text,
        FRAME.to_dict("records"),
        pa.Table.from_pandas(FRAME),
        Dataset(FRAME.to_dict("records")),
        [row for _, row in FRAME.iterrows()],
        {"a": TEXTS[:1], "b": (text for text in TEXTS[1:])},
        {"a": FRAME.text},
    ],
)
def test_containers_of_texts_are_taken_for_what_they_are(texts):
    assert contents(texts) == TEXTS


@pytest.mark.parametrize(
    "texts",
    [
        IDS,
        [list(ids) for ids in IDS],
        [np.asarray(ids, np.int32) for ids in IDS],
        [torch.tensor(ids) for ids in IDS],
        [[np.int64(token) for token in ids] for ids in IDS],
        [[torch.tensor(token) for token in ids] for ids in IDS],
        pd.Series(IDS),
        pd.DataFrame({"input_ids": IDS}),
        {"input_ids": [[1, 2, 3], [4, 5, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]},
        {"input_ids": torch.tensor([[1, 2, 3], [0, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])},
        UserDict(input_ids=np.asarray([[1, 2, 3], [0, 4, 5]]), attention_mask=np.asarray([[1, 1, 1], [0, 1, 1]])),
        [{"input_ids": [1, 2, 3]}, {"input_ids": [0, 4, 5], "attention_mask": [0, 1, 1]}],
    ],
)
def test_containers_of_token_ids_are_taken_for_what_they_are(texts):
    assert contents(texts) == IDS


def test_an_array_is_of_documents_and_one_row_of_it_a_document():
    assert contents(np.asarray([[1, 2], [3, 4]])) == [(1, 2), (3, 4)]
    assert contents(torch.tensor([1, 2, 3], dtype=torch.int32)) == [(1, 2, 3)]
    assert contents({"input_ids": [1, 2, 3]}) == [(1, 2, 3)]
    assert contents({"input_ids": torch.tensor([0, 2, 3]), "attention_mask": torch.tensor([0, 1, 1])}) == [(2, 3)]


def test_chats_are_conversations():
    assert contents([MESSAGES, MESSAGES[:1]]) == [Chat(tuple(MESSAGES)), Chat(tuple(MESSAGES[:1]))]
    assert contents(MESSAGES) == [Chat(tuple(MESSAGES))]
    assert contents([{"messages": MESSAGES}]) == [Chat(tuple(MESSAGES))]
    assert contents(MESSAGES, column="content") == ["Hello", "Yes?"]


def test_labels_come_from_columns_lists_and_keys():
    assert rows_of(FRAME, labels="domain") == [(0, "one text", "a"), (1, "another", "b")]
    assert rows_of(TEXTS, labels=(label for label in "ab")) == rows_of(FRAME, labels="domain")
    assert rows_of({"a": TEXTS[:1], "b": TEXTS[1:]}) == rows_of(FRAME, labels="domain")
    assert rows_of({"text": TEXTS, "domain": ["a", "b"]}, labels="domain") == rows_of(FRAME, labels="domain")
    assert [row.label for row in read_rows(TEXTS, labels=[1, None])] == ["1", ""]


def test_rows_that_are_blank_are_counted_and_the_others_keep_their_numbers():
    texts = ["", "one", None, " \n", [], float("nan"), pd.NA, "two"]
    with pytest.warns(UserWarning, match=r"6 of 8 rows are blank and are skipped \(0, 2, 3, 4, 5, \.\.\.\); the other"):
        found = rows_of(texts, labels=list("abcdefgh"))
    assert found == [(1, "one", "b"), (7, "two", "h")]


def test_rows_that_were_read_once_serve_several_models():
    rows = read_rows(text for text in TEXTS)
    assert read_rows(rows) == rows == [Row(0, "one text"), Row(1, "another")]
    with pytest.raises(NotFitting, match="rows that were read already, so labels= has no effect"):
        read_rows(rows, labels=["a", "b"])


def test_a_dataset_of_several_splits_needs_one():
    splits = {"train": Dataset(FRAME.to_dict("records")), "test": Dataset([{"text": "held out"}])}
    with pytest.raises(NotFitting, match="has the splits train, test; pass one of them, such as split='train'"):
        read_rows(splits)
    assert contents(splits, split="test") == ["held out"]
    with pytest.raises(NoSuchName, match="did you mean 'train'"):
        read_rows(splits, split="trian")
    with pytest.raises(NotFitting, match="no splits"):
        read_rows(TEXTS, split="train")


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ("a text itself", NothingToRead, r"not a file of texts; to pass a text itself, write \[text\]"),
        (b"bytes", WrongType, "The texts are a bytes; pass a list"),
        ({"a set"}, WrongType, "The texts are a set"),
        (None, WrongType, "The texts are None"),
        (5, WrongType, "an int"),
        ([1, 2, 3], WrongType, "Row 0 is an int; pass strings or lists of token ids"),
        (["a", 1.5], WrongType, "Row 1 is a float"),
        ([[1, True]], WrongType, "Row 0 holds a bool"),
        ([[1, 2.0]], WrongType, "Row 0 holds a float"),
        ([["a", "b"]], WrongType, "Row 0 holds a str"),
        ([[[1], [2]]], WrongType, "Row 0 holds a list"),
        ([[1, -100]], OutOfRange, "Row 0 has the token id -100; ids start at 0"),
        (np.zeros((2, 2)), WrongType, "Row 0 holds a float"),
        (np.zeros((2, 2, 2), int), WrongType, r"an array of shape \(2, 2, 2\)"),
        (torch.tensor([[True]]), WrongType, "Row 0 holds a bool"),
        (np.zeros(0, int), NothingToRead, "corpus is empty"),
        ([], NothingToRead, "corpus is empty"),
        ({}, NothingToRead, "corpus is empty"),
        ([{"words": "a"}], NotFitting, "The rows have the columns words; pass the one with the text"),
        ([{"text": {"a": 1}}], WrongType, "a dict in its column 'text'"),
        ([{"text": True}], WrongType, "Row 0 is a bool"),
        ({"a": "one text"}, WrongType, r"'a' has a str; pass a list of texts for each label: \{'a': \[text\]\}"),
        ({"text": ["a"], "label": ["b"]}, NotFitting, "may be columns or labels; pass column='text'"),
        (
            {"input_ids": [[1]], "attention_mask": [[1], [1]]},
            NotFitting,
            "1 rows of input_ids, but 2 of attention_mask",
        ),
        ([{"input_ids": [1], "attention_mask": [1, 1]}], NotFitting, "Row 0 has 1 ids, but a mask"),
        (Corpus, WrongType, "The texts are"),
    ],
)
def test_whatever_else_is_refused_in_a_sentence(texts, error, words):
    with pytest.raises(error, match=words):
        read_rows(texts)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (["a"], NotFitting, "There are 1 labels for 2 documents; pass one for each"),
        ("domain", NotFitting, "no columns, so there is no column 'domain'"),
        ({"a": 1}, WrongType, "The labels are a dict"),
        (5, WrongType, "The labels are an int"),
        ([["a"], "b"], WrongType, "A label is a list"),
        (["\ud800", "b"], MoEProbeError, "lone surrogate"),
    ],
)
def test_labels_that_fit_no_rows_are_refused(labels, error, words):
    with pytest.raises(error, match=words):
        read_rows(TEXTS, labels=labels)


def test_columns_that_are_not_there_are_named():
    for options in ({"column": "txt"}, {"labels": "txt"}):
        with pytest.raises(NoSuchName, match="no column 'txt', but text, domain"):
            read_rows(FRAME, **options)


ODD = ["NA", "null", "007", "1.50", "1e3", "a\u2028b", "a\x0cb\x85c", 'quote " and , comma', "中文", "nan", "True"]


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".jsonl", ".JSONL", ".ndjson", ".json", ".parquet", ".txt"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_in_files_stay_what_they_were(suffix, start, end, tmp_path):
    path, frame = tmp_path / f"texts{suffix}", pd.DataFrame({"text": ODD, "domain": ["NA"] * len(ODD)})
    records = [json.dumps(record, ensure_ascii=False) for record in frame.to_dict("records")]
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        written = {
            ".csv": frame.to_csv(index=False),
            ".tsv": frame.to_csv(index=False, sep="\t"),
            ".txt": "\n".join([*ODD, "", ""]),
            ".json": f"[{','.join(records)}]",
        }.get(suffix.lower(), "\n".join(records))
        path.write_bytes((start + written).replace("\n", end).encode())
    labels = None if suffix == ".txt" else "domain"
    assert contents(path, labels=labels) == ODD
    assert {row.label for row in read_rows(str(path), labels=labels)} == ({""} if labels is None else {"NA"})


@settings(max_examples=40)
@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore:.*rows are blank")
def test_any_text_survives_csv_and_json(texts, tmp_path_factory):
    texts = ["first", *texts]
    expected = [(number, text) for number, text in enumerate(texts) if text.strip()]
    for suffix in (".csv", ".jsonl", ".parquet"):
        path, frame = tmp_path_factory.getbasetemp() / f"any{suffix}", pd.DataFrame({"a": "x", "text": texts})
        if suffix == ".csv":
            frame.to_csv(path, index=False)
        elif suffix == ".jsonl":
            path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        else:
            frame.to_parquet(path)
        assert [(row.number, row.content) for row in read_rows(path)] == expected


def test_rows_of_json_are_texts_numbers_ids_and_chats(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = ['"a text"', '{"text": 1.50}', "", '{"text": null}', "[1, 2]", json.dumps(MESSAGES), '{"text": 7}']
    path.write_text("\n".join(rows))
    with pytest.warns(UserWarning, match=r"1 of 6 rows are blank and are skipped \(2\)"):
        found = contents(path)
    assert found == ["a text", "1.50", (1, 2), Chat(tuple(MESSAGES)), "7"]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"code": ["x = 1"], "prose": TEXTS}))
    assert [row.label for row in read_rows(path)] == ["code", "prose", "prose"]


def test_blank_fields_of_csv_are_blank_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('domain,text\na,one\nb,\nc,""\n\nd,two\n')
    with pytest.warns(UserWarning, match="3 of 5 rows are blank"):
        assert rows_of(path, labels="domain") == [(0, "one", "a"), (4, "two", "d")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty; pass a file with at least one text"),
        ("a.csv", b"\xef\xbb\xbf\n", "is empty"),
        ("a.csv", b"text\nHello, world\n", "cannot be read as csv .*; correct it, or its suffix"),
        ("a.csv", b"text\nHello\nHello, world\n", "cannot be read as csv"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "cannot be read as jsonl .line 2: "),
        ("a.json", b"[" * 100_000, "cannot be read as json"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("a.txt", b"caf\xe9", "cannot be read as UTF-8 text"),
        ("a.txt", "Ωм".encode("utf-16"), "cannot be read as UTF-8 text"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), r"is compressed \(gzip\); unpack it first"),
        ("a.csv", gzip.compress(b"text", mtime=0), "is compressed"),
    ],
)
def test_files_that_are_not_what_they_seem_are_refused(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NothingToRead, match=words):
        read_rows(tmp_path / name)


def test_places_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(NothingToRead, match="is a folder, not a file of texts; pass one of the files in it"):
        read_rows(tmp_path)
    for path in ("none.txt", "a\0b", "x" * 5000, "\ud800"):
        with pytest.raises(NothingToRead, match="not a file of texts"):
            read_rows(path)


def test_nothing_is_said_of_ordinary_texts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_rows(TEXTS)
