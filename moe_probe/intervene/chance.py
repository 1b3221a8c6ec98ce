"""Random numbers of each token, the same for any batch, worker or execution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtri

from moe_probe.errors import NotFitting
from moe_probe.routing import Call
from moe_probe.signatures import check_number

MOST_SEED = (1 << 63) - 1


def check_seed(seed: int) -> None:
    """Raises `WrongType` or `OutOfRange` if the seed is not a whole number from 0 to 2**63 - 1."""
    check_number("seed", seed, 0, MOST_SEED)


def uniform(call: Call, seed: int, columns: Sequence[int] | np.ndarray, salt: np.ndarray | int = 0) -> np.ndarray:
    """Random numbers in (0, 1), (n, columns) float64, determined by seed, layer, token, column and salt (n,).

    A token is a document, position and sub-token. The generator is counter-based: SplitMix64's finalizer (Steele, Lea
    and Flood, OOPSLA 2014) over these words.
    """
    if not len(call.tokens):
        raise NotFitting(
            "Random interventions need to know which tokens run, but this call does not say; use intervene.applied."
        )
    subtokens = call.layer.subtokens
    document, position = (np.repeat(each, subtokens) for each in (call.tokens.document, call.tokens.position))
    subtoken = np.tile(np.arange(subtokens), len(call.tokens))
    state = _mixed(np.uint64(seed) + np.zeros(len(document), np.uint64))
    for word in (np.full(len(document), call.layer.index), document, position, subtoken, salt + 0 * document):
        state = _mixed(state ^ np.asarray(word).astype(np.uint64))
    bits = _mixed(state[:, None] ^ _mixed(np.asarray(columns, np.uint64))[None])
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def normal(call: Call, seed: int, width: int, salt: int) -> torch.Tensor:
    """Standard normal random numbers, (n, width), float32."""
    return torch.from_numpy(ndtri(uniform(call, seed, np.arange(width), salt)).astype(np.float32))


def _mixed(words: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
