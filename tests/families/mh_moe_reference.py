"""MH-MoE and X-MoE by their formulas, in float64, from the keys and options of fairseq's files."""

import math

import torch
from torch.nn.functional import linear


def reference(options, tensors, input_ids):
    """Logits (B, T, V), and by MoE layer the block's output (N, d), written token by token from the specification."""
    state = {key.removeprefix("decoder."): value.double() for key, value in tensors.items()}
    d, heads = options["decoder_embed_dim"], options["decoder_attention_heads"]
    kv, h = options.get("n_kv_heads", heads), options.get("mhmoe_heads_number", 1)

    def norm(x, name):
        if options.get("rms_norm"):
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def apply(x, name):
        return linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def activation(x):
        return {
            "silu": lambda: x * torch.sigmoid(x),
            "gelu": lambda: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
            "relu": lambda: x.clamp(min=0) ** (2 if options.get("relu_squared") else 1),
        }[options["activation_fn"]]()

    def ffn(x, name):
        if f"{name}.fc3.weight" in state:
            return apply(apply(x, f"{name}.fc1") * activation(apply(x, f"{name}.fc3")), f"{name}.fc2")
        return apply(activation(apply(x, f"{name}.fc1")), f"{name}.fc2")

    def rotate(x):  # (T, D)
        half = x.shape[-1] // 2
        angle = torch.arange(len(x)).double()[:, None] / 10000 ** (torch.arange(half).double() / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(x, name):  # (T, d)
        size = d // heads
        query, key, value = (apply(x, f"{name}.{part}_proj") for part in "qkv")
        out = []
        for i in range(heads):
            j = i % kv
            q = rotate(query[:, i * size : (i + 1) * size])
            k, v = rotate(key[:, j * size : (j + 1) * size]), value[:, j * size : (j + 1) * size]
            scores = (q @ k.T / math.sqrt(size)).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
            out.append(scores.softmax(-1) @ v)
        return apply(torch.cat(out, -1), f"{name}.out_proj")

    def moe(x, name):  # (N, d)
        rows = (apply(x, f"{name}.multi_heads") if h > 1 else x).reshape(-1, d // h)
        out = []
        for row in rows:
            if options.get("use_xmoe"):
                wg = state[f"{name}.gate.wg"]
                logits = (state[f"{name}.gate.wg_reduction.weight"] @ row) @ (wg / wg.norm(dim=1, keepdim=True)).T
            else:
                logits = state[f"{name}.gate.wg.weight"] @ row
            scores = logits.softmax(0)
            top_k = options.get("moe_top_k") or (1 if options.get("moe_top1_expert") else 2)
            chosen = scores.argsort(descending=True)[:top_k]
            total = scores[chosen].sum() if options.get("moe_top_k") is None and top_k == 2 else 1
            out.append(sum(scores[e] / total * ffn(row, f"{name}.experts.{e}") for e in chosen))
        merged = torch.stack(out).reshape(-1, d)
        return apply(merged, f"{name}.out_proj") if h > 1 else merged

    x = state["embed_tokens.weight"][input_ids]
    if not options.get("no_scale_embedding"):
        x = x * math.sqrt(d)
    blocks = {}
    for index in range(options["decoder_layers"]):
        layer = f"layers.{index}"
        normed = norm(x, f"{layer}.self_attn_layer_norm")
        x = x + torch.stack([attention(sequence, f"{layer}.self_attn") for sequence in normed])
        normed = norm(x, f"{layer}.final_layer_norm")
        if options["moe_freq"] and (index + 1) % options["moe_freq"] == 0:
            blocks[index] = moe(normed.flatten(0, 1), f"{layer}.moe_layer")
            x = x + blocks[index].view_as(x)
        else:
            x = x + ffn(normed, f"{layer}.ffn")
    return linear(norm(x, "layer_norm"), state["output_projection.weight"]), blocks
