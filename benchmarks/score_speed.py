"""Time of all scores of one pass, beside the model's own forward, and beside that with the outputs of all experts.

python benchmarks/score_speed.py [HIDDEN] [FFN] [EXPERTS] [TOP_K]: a random Mixtral of that shape, four layers deep;
512, 1792, 8 and 2 by default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers

import moe_probe
from moe_probe import pruning
from moe_probe.forward.capture import capture
from moe_probe.forward.sites import find_sites
from moe_probe.pruning.score import OnePass
from moe_probe.routing import Need

DOCUMENTS, TOKENS, BATCH, ROUNDS = 64, 128, 512, 2  # in shorter runs, the check of the first batch counts
VOCABULARY = 512


def random_mixtral(hidden: int, ffn: int, experts: int, top_k: int) -> moe_probe.MoEModel:
    """A Mixtral of random weights."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
    )
    return moe_probe.load(transformers.MixtralForCausalLM(config).eval())


def fastest(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest time of each in several rounds, in turn, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: min(several[1:]) for name, several in times.items()}


def main() -> None:
    """Print seconds and ratios."""
    shape = [int(value) for value in sys.argv[1:]] or [512, 1792, 8, 2]
    model = random_mixtral(*shape)
    rows = np.random.default_rng(0).integers(5, VOCABULARY, (DOCUMENTS, TOKENS))
    of = {name: score for name, score in pruning.names().items() if isinstance(score, OnePass)}
    chosen_only = [name for name, score in of.items() if Need.OUTPUTS not in score.needs]
    batches = torch.from_numpy(rows).split(BATCH // TOKENS)
    sites = find_sites(model.module).values()

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            model.module(batch, use_cache=False)

    @torch.no_grad()
    def with_all_outputs() -> None:
        with capture(sites, lambda event: event.site.all_outputs(event.expert_input)):
            plain()

    def scored(names: list[str]) -> Callable[[], object]:
        return lambda: pruning.scores(model, rows.tolist(), names, progress=False, batch_tokens=BATCH)

    seconds = fastest(
        {"plain": plain, "chosen": scored(chosen_only), "all outputs": with_all_outputs, "all": scored(list(of))}
    )
    print(f"hidden, ffn, experts, top-k: {shape}; {DOCUMENTS * TOKENS} tokens")
    print(f"plain forward                  {seconds['plain']:.2f} s")
    ratio = seconds["chosen"] / seconds["plain"]
    print(f"{len(chosen_only)} scores of chosen experts   {seconds['chosen']:.2f} s, {ratio:.2f} x the plain forward")
    print(f"forward with all outputs       {seconds['all outputs']:.2f} s")
    ratio = seconds["all"] / seconds["all outputs"]
    print(f"{len(of)} scores of all experts      {seconds['all']:.2f} s, {ratio:.2f} x the forward with all outputs")


if __name__ == "__main__":
    main()
