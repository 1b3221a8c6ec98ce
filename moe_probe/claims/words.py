"""FFN experts by word type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.claims.claim import Evidence
from moe_probe.texts.tagging import Tagger, tag_words
from moe_probe.texts.words import find_words, normal_form


@dataclass(frozen=True)
class WordTypes:
    """Word types (words without case), with statistics of their tokens.

    Attributes:
        density: mean number of FFN experts per token and layer, (types,).
        count: number of tokens, (types,).
        tag: the part of speech of most of its tokens, "" without a tagger, (types,).
    """

    density: np.ndarray
    count: np.ndarray
    tag: np.ndarray


def word_types(evidence: Evidence, tagger: Tagger | None = None) -> WordTypes:
    """The word types of the corpus that `ffn_experts_per_token` saw."""
    density = evidence.results["ffn_experts_per_token"].ffn_experts.values.mean(0)
    words = [find_words(document) for document in evidence.source.corpus.documents]
    of_token = np.concatenate(
        [np.array([*map(normal_form, each.texts), ""], dtype=object)[each.of_token] for each in words]
    ).astype(str)
    tags = np.full(len(of_token), "") if tagger is None else tag_words(tagger, words).astype(str)
    tagged = np.flatnonzero(of_token != "")
    _, inverse, count = np.unique(of_token[tagged], return_inverse=True, return_counts=True)
    kinds, tag_at = np.unique(tags[tagged], return_inverse=True)
    seen = np.zeros((len(count), len(kinds)), np.int64)
    np.add.at(seen, (inverse, tag_at), 1)
    mean = np.bincount(inverse, density[tagged], minlength=len(count)) / count
    return WordTypes(mean, count, kinds[seen.argmax(1)] if len(count) else kinds[:0])
