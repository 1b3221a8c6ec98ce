"""How many experts that compute a token uses, where others cost nothing (MoE++, arXiv 2410.07348, figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_probe.dynamic.analysis import token_coords
from moe_probe.dynamic.per_token import PerToken, by_token
from moe_probe.errors import InputError
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import BLOCKS, check_draws, interval
from moe_probe.texts.corpus import Corpus, place_of, place_start
from moe_probe.texts.tagging import Tagger, make_tagger, tag_words
from moe_probe.texts.words import find_words, normal_form

PIECES = ["whole word", "word piece", "no word"]


class FFNExpertsPerToken(PerToken):
    """FFN experts among a token's choices, by token, word, part of speech and position.

    n[t,l] counts the chosen experts of kind `ffn` (of all sub-tokens); the density of a class of tokens is the mean of
    n over its tokens and over the MoE layers.

    The result has `ffn_experts` (layer, token), uint8; `layer_density` (layer); and for the classes `type` (token id),
    `word` (words, whatever they were split into; without case), `piece` (`whole word`: its only token; `word piece`:
    one of several; `no word`: punctuation and special tokens), `place` (position in the document 0, 1, 2-3, 4-7, ...)
    and, with a tagger, `pos`: `<class>_density` (class), float64, and `<class>_count` (class), tokens, in descending
    order of density for types, words and parts of speech, the types' strings as the coordinate `type_string`. Types and
    words with fewer than `min_count` occurrences are left out. `<class>_density_low` and `_high`: 95 % bootstrap
    interval over documents; `chance`: the density of all tokens, which every class has if it does not matter.

    Args:
        min_count: occurrences from which on a token id or word is listed.
        tagger: gives each word of a document its part of speech: a callable (list of words to list of tags), a spaCy
            pipeline, or `"textblob"` (extra `pos`): its lexicon, without a download.
        bootstrap: draws of the intervals; 0 for none.
        chance: whether to give the chance level.

    Raises:
        InputError: all experts are FFN experts, so that every token uses k.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.ffn_experts_per_token("ckpt/tiny-moe-plus-plus", ["It is what it is."], min_count=2)
        >>> ds.ffn_experts.dims
        ('layer', 'token')
    """

    name = "ffn_experts_per_token"

    def __init__(
        self, min_count: int = 5, tagger: Tagger | str | None = None, bootstrap: int = 200, chance: bool = True
    ):
        super().__init__()
        if min_count < 1:
            raise InputError(f"min_count is at least 1, not {min_count}.")
        self.min_count, self.tagger, self.chance = min_count, tagger, chance
        self.bootstrap = check_draws(bootstrap)
        self._tag = make_tagger(tagger)

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        for layer in map(model.layer, layers):
            if set(layer.expert_kinds) == {"ffn"}:
                raise InputError(f"Layer {layer.index} has FFN experts only: every token uses {layer.top_k}.")

    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        ffn = np.asarray(batch.layer.expert_kinds) == "ffn"
        return {"ffn_experts": by_token(ffn[batch.top_k_index.cpu().numpy()].sum(1), batch).sum(1).astype(np.uint8)}

    def dataset(
        self, model: Any, corpus: Corpus, layers: list[int], values: dict[str, np.ndarray]
    ) -> tuple[dict, dict]:
        count, tokens = values["ffn_experts"], corpus.tokens()
        density = count.mean(0)
        found = [find_words(document) for document in corpus.documents]
        words = np.concatenate([np.append(_normal(w.texts), "")[w.of_token] for w in found])
        pieces = np.concatenate([_pieces(w.of_token, w.tokens) for w in found])
        classes: dict[str, tuple[np.ndarray, bool]] = {
            "type": (tokens.token_id, True),
            "word": (words, True),
            "piece": (np.asarray(PIECES, object)[pieces], False),
            "place": (place_start(place_of(tokens.position)), False),
        }
        if self._tag is not None:
            classes["pos"] = tag_words(self._tag, found), False
        variables: dict[str, Any] = {
            "ffn_experts": (("layer", "token"), count),
            "layer_density": (("layer",), count.mean(1)),
        }
        coords: dict[str, Any] = token_coords(tokens, corpus)
        for name, (of_token, rare) in classes.items():
            keep = of_token != "" if of_token.dtype == object else np.ones(len(of_token), bool)
            least = self.min_count if rare else 1
            names, per_class = self._classes(of_token[keep], density[keep], tokens.document[keep], least)
            order = np.argsort(-per_class["density"], kind="stable") if name in ("type", "word", "pos") else slice(None)
            coords[name] = [value.item() if hasattr(value, "item") else value for value in names[order]]
            variables |= {f"{name}_{k}": ((name,), v[order]) for k, v in per_class.items()}
        coords["type_string"] = ("type", [corpus.strings[token] for token in coords["type"]])
        if self.chance:
            variables["chance"] = ((), density.mean())
        return variables, coords

    def _classes(
        self, of_token: np.ndarray, density: np.ndarray, document: np.ndarray, least: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        names, inverse, count = np.unique(of_token, return_inverse=True, return_counts=True)
        frequent = count >= least
        total = np.bincount(inverse, density, minlength=len(names))
        found = {"density": (total / count)[frequent], "count": count[frequent]}
        if self.bootstrap and frequent.any():
            blocks = np.zeros((BLOCKS, len(names), 2))
            np.add.at(blocks, (document % BLOCKS, inverse), np.stack([density, np.ones_like(density)], axis=1))
            found["density_low"], found["density_high"] = interval(
                _ratio, {"sums": blocks[:, frequent]}, self.bootstrap
            )
        return names[frequent], found


def _ratio(total: Mapping[str, np.ndarray]) -> np.ndarray:
    return total["sums"][..., 0] / total["sums"][..., 1]


def _normal(texts: np.ndarray) -> np.ndarray:
    return np.asarray([normal_form(word) for word in texts], dtype=object)


def _pieces(of_token: np.ndarray, tokens_of_word: np.ndarray) -> np.ndarray:
    """Places in PIECES."""
    several = np.append(tokens_of_word, 0)[of_token] > 1
    return np.where(of_token < 0, 2, several.astype(int))
