"""Batches of routing written down by hand, or drawn at random."""

import numpy as np
import torch

from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.texts.corpus import Corpus, Tokens, of_ids


class ByHand(Source):
    """A source whose batches are written down by hand; `on` gives it a corpus."""

    name, family, fingerprint = "by hand", "none", "0"
    holds = frozenset(Need)
    num_batches = 0

    def __init__(self, *layers, corpus=None):
        self.layers = {layer.index: layer for layer in layers}
        self.corpus = corpus

    def on(self, corpus):
        return ByHand(*self.layers.values(), corpus=corpus)

    def split(self, parts):
        return [self]

    def steps(self, needs, done=0):
        return iter(())


def layer_of(experts, top_k, index=0, subtokens=1, width=4, kinds=None):
    return Layer(index, width * subtokens, 3, experts, top_k, kinds or ("ffn",) * experts, subtokens=subtokens)


def corpus_of(documents, labels=None):
    """Documents of token ids; each token is a word, its number."""
    labels, strings = labels or [""] * len(documents), {token: str(token) for ids in documents for token in ids}
    words = {token: f" {text}" for token, text in strings.items()}
    numbered = zip(range(len(documents)), documents, labels, strict=True)
    return Corpus(tuple(of_ids(n, ids, label, words, frozenset()) for n, ids, label in numbered), strings)


def batch_of(layer, corpus, logits, index, weights=None, documents=None, outputs=None):
    """What rows of whole documents do; weights are 1 unless given, scores the softmax of logits."""
    chosen = [d for d in corpus.documents if documents is None or d.number in documents]
    lengths = [len(d.ids) for d in chosen]
    tokens = Tokens(
        np.repeat([d.number for d in chosen], lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate([np.asarray(d.ids) for d in chosen]),
        np.repeat(np.asarray([d.label for d in chosen], dtype=object), lengths),
    )
    logits, index = torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(index)
    rows = torch.zeros(len(logits), layer.expert_hidden_size)
    return LayerBatch(
        layer=layer,
        tokens=tokens,
        router_logits=logits,
        scores=logits.softmax(-1),
        selection=logits.softmax(-1),
        score_kind="softmax",
        top_k_index=index,
        top_k_weights=torch.ones(index.shape) if weights is None else torch.as_tensor(weights, dtype=torch.float32),
        expert_input=rows,
        routed_output=rows,
        block_output=torch.zeros(len(tokens), layer.hidden_size),
        outputs=outputs,
        selected_outputs=torch.ones(*index.shape, layer.expert_hidden_size),
    )


def random_routing(layer, corpus, seed):
    """A batch per document, routed by random logits."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for document in corpus.documents:
        logits = torch.randn(len(document.ids) * layer.subtokens, layer.num_experts, generator=generator)
        weights, index = logits.softmax(-1).topk(layer.top_k)
        shape = (layer.num_experts, len(logits), layer.expert_hidden_size)
        outputs = torch.randn(shape, generator=generator)
        batches.append(batch_of(layer, corpus, logits, index, weights, [document.number], outputs))
    return batches
