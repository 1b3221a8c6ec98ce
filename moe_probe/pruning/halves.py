"""Splits texts into two halves: one for calibration, one for evaluation."""

from __future__ import annotations

from dataclasses import replace

from moe_probe.errors import NothingToRead
from moe_probe.texts.corpus import Corpus, Document


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Splits a corpus into two halves, for calibration and for evaluation.

    Units of each label alternate between the halves; documents of one cluster, and equal documents, stay together. The
    split depends only on the texts, not on their order.

    Args:
        corpus: documents, from `dynamic.make_corpus`.

    Returns:
        Two corpora.

    Raises:
        NothingToRead: there are fewer than two different documents or clusters.

    Examples:
        >>> from moe_probe import dynamic, load, pruning
        >>> corpus = dynamic.make_corpus(load("ckpt/tiny-mixtral"), [[5, 6], [7, 8], [9, 10]])
        >>> [len(half.documents) for half in pruning.halves(corpus)]
        [2, 1]
    """
    units: dict[tuple[int, ...] | str, list[Document]] = {}
    for document in corpus.documents:
        units.setdefault(document.cluster or document.ids, []).append(document)
    if len(units) < 2:
        raise NothingToRead(
            "The texts are a single document or cluster, which cannot be split into halves; pass more of them."
        )
    first: set[int] = set()
    ordered = sorted(units.values(), key=lambda unit: (unit[0].label, str(unit[0].cluster or unit[0].ids)))
    for place, unit in enumerate(ordered):
        first |= {document.number for document in unit} if place % 2 == 0 else set()
    parts = (tuple(each for each in corpus.documents if (each.number in first) == chosen) for chosen in (True, False))
    one, other = (replace(corpus, documents=documents) for documents in parts)
    return one, other
