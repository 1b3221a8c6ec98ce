"""Parts of speech of words, from any tagger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np

from moe_probe.deferred import needed
from moe_probe.errors import NotFitting, WrongType
from moe_probe.texts.words import Words

Tagger = Callable[[list[str]], Sequence[str]]
PENN = {  # by the first two letters of a Penn Treebank tag
    "NN": "noun",
    "VB": "verb",
    "MD": "verb",
    "JJ": "adjective",
    "RB": "adverb",
    "WR": "adverb",
    "PR": "pronoun",
    "WP": "pronoun",
    "IN": "preposition",
    "TO": "preposition",
    "DT": "determiner",
    "WD": "determiner",
    "PD": "determiner",
    "CC": "conjunction",
    "CD": "number",
    "UH": "interjection",
}


def make_tagger(tagger: Any) -> Tagger | None:
    """Returns a callable from words to tags, from a callable, a spaCy pipeline, `"textblob"`, or None.

    Raises:
        WrongType: the tagger is of another type.
        MissingPackage: textblob is not installed.
    """
    if tagger is None:
        return None
    if hasattr(tagger, "pipe_names"):
        return _Spacy(tagger)
    if isinstance(tagger, str) and tagger == "textblob":
        _tag_function()
        return _textblob
    if callable(tagger):
        return cast(Tagger, tagger)
    raise WrongType(
        f"A tagger is a callable, a spaCy pipeline or 'textblob', not {str(tagger)[:80]!r}; pass one of these."
    )


def tag_words(tagger: Tagger, words: Sequence[Words]) -> np.ndarray:
    """Returns the part of speech of each token's word, (tokens,) of str, "" for tokens without a word.

    Raises:
        NotFitting: the tagger returns more or fewer tags than words.
    """
    parts = [np.zeros(0, dtype=object)]
    for document in words:
        tagged = tagger(document.texts.tolist()) if len(document.texts) else []
        if isinstance(tagged, str) or not isinstance(tagged, Iterable):
            raise NotFitting(
                f"The tagger returned a {type(tagged).__name__}; it must return a list with a tag for each word."
            )
        tags = list(tagged)
        if len(tags) != len(document.texts):
            raise NotFitting(
                f"The tagger returned {len(tags)} tags for {len(document.texts)} words; it must return one for each."
            )
        parts.append(np.asarray([*map(str, tags), ""], dtype=object)[document.of_token])
    return np.concatenate(parts)


def _tag_function() -> Callable[..., list[tuple[str, str]]]:
    with needed("textblob", "pos", "Parts of speech"):
        from textblob.en import tag
    return tag


def _textblob(words: list[str]) -> list[str]:
    tagged = _tag_function()(" ".join(words).replace("’", "'"), tokenize=False)
    return [PENN.get(penn[:2], "other") for _, penn in tagged]


class _Spacy:
    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __call__(self, words: list[str]) -> list[str]:
        document = import_module("spacy.tokens").Doc  # which whoever has a pipeline has
        return [token.pos_ for token in self.pipeline(document(self.pipeline.vocab, words=words))]
