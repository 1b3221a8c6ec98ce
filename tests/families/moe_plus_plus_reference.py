"""MoE++ by the formulas of its specification, on published tensors, one token and one expert at a time."""

import math

import torch
from torch.nn.functional import silu


def rotary_frequencies(config, length):
    """Of the original's three kinds of scaling, and of none."""
    width = config["hidden_size"] // config["num_attention_heads"]
    scaling = config.get("rope_scaling") or {"type": None, "factor": 1.0}
    base, factor, longest = 10000.0, scaling["factor"], config["max_position_embeddings"]
    if scaling["type"] == "ntk":
        base *= factor
    if scaling["type"] == "dynamic" and length > longest:
        base *= (factor * length / longest - (factor - 1)) ** (width / (width - 2))
    positions = torch.arange(length).double() / (factor if scaling["type"] == "linear" else 1)
    return positions[:, None] / base ** (torch.arange(0, width, 2).double() / width)


def rotated(x, angles):
    first, second = x.chunk(2, -1)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def normed(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attention(state, x, config):
    """Of one sequence, (length, d), one head at a time."""
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    width, length = x.shape[-1] // heads, len(x)
    angles, out = rotary_frequencies(config, length), []
    q, k, v = (state[f"self_attn.{name}_proj.weight"] for name in "qkv")
    for head in range(heads):
        shared = slice(head * kv_heads // heads * width, (head * kv_heads // heads + 1) * width)
        query = rotated(x @ q[head * width : (head + 1) * width].T, angles)
        key, value = rotated(x @ k[shared].T, angles), x @ v[shared].T
        scores = (query @ key.T / math.sqrt(width)).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        out.append(scores.softmax(-1) @ value)
    return torch.cat(out, -1) @ state["self_attn.o_proj.weight"].T


def route(state, x, previous, config):
    """Logits of one token, and the weights of its experts by number, as the specification says it."""
    if config.get("moe_2layer_gate", True):
        logits = state["gate.wg.2.weight"] @ (state["gate.wg.0.weight"] @ x).tanh()
    else:
        logits = state["gate.wg.weight"] @ x
    if previous is not None:
        logits = logits + state["gate.gate_map.weight"] @ previous
    z = logits
    if config.get("moe_use_logits_norm"):
        z = z * config.get("moe_gate_norm_std", 1.0) / z.std()
    chosen = z.argsort(descending=True)[: config.get("num_experts_per_tok", 2)].tolist()
    raw = {e: math.exp(z[e] - z.max()) for e in chosen}
    if not config.get("moe_use_mixtral_gating"):
        raw = {e: 0.0 if e == len(z) - 1 else value for e, value in raw.items()}
    return logits, {e: value / sum(raw.values()) for e, value in raw.items()}


def expert_output(state, e, x, config):
    total, constants = config["num_experts"][0], config.get("num_constant_experts", 2)
    if e == total - 1:
        return torch.zeros_like(x)
    if e == total - 2:
        return x
    here = f"experts.experts.{e}."
    if e >= total - 2 - constants:
        copied, constant = (state[here + "wg.weight"] @ x).softmax(0)
        return copied * x + constant * state[here + "constant"]
    gate, up = (state[here + "up_proj.weight"] @ x).chunk(2)
    return state[here + "down_proj.weight"] @ (silu(gate) * up)


def reference(tensors, input_ids, config):
    """Logits of one sequence, router logits by layer, (token, E), and weights by layer and token, in float64."""
    hidden = tensors["model.embed_tokens.weight"][input_ids]
    logits, weights, carried = [], [], [None] * len(input_ids)
    doubled = not (config.get("moe_use_mixtral_gating") or config.get("moe_feature_no_mul_topk"))
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        layer = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        moe = {k.removeprefix("mlp.moe."): value for k, value in layer.items() if k.startswith("mlp.moe.")}
        hidden = hidden + attention(layer, normed(hidden, layer["input_layernorm.weight"]), config)
        inputs = normed(hidden, layer["post_attention_layernorm.weight"])
        routed = [route(moe, x, before, config) for x, before in zip(inputs, carried, strict=True)]
        scale = config.get("num_experts_per_tok", 2) if doubled else 1
        hidden = hidden + torch.stack(
            [
                sum(weight * expert_output(moe, e, scale * x, config) for e, weight in chosen.items())
                for x, (_, chosen) in zip(inputs, routed, strict=True)
            ]
        )
        logits.append(torch.stack([own for own, _ in routed]))
        weights.append([chosen for _, chosen in routed])
        carried = list(logits[-1]) if config.get("moe_gate_residual", True) else carried
    return normed(hidden, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T, logits, weights
