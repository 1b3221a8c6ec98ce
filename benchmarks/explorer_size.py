"""How large the explorer's page is, how long it takes to make, and how soon a browser shows the first tokens.

    python benchmarks/explorer_size.py FOLDER [SHAPE...]

Shapes: `qwen3`, 620 tokens through 48 layers of 128 experts; `olmoe`, 20,000 tokens through 32 layers of 64 experts; 8
of them are chosen. Narrow layers with random weights, whose router logits are scaled to a standard deviation of about
1.5. The time is from the start of loading to the first colored tokens, in Chromium, the median of five.
"""

import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from transformers import OlmoeConfig, OlmoeForCausalLM

import moe_probe
from moe_probe import explorer

SHAPES = {"qwen3": (48, 128, 4, 155), "olmoe": (32, 64, 20, 1000)}  # layers, experts, documents, tokens of each
CHOSEN, TIMES = 8, 5


def model(layers, experts, length):
    torch.manual_seed(0)
    config = OlmoeConfig(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=experts,
        num_experts_per_tok=CHOSEN,
        vocab_size=2000,
        max_position_embeddings=length,
        eos_token_id=None,
    )
    made = OlmoeForCausalLM(config).eval()
    for layer in made.model.layers:
        layer.mlp.gate.weight.data.normal_(std=1.5 / config.hidden_size**0.5)
    return moe_probe.load(made)


def first_tokens(browser, path):
    """Seconds until the first tokens have their colors."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=true]")
    first = float(page.get_attribute("body", "data-first")) / 1000
    page.close()
    return first


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in sys.argv[2:] or SHAPES:
            layers, experts, documents, length = SHAPES[name]
            generator = torch.Generator().manual_seed(1)
            texts = torch.randint(10, 2000, (documents, length), generator=generator).tolist()
            begin = time.perf_counter()
            page = explorer.explore(model(layers, experts, length), texts, similar="gate", progress=False)
            took = time.perf_counter() - begin
            path = page.save(folder / f"{name}.html")
            first = statistics.median(first_tokens(browser, path) for _ in range(TIMES))
            print(
                f"{name}: {documents * length:,} tokens, {layers} layers, {experts} experts: "
                f"{path.stat().st_size / 1e6:.1f} MB in {took:.0f} s; first tokens after {first:.2f} s"
            )
        browser.close()


if __name__ == "__main__":
    main()
