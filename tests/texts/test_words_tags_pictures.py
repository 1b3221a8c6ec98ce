"""Words, tags and pictures that are none are refused in a sentence."""

import subprocess
import sys

import numpy as np
import pytest
from small_batches import corpus_of

from moe_probe.errors import MissingPackage, NoSuchName, NotFitting, NothingToRead, OutOfRange, WrongType
from moe_probe.texts.pictures import patch_energy, read_picture
from moe_probe.texts.tagging import make_tagger, tag_words
from moe_probe.texts.words import find_words, tokens_of_spans, tokens_of_words, word_list

CORPUS = corpus_of([[1, 2, 3]])


def test_import_loads_no_matplotlib():
    code = "import sys, moe_probe, moe_probe.texts.pictures; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        ("none.png", NothingToRead, r"none\.png is not a file; pass a picture"),
        (__file__, NothingToRead, "is not a picture"),
        ("a\0b.png", NothingToRead, "is not a"),
        (np.zeros((2, 2), int), WrongType, "not of int64; convert it"),
        (np.zeros((2, 2), complex), WrongType, "not of complex128"),
        (np.asarray("x"), WrongType, "not of <U1"),
        (np.zeros(4), WrongType, r"not \(4,\); pass one picture"),
        (np.zeros((0, 4)), WrongType, r"not \(0, 4\)"),
        (np.full((2, 2), 1.5), OutOfRange, "has the values 1.5 to 1.5; scale them"),
        (np.full((2, 2), np.nan), OutOfRange, "has the values nan to nan"),
    ],
)
def test_pictures_that_are_none_are_refused(picture, error, words):
    with pytest.raises(error, match=words):
        read_picture(picture)


def test_patches_that_there_are_not_are_refused():
    with pytest.raises(OutOfRange, match="4 x 4 pixels has no 4 x 4 patches"):
        patch_energy(np.zeros((4, 4)), (4, 4))
    with pytest.raises(OutOfRange, match="0 x 2 patches is empty"):
        patch_energy(np.zeros((4, 4)), (0, 2))
    with pytest.raises(NoSuchName, match="did you mean 'spectrum'"):
        patch_energy(np.zeros((4, 4)), (2, 2), energy="spectrun")


def test_taggers_that_are_none_are_refused(monkeypatch):
    for tagger in ("spacy", 5, np.zeros(2)):
        with pytest.raises(WrongType, match="A tagger is a callable, a spaCy pipeline or 'textblob', not "):
            make_tagger(tagger)
    for tags in ("abc", 5, ["a"]):
        with pytest.raises(NotFitting, match="it must return"):
            tag_words(lambda words, tags=tags: tags, [find_words(CORPUS.documents[0])])
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(MissingPackage, match=r'pip install "moe-probe\[pos\]"'):
        make_tagger("textblob")


def test_words_and_spans_that_are_none_are_refused():
    for words in ("bank", [1, 2]):
        with pytest.raises(WrongType, match="pass a list of strings"):
            tokens_of_words(CORPUS, words)
    for spans in ([(0, 1)], {0: (0, 1)}, {0: [(0, "1")]}, {0: [(0.5, 1)]}, {0: [1]}, {0: "ab"}):
        with pytest.raises(WrongType, match="pairs of characters by document number"):
            tokens_of_spans(CORPUS, spans)
    with pytest.raises(NotFitting, match="Document 0 has 6 characters, not the span"):
        tokens_of_spans(CORPUS, {0: [(3, 3)]})
    with pytest.raises(NoSuchName, match="did you mean 'polysemous_en'"):
        word_list("polysemous")
