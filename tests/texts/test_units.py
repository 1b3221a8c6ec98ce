"""What intervals resample as a whole: documents by content, or named clusters."""

import numpy as np
import pytest

from moe_probe import dynamic, load
from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.texts.corpus import Document, numbered_units
from moe_probe.texts.tokenizing import make_corpus

ROWS = [{"text": f"Line {n} of a book.", "source": f"book {n % 6}", "kind": "ab"[n % 2]} for n in range(24)]


def test_units_depend_on_content_and_not_on_the_order_of_lines():
    documents = [Document(n, (n, 2 * n), "ab"[n % 2]) for n in range(20)]
    order = np.random.default_rng(0).permutation(20)
    units = {document.ids: document.unit for document in numbered_units(documents)}
    shuffled = {document.ids: document.unit for document in numbered_units([documents[at] for at in order])}
    assert units == shuffled
    assert sorted(units.values()) == list(range(20))
    assert {units[d.ids] for d in documents if d.label == "a"} == set(range(10))


def test_equal_documents_are_units_of_their_own():
    assert len({document.unit for document in numbered_units([Document(n, (1, 2)) for n in range(5)])}) == 5


def test_a_column_names_the_clusters():
    corpus = make_corpus(load("ckpt/tiny-mixtral"), ROWS, unit="source")
    assert len({document.unit for document in corpus.documents}) == 6
    for document, row in zip(corpus.documents, ROWS, strict=True):
        assert document.cluster == row["source"]
    with pytest.raises(NoSuchName, match="sauce"):
        make_corpus(load("ckpt/tiny-mixtral"), ROWS, unit="sauce")
    with pytest.raises(NotFitting, match="There are 2 units for 24 documents"):
        make_corpus(load("ckpt/tiny-mixtral"), ROWS, unit=["a", "b"])


def test_intervals_are_of_clusters_and_traces_keep_them(tmp_path):
    model = load("ckpt/tiny-mixtral")
    asked = {"column": "text", "progress": False}
    trace = dynamic.RoutingTrace(tmp_path / "t")
    of_books = dynamic.run(model, ROWS, [dynamic.TokenSpecialization(), trace], unit="source", **asked)
    of_books = of_books["token_specialization"]
    of_lines = dynamic.token_specialization(model, ROWS, **asked)
    assert of_books.attrs["resampled"] == "clusters of documents"
    assert not np.allclose(of_books.repetition_low, of_lines.repetition_low)
    np.testing.assert_array_equal(of_books.repetition, of_lines.repetition)
    again = dynamic.from_trace(tmp_path / "t", [dynamic.TokenSpecialization()], progress=False)["token_specialization"]
    np.testing.assert_allclose(again.repetition_low, of_books.repetition_low)
    two = [row["source"] if row["source"] < "book 4" else "book 3" for row in ROWS]
    few = dynamic.token_specialization(model, ROWS, unit=two, **asked)
    assert few.repetition_low.isnull().all()
