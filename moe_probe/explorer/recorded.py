"""A trace's routing as arrays, layer by layer, tokens in the order of the texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.traces.reading import Trace


@dataclass(frozen=True)
class RecordedLayer:
    """One layer's routing; rows are tokens, or sub-tokens one after the other.

    Attributes:
        logits: router logits, (rows, E), float32.
        index: chosen experts, the largest score first, (rows, k), int16.
        weight: their applied weights, (rows, k), float32.
    """

    logits: np.ndarray
    index: np.ndarray
    weight: np.ndarray


def recorded_layers(trace: Trace) -> dict[int, RecordedLayer]:
    """Every layer of a trace."""
    lengths = [len(document.ids) for document in trace.corpus.documents]
    starts = np.zeros(1 + max(document.number for document in trace.corpus.documents), np.int64)
    starts[[document.number for document in trace.corpus.documents]] = np.cumsum([0, *lengths])[:-1]
    layers = {}
    for layer in map(trace.layer, trace.moe_layers):
        rows = sum(lengths) * layer.subtokens
        layers[layer.index] = RecordedLayer(
            np.zeros((rows, layer.num_experts), np.float32),
            np.zeros((rows, layer.top_k), np.int16),
            np.zeros((rows, layer.top_k), np.float32),
        )
    for batch in trace.batches():
        token = starts[batch.tokens.document] + batch.tokens.position
        parts = batch.layer.subtokens
        at = (token[:, None] * parts + np.arange(parts)).ravel()
        into = layers[batch.layer.index]
        into.logits[at] = batch.router_logits.numpy()
        into.index[at] = batch.top_k_index.numpy()
        into.weight[at] = batch.top_k_weights.numpy()
    return layers
