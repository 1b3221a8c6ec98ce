"""How large the explorer's page of a long text is, and how long it takes to make.

    python benchmarks/explorer_size.py page.html

20,000 tokens through 32 layers of 64 experts, 8 of them chosen; narrow layers with random weights, whose router logits
are scaled to a standard deviation of about 1.5.
"""

import sys
import time

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

import moe_probe
from moe_probe import explorer, static

LAYERS, EXPERTS, CHOSEN, DOCUMENTS, LENGTH = 32, 64, 8, 20, 1000


def model():
    torch.manual_seed(0)
    config = OlmoeConfig(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        vocab_size=2000,
        max_position_embeddings=LENGTH,
    )
    made = OlmoeForCausalLM(config).eval()
    for layer in made.model.layers:
        layer.mlp.gate.weight.data.normal_(std=1.5 / config.hidden_size**0.5)
    return moe_probe.load(made)


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "page.html"
    made, generator = model(), torch.Generator().manual_seed(1)
    texts = torch.randint(10, 2000, (DOCUMENTS, LENGTH), generator=generator).tolist()
    begin = time.perf_counter()
    page = explorer.explore(made, texts, similar=static.gate_similarity(made), progress=False)
    took = time.perf_counter() - begin
    size = page.save(path).stat().st_size
    print(f"{DOCUMENTS * LENGTH:,} tokens, {LAYERS} layers, {EXPERTS} experts: {size / 1e6:.1f} MB in {took:.0f} s")


if __name__ == "__main__":
    main()
