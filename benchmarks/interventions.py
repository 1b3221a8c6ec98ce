"""Ablating every expert, and estimating it from one backward pass, beside plain hooks in a loop: ratios of one run.

    python benchmarks/interventions.py [--big] [--tokens 1024] [--length 64] [--how zero]

The model is ckpt/tiny-mixtral; with --big, one of Mixtral's architecture with 0.6 B random parameters. Prints the time
of `intervene.ablate` over all experts of all layers, divided by that of a loop with a plain forward hook per edit and a
whole forward pass each, both in memory, on the same batches; the time of `intervene.attribution` divided by that of one
forward pass; and how far the changes of the loss differ. With `--how mask` no document is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import moe_probe
from moe_probe import dynamic, intervene
from moe_probe.texts.corpus import Batch, Corpus

BIG = {
    "hidden_size": 1024,
    "intermediate_size": 1792,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32_000,
}


def big_model() -> moe_probe.MoEModel:
    """Random weights, made once, in float32."""
    torch.manual_seed(0)
    config = MixtralConfig(**BIG, attn_implementation="sdpa", experts_implementation="eager")
    return moe_probe.load(MixtralForCausalLM(config).eval())


def random_corpus(model: moe_probe.MoEModel, tokens: int, length: int) -> Corpus:
    """Documents of random token ids."""
    generator = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    ids = [generator.integers(3, vocabulary, length).tolist() for _ in range(tokens // length)]
    return dynamic.make_corpus(model, ids)


def summed_loss(module: nn.Module, batches: Sequence[Batch]) -> float:
    """Of all predicted tokens, by whole forward passes."""
    total = 0.0
    for batch in batches:
        ids = batch.input_ids()
        logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
    return total


@contextmanager
def silenced(module: nn.Module, layer: int, expert: int) -> Iterator[None]:
    """A plain hook that gives one expert the weight 0."""

    def before(_: nn.Module, args: tuple) -> tuple:
        rows, index, weights = args
        return rows, index, weights.masked_fill(index == expert, 0)

    handle = module.model.layers[layer].mlp.experts.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def plain_loop(model: moe_probe.MoEModel, batches: Sequence[Batch]) -> np.ndarray:
    """The summed loss without each expert, (layers, experts)."""
    found = np.zeros((model.num_layers, model.layer(0).num_experts))
    for layer, expert in np.ndindex(found.shape):
        with silenced(model.module, layer, expert):
            found[layer, expert] = summed_loss(model.module, batches)
    return found


def timed(function: Callable[[], object], times: int = 1) -> tuple[float, object]:
    """The least time of several calls, and what the last one returned."""
    least, value = float("inf"), None
    for _ in range(times):
        start = time.perf_counter()
        value = function()
        least = min(least, time.perf_counter() - start)
    return least, value


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--how", default="zero", choices=["zero", "mask", "mean"])
    asked = parser.parse_args()
    model = big_model() if asked.big else moe_probe.load("ckpt/tiny-mixtral")
    corpus = random_corpus(model, asked.tokens, asked.length)
    batches = list(corpus.batches(min(4096, (1 << 25) // model.config.vocab_size)))
    options = {"progress": False, "bootstrap": 0}
    times = 1 if asked.big else 3
    with torch.no_grad():
        forward, base = timed(lambda: summed_loss(model.module, batches), 3)
        plain, losses = timed(lambda: plain_loop(model, batches), times)
    intervene.ablate(model, corpus.beginning(8), asked.how, layers=[0], experts=[0], **options)  # imports
    ablation, measured = timed(lambda: intervene.ablate(model, corpus, asked.how, **options), times)
    backward, _ = timed(lambda: intervene.attribution(model, corpus, **options), 3)
    edits = losses.size
    print(f"{edits} edits, {corpus.num_tokens} tokens, one forward pass {forward:.3f} s")
    print(f"ablate {ablation:.2f} s, plain hooks {plain:.2f} s: {ablation / plain:.2f}")
    print(f"ablate / (edits x forward pass): {ablation / (edits * forward):.2f}")
    print(f"attribution / forward pass: {backward / forward:.2f}")
    if asked.how == "zero":
        wanted = (losses - base) / (corpus.num_tokens - len(corpus.documents))
        print(
            f"largest difference of a change of the loss: {np.abs(measured.loss_change.values[0] - wanted).max():.1e}"
        )


if __name__ == "__main__":
    main()
