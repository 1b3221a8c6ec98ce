"""Number of FFN experts that a token uses besides zero-computation experts (MoE++, arXiv 2410.07348, figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting
from moe_probe.routing import LayerBatch, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import DRAWS, LEAST_UNITS, check_draws, ratio_interval
from moe_probe.statistics.states import TokenTable
from moe_probe.texts.corpus import Corpus, bin_start, position_bin
from moe_probe.texts.tagging import make_tagger, tag_words
from moe_probe.texts.words import find_words, normal_form

BLOCKS = 256  # groups of documents that classes of tokens are counted by
PIECES = ["whole word", "word piece", "no word"]


@dataclass
class FFNExpertsPerToken(Analysis):
    """FFN experts among a token's choices, by token, word, part of speech and position.

    n[t,l] is the number of experts of kind `ffn` that token t (with all of its sub-tokens) chooses in layer l. The
    density of a class of tokens is the mean of n over its tokens and over the MoE layers. Tokens have these classes:

    - `type`: the token id;
    - `word`: the word, without case, however many tokens it is split into;
    - `piece`: `whole word` (the only token of a word), `word piece` (one of several) or `no word` (punctuation and
      special tokens);
    - `place`: the position in the document, binned as 0, 1, 2-3, 4-7, ...;
    - `pos`: the part of speech, with a tagger.

    The result has `ffn_experts` (layer, token), uint8; `layer_density` (layer), float64; and for each class
    `<class>_density` (class), float64, and `<class>_count` (class), its number of tokens. Types, words and parts of
    speech are in descending order of density; the coordinate `type_string` holds the types' strings. Types and words
    with fewer than `min_count` occurrences are omitted. `<class>_density_low` and `<class>_density_high` are 95 %
    intervals over documents, nan for classes that fewer than five documents have. `chance` is the density of all
    tokens: that of every class if the class did not matter.

    Args:
        min_count: fewest occurrences of a listed token id or word.
        tagger: gives each word of a document its part of speech: a callable (list of words to list of tags), a spaCy
            pipeline, or `"textblob"` (extra `pos`): its lexicon, without a download.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        chance: whether to compute the chance level.

    Raises:
        InputError: all experts are FFN experts, so that every token uses k of them.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.ffn_experts_per_token("ckpt/tiny-moe-plus-plus", ["It is what it is."], min_count=2)
        >>> ds.ffn_experts.dims
        ('layer', 'token')
    """

    min_count: int = 5
    tagger: object = None  # checked by make_tagger
    bootstrap: int = DRAWS
    chance: bool = True

    name = "ffn_experts_per_token"
    title = "FFN experts per token"
    unasked = True
    legend = {"ffn_experts": ("FFN experts among the choices", "experts"), "layer_density": ("mean", "experts")}

    ffn_experts = TokenTable(dtype=np.uint8)

    def __post_init__(self) -> None:
        check_number("min_count", self.min_count, 1)
        check_draws(self.bootstrap)
        self._tag = make_tagger(self.tagger)

    @classmethod
    def example(cls) -> Self:
        return cls(min_count=1, bootstrap=9)

    def check(self, source: Source) -> None:
        for layer in source.layers.values():
            if set(layer.expert_kinds) == {"ffn"}:
                raise NotFitting(
                    f"Layer {layer.index} has only FFN experts, so every token uses {layer.top_k}; pass a model with "
                    "zero-computation experts, such as MoE++."
                )

    def update(self, batch: LayerBatch) -> None:
        ffn = torch.tensor([kind == "ffn" for kind in batch.layer.expert_kinds], device=batch.top_k_index.device)
        self.ffn_experts.add(batch, batch.by_token(ffn[batch.top_k_index].sum(1)).sum(1))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        count, corpus = self.ffn_experts.array, source.corpus
        density = count.values.mean(0)
        variables: dict[str, xr.DataArray] = {"ffn_experts": count, "layer_density": count.mean("token")}
        for name, (of_token, rare) in self._of_tokens(corpus).items():
            keep = of_token != "" if of_token.dtype == object else np.ones(len(of_token), bool)
            unit = self._units(source)[keep]
            names, values = self._classes(of_token[keep], density[keep], unit, self.min_count if rare else 1)
            order = np.argsort(-values["density"], kind="stable") if name in ("type", "word", "pos") else slice(None)
            coords: dict[str, Any] = {name: [v.item() if hasattr(v, "item") else v for v in names[order]]}
            if name == "type":
                coords["type_string"] = ("type", [corpus.strings[token] for token in coords["type"]])
            variables |= {f"{name}_{k}": xr.DataArray(v[order], coords, (name,)) for k, v in values.items()}
        if self.chance:
            variables["chance"] = xr.DataArray(density.mean())
        return variables

    def _of_tokens(self, corpus: Corpus) -> dict[str, tuple[np.ndarray, bool]]:
        """The class of each token, and whether rare classes are omitted."""
        tokens, words_of = corpus.tokens(), [find_words(document) for document in corpus.documents]
        words = np.concatenate([np.append(_normal(w.texts), "")[w.of_token] for w in words_of])
        pieces = np.concatenate([_pieces(w.of_token, w.tokens) for w in words_of])
        classes: dict[str, tuple[np.ndarray, bool]] = {
            "type": (tokens.token_id, True),
            "word": (words, True),
            "piece": (np.asarray(PIECES, object)[pieces], False),
            "place": (bin_start(position_bin(tokens.position)), False),
        }
        if self._tag is not None:
            classes["pos"] = tag_words(self._tag, words_of), False
        return classes

    def _classes(
        self, of_token: np.ndarray, density: np.ndarray, unit: np.ndarray, least: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        names, inverse, count = np.unique(of_token, return_inverse=True, return_counts=True)
        frequent = count >= least
        total = np.bincount(inverse, density, minlength=len(names))
        columns = {"density": (total / count)[frequent], "count": count[frequent]}
        if self.bootstrap:
            low, high = (np.full(len(names), np.nan) for _ in range(2))
            pairs = np.unique(np.stack([inverse, unit]), axis=1)
            spread = np.flatnonzero(frequent & (np.bincount(pairs[0], minlength=len(names)) >= LEAST_UNITS))
            if len(spread):
                at = np.searchsorted(spread, inverse).clip(max=len(spread) - 1)
                of = spread[at] == inverse
                cell, shape = unit[of] * len(spread) + at[of], (unit.max() + 1, len(spread))
                total, count_of = (
                    np.bincount(cell, each, shape[0] * shape[1]).reshape(shape) for each in (density[of], None)
                )
                low[spread], high[spread] = ratio_interval(total, count_of, self.bootstrap)
            columns["density_low"], columns["density_high"] = low[frequent], high[frequent]
        return names[frequent], columns

    def _units(self, source: Source) -> np.ndarray:
        """The document of each token, (tokens,); a group of documents if there are more than BLOCKS."""
        _, unit = np.unique(self.tokens(source).unit, return_inverse=True)
        return unit * BLOCKS // max(BLOCKS, unit.max(initial=0) + 1)


def _normal(texts: np.ndarray) -> np.ndarray:
    return np.asarray([normal_form(word) for word in texts], dtype=object)


def _pieces(of_token: np.ndarray, tokens_of_word: np.ndarray) -> np.ndarray:
    """Indices into PIECES, (tokens,)."""
    several = np.append(tokens_of_word, 0)[of_token] > 1
    return np.where(of_token < 0, 2, several.astype(int))
