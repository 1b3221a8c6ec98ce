"""What capturing costs, as ratios against plain forward passes, measured side by side in one run.

    python benchmarks/dynamic_speed.py

A Mixtral of 8 layers in its true proportions with random weights (width 512, 8 experts of 1792 neurons, 2 per token);
24 documents of 256 tokens in three batches. Every round runs all of them once; the shortest times of four rounds are
compared. The notebooks' method (arXiv 2406.18219) runs on one text of 7 tokens and ten of 64, at two widths.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import moe_probe
from moe_probe import dynamic
from moe_probe.forward.sites import Site, find_sites

ROUNDS = 4
DOCUMENTS, LENGTH, BATCH = 24, 256, 8


def fastest(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Shortest wall time of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def build(width: int = 512) -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=4000,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
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
    for batch in ids.split(BATCH):
        module.model(batch, use_cache=False)
    for layer in module.model.layers:
        layer.mlp.gate.top_k = module.config.num_experts_per_tok


@torch.no_grad()
def notebook(module: MixtralForCausalLM, short: torch.Tensor, long: torch.Tensor, whole: bool) -> None:
    """The published method: per experiment and sequence one ordinary pass, then one per layer with all its experts.

    Sequences go through one at a time; similarities of the short text are taken pair by pair and token by token, those
    of long texts pair by pair, ranks token by token.

    Args:
        whole: the pass of a layer is one through the model, as transformers offers it; otherwise only that layer runs,
            and the head, as in the modeling code that the notebooks bring along.
    """
    experts = module.config.num_local_experts
    sites = find_sites(module)
    for experiment, texts in (("similarity", [short, *long]), ("norms", [short, *long]), ("activations", [short])):
        for number, ids in enumerate(texts):
            seen = _ordinary_pass(module, ids)
            for layer, arguments in seen.items():
                if whole:
                    rows, outputs = _pass_with_all_experts(module, sites[layer], ids)
                else:
                    rows = _again(module.model.layers[layer], *arguments)
                    outputs = sites[layer].all_outputs(rows)
                    module.lm_head(module.model.norm(outputs.sum(0)))
                if experiment == "activations":
                    continue
                if experiment == "similarity":
                    for i in range(experts):
                        for j in range(i + 1, experts):
                            cosine = torch.nn.functional.cosine_similarity
                            if number == 0:
                                [float(cosine(a, b, dim=0)) for a, b in zip(outputs[i], outputs[j], strict=True)]
                            else:
                                (1 - torch.arccos(cosine(outputs[i], outputs[j], dim=-1)) / torch.pi).sum()
                else:
                    scores = sites[layer].router(rows)[0].softmax(-1)
                    for token in range(len(rows)):
                        norms = torch.stack([outputs[expert, token].norm() for expert in range(experts)])
                        norms.argsort(), scores[token].argsort()


def ours(model: moe_probe.MoEModel, short: torch.Tensor, long: torch.Tensor) -> None:
    """The same numbers: one pass over the long texts, one over the short one."""
    of_long = [dynamic.OutputSimilarity("angular"), dynamic.NormScoreRanks()]
    dynamic.run(model, long.tolist(), of_long, progress=False)
    of_short = [dynamic.OutputSimilarity(per_token=True), dynamic.OutputNorms(), dynamic.IntermediateStates()]
    dynamic.run(model, [short.tolist()], of_short, progress=False)


def _ordinary_pass(module: MixtralForCausalLM, sequence: torch.Tensor) -> dict[int, tuple]:
    """What every decoder layer is called with."""
    seen: dict[int, tuple] = {}

    def keep(layer: int, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen[layer] = args, kwargs

    layers = module.model.layers
    handles = [
        layer.register_forward_pre_hook(partial(keep, index), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    module(sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def _pass_with_all_experts(
    module: MixtralForCausalLM, site: Site, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pass through the model in which one layer computes all its experts: what they see, and their outputs."""
    usual, seen = site.experts.forward, []

    def all_experts(rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        site.experts.forward = usual
        outputs = site.all_outputs(rows)
        seen.extend([rows, outputs])
        mixed = torch.zeros(len(rows), len(outputs)).scatter_(1, index, weights)
        return torch.einsum("ne,enw->nw", mixed, outputs)

    site.experts.forward = all_experts
    module(ids[None], use_cache=False)
    return seen[0], seen[1]


def _again(layer: torch.nn.Module, args: tuple, kwargs: dict) -> torch.Tensor:
    """The attention of a layer once more: (tokens, d), what its experts see."""
    hidden = args[0]
    attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **kwargs)[0]
    return layer.post_attention_layernorm(hidden + attended).flatten(0, 1)


def main() -> None:
    module = build()
    model = moe_probe.load(module)
    ids = torch.randint(4000, (DOCUMENTS, LENGTH))
    texts = ids.tolist()

    def run(texts: list[list[int]], *analyses: dynamic.Analysis) -> Callable[[], object]:
        return lambda: dynamic.run(model, texts, analyses, batch_tokens=BATCH * LENGTH, progress=False)

    similarity, ranks = dynamic.OutputSimilarity("angular"), dynamic.NormScoreRanks()
    times = fastest(
        {
            "plain": lambda: plain(module, ids, 2),
            "plain, all experts": lambda: plain(module, ids, 8),
            "routing": run(texts, dynamic.GateChoices()),
            "outputs": run(texts, similarity, ranks),
        }
    )
    print(f"plain forward {times['plain']:.2f} s, with all experts {times['plain, all experts']:.2f} s")
    print(f"  routing alone: {times['routing'] / times['plain']:.3f}x the plain forward")
    print(f"  all outputs, similarity and ranks: {times['outputs'] / times['plain, all experts']:.2f}x all experts")
    short, long = torch.randint(4000, (7,)), torch.randint(4000, (10, 64))
    for width in (128, 512):
        module = build(width)
        model = moe_probe.load(module)
        layers, passes = (partial(notebook, module, short, long, whole) for whole in (False, True))
        times = fastest({"ours": partial(ours, model, short, long), "layers": layers, "passes": passes}, rounds=2)
        print(f"three experiments, width {width}: {times['ours']:.2f} s in two passes")
        print(f"  by the notebooks' method, a pass per layer: {times['passes'] / times['ours']:.1f}x as long")
        print(f"  the same, running that layer alone: {times['layers'] / times['ours']:.1f}x as long")


if __name__ == "__main__":
    main()
