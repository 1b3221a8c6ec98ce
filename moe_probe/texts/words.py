"""Words of a text, the tokens that they are split into, and the word lists of the package."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from moe_probe.errors import NoSuchName, NotFitting, WrongType
from moe_probe.texts.corpus import Corpus, Document

WORD = re.compile(r"\w+(?:['’]\w+)*")
LISTS = ("polysemous_en", "false_cognates_es", "false_cognates_fr", "false_cognates_de")
Spans = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Words:
    """The words of one document.

    Attributes:
        texts: the words as written, (words,).
        starts, ends: their characters in the document's text, (words,).
        of_token: index of the word that each token belongs to, -1 for punctuation and special tokens, (tokens,).
    """

    texts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    of_token: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Number of tokens of each word, (words,)."""
        return np.bincount(self.of_token[self.of_token >= 0], minlength=len(self.texts))


def find_words(document: Document) -> Words:
    """Finds words: letters, digits and inner apostrophes; a token belongs to the first word that it overlaps."""
    spans = [match.span() for match in WORD.finditer(document.text)]
    bounds = np.asarray(spans, np.int64).reshape(-1, 2)
    texts = np.asarray([document.text[start:end] for start, end in spans], dtype=object)
    return Words(texts, bounds[:, 0], bounds[:, 1], first_overlap(document, bounds))


def first_overlap(document: Document, bounds: np.ndarray) -> np.ndarray:
    """For each token, the first of disjoint ascending character ranges (n, 2) that it overlaps, or -1."""
    at = np.searchsorted(bounds[:, 1], document.spans[:, 0], side="right")
    starts = np.append(bounds[:, 0], np.iinfo(np.int64).max)[at]
    touches = (starts < document.spans[:, 1]) & (document.spans[:, 0] < document.spans[:, 1])
    return np.where(touches, at, -1)


def word_list(name: str) -> list[str]:
    """Returns the English words of one of the package's lists, whose files have a gloss for each word.

    Args:
        name: `polysemous_en`, or `false_cognates_es`, `false_cognates_fr` or `false_cognates_de`: words that mean
            something else in Spanish, French or German.

    Raises:
        NoSuchName: there is no such list.

    Examples:
        >>> "bank" in word_list("polysemous_en")
        True
    """
    if name not in LISTS:
        raise NoSuchName.among("word list", name, LISTS)
    with (files("moe_probe") / "data" / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False).word.tolist()


def normal_form(word: str) -> str:
    """Returns a word in the form of the lists: without case and possessive ending."""
    return re.sub(r"['’]s$", "", word.casefold())


def tokens_of_words(corpus: Corpus, words: Collection[str]) -> np.ndarray:
    """Whether each token of the corpus is part of one of these words, ignoring case, (tokens,) bool.

    Raises:
        WrongType: the words are not strings, or one string.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise WrongType(f"The words are {str(words)[:80]!r}; pass a list of strings: ['word'].")
    wanted = {normal_form(word) for word in words}
    parts = []
    for document in corpus.documents:
        words_of = find_words(document)
        hit = np.asarray([normal_form(word) in wanted for word in words_of.texts], dtype=bool)
        parts.append(np.append(hit, False)[words_of.of_token])  # -1: no word
    return np.concatenate(parts)


def tokens_of_spans(corpus: Corpus, spans: Spans) -> np.ndarray:
    """Whether each token overlaps one of its document's character ranges, (tokens,) bool.

    Args:
        corpus: the documents.
        spans: (start, end) pairs in the text, by document number.

    Raises:
        WrongType: the spans are not pairs of numbers, by document number.
        NotFitting: a range is empty, or outside its document.
    """
    _check_spans(spans)
    numbers = {document.number: document for document in corpus.documents}
    for number, ranges in spans.items():
        length = len(numbers[number].text) if number in numbers else -1
        wrong = next((pair for pair in ranges if not 0 <= pair[0] < pair[1] <= length), None)
        if length < 0 or wrong is not None:
            has = f"has {length} characters, not the span {wrong}" if length >= 0 else "is not in the corpus"
            raise NotFitting(f"Document {number} {has}; spans are (start, end) of the text by document number.")
    parts = []
    for document in corpus.documents:
        marked = np.zeros(len(document.text) + 1, dtype=np.int64)
        for start, end in spans.get(document.number, ()):
            marked[start + 1 : end + 1] = 1
        until = marked.cumsum()
        parts.append(until[document.spans[:, 1]] > until[document.spans[:, 0]])
    return np.concatenate(parts)


def _check_spans(spans: Spans) -> None:
    if isinstance(spans, Mapping):
        wrong = next((number for number, ranges in spans.items() if not _are_ranges(ranges)), None)
        if wrong is None:
            return
        what = f"Document {wrong} has the spans {str(spans[wrong])[:80]}"
    else:
        what = f"The spans are a {type(spans).__name__}"
    raise WrongType(f"{what}; pass (start, end) pairs of characters by document number: {{0: [(4, 9)]}}.")


def _are_ranges(ranges: Any) -> bool:
    pairs = isinstance(ranges, Sequence) and not isinstance(ranges, str)
    return pairs and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(end, int | np.integer) for end in pair)
        for pair in ranges
    )


def special_tokens(corpus: Corpus) -> np.ndarray:
    """Whether each token is special, which means that it stands for no text, (tokens,) bool."""
    return np.isin(corpus.tokens().token_id, sorted(corpus.special))
