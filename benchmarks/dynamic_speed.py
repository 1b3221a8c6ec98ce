"""What capturing costs, as ratios against plain forward passes, measured side by side in one run.

    python benchmarks/dynamic_speed.py

A Mixtral of 8 layers with random weights (8 experts of 896 neurons, 2 per token, width 512), 8 documents of 64 tokens.
Every round runs all of them once; the medians of seven rounds are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import moe_probe
from moe_probe import dynamic
from moe_probe.dynamic.sites import find_sites

ROUNDS = 7


def medians(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median wall time of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def build() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=896,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return MixtralForCausalLM(config).eval()


@torch.no_grad()
def plain(module: MixtralForCausalLM, ids: torch.Tensor, top_k: int) -> None:
    """An ordinary forward pass of the decoder with so many experts per token."""
    for layer in module.model.layers:
        layer.mlp.gate.top_k = top_k
    module.model(ids, use_cache=False)
    for layer in module.model.layers:
        layer.mlp.gate.top_k = module.config.num_experts_per_tok


def _keep_input(inputs: dict[int, torch.Tensor], layer: int, module: torch.nn.Module, args: tuple) -> None:
    inputs[layer] = args[0]


@torch.no_grad()
def notebook(module: MixtralForCausalLM, ids: torch.Tensor) -> None:
    """The published method: per experiment one ordinary pass, then every layer again with all experts, hooked.

    Sequences go through one at a time, similarities pair by pair, ranks token by token, as in the notebooks.
    """
    experts = module.config.num_local_experts
    for experiment in ("similarity", "norms", "activations"):
        for sequence in ids:
            inputs: dict[int, torch.Tensor] = {}
            sites = find_sites(module)
            handles = [
                site.experts.register_forward_pre_hook(partial(_keep_input, inputs, layer))
                for layer, site in sites.items()
            ]
            module.model(sequence[None], use_cache=False)
            for handle in handles:
                handle.remove()
            for layer, site in sites.items():
                rows = inputs[layer]
                if experiment == "activations":
                    site.all_outputs_and_activations(rows)
                    continue
                outputs = site.all_outputs(rows)
                if experiment == "similarity":
                    for i in range(experts):
                        for j in range(i + 1, experts):
                            cosine = torch.nn.functional.cosine_similarity(outputs[i], outputs[j], dim=-1)
                            (1 - torch.arccos(cosine) / torch.pi).sum()
                else:
                    scores = site.router(rows)[0].softmax(-1)
                    for token in range(len(rows)):
                        norms = torch.stack([outputs[expert, token].norm() for expert in range(experts)])
                        norms.argsort(), scores[token].argsort()


def main() -> None:
    module = build()
    model = moe_probe.load(module)
    ids = torch.randint(1000, (8, 64))
    texts = ids.tolist()

    def run(*analyses: dynamic.Analysis) -> Callable[[], object]:
        return lambda: dynamic.run(model, texts, analyses, progress=False)

    similarity, ranks = dynamic.OutputSimilarity("angular"), dynamic.NormScoreRanks()
    times = medians(
        {
            "plain": lambda: plain(module, ids, 2),
            "plain, all experts": lambda: plain(module, ids, 8),
            "routing": run(dynamic.GateChoices()),
            "outputs": run(similarity, ranks),
        }
    )
    print(f"plain forward {times['plain']:.2f} s, with all experts {times['plain, all experts']:.2f} s")
    print(f"  routing alone: {times['routing'] / times['plain']:.3f}x the plain forward")
    print(f"  all outputs, similarity and ranks: {times['outputs'] / times['plain, all experts']:.2f}x all experts")
    three = {
        "notebook": lambda: notebook(module, ids),
        "one pass": run(similarity, ranks, dynamic.ActiveNeurons()),
    }
    times = medians(three, rounds=3)
    ratio = times["notebook"] / times["one pass"]
    print(f"  three experiments by the notebooks' method: {ratio:.1f}x as long as one pass")


if __name__ == "__main__":
    main()
