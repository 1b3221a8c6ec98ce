"""Makes GGUF files by hand, after llama.cpp's conversion: sizes, names and tensors of small models."""

import gguf
import numpy as np
import torch
import transformers

D, FF, E, L, H, KV, HD, V = 32, 32, 4, 2, 4, 2, 8, 64
SMALL = {
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": KV,
    "vocab_size": V,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
META = {
    "block_count": L,
    "embedding_length": D,
    "context_length": 64,
    "feed_forward_length": FF,
    "expert_count": E,
    "expert_used_count": 2,
    "attention.head_count": H,
    "attention.head_count_kv": KV,
    "rope.freq_base": 10000.0,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_feed_forward_length": FF,
    "attention.key_length": HD,
    "attention.value_length": HD,
    "rope.dimension_count": HD,
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "block_sparse_moe.router": "ffn_gate_inp",
    "mlp.router.layer": "ffn_gate_inp",
    "self_attn": "attn_sinks",
}
PARTS |= {
    f"mlp.{block}.{name}_proj": f"ffn_{name}_shexp"
    for block in ("shared_expert", "shared_experts")
    for name in ("gate", "up", "down")
}


def normal(rows, heads):
    """Rows of q or k as llama.cpp keeps them where positions pair neighbors."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def of_experts(name, value, interleaved):
    """llama.cpp's parts of a stack of transformers' module, (E, ff, d) for gate and up, (E, d, ff) for down."""
    bias = name.endswith("_bias")
    ending = "bias" if bias else "weight"
    if "gate_up_proj" not in name and "input_linear" not in name:
        yield f"ffn_down_exps.{ending}", value.swapaxes(1, 2) if interleaved and not bias else value
        return
    rows = value.swapaxes(1, 2) if interleaved and not bias else value
    half = rows.shape[1] // 2
    yield f"ffn_gate_exps.{ending}", rows[:, 0::2] if interleaved else rows[:, :half]
    yield f"ffn_up_exps.{ending}", rows[:, 1::2] if interleaved else rows[:, half:]


def tensors_of(module, permuted=False, interleaved=False, renamed=None):
    """The tensors of a module under llama.cpp's names."""
    found = {}
    for name, tensor in module.state_dict().items():
        value = tensor.float().numpy()
        if name in ENDS:
            found[ENDS[name]] = value
            continue
        _, _, layer, rest = name.split(".", 3)
        block = f"blk.{layer}."
        if ("experts." in rest and "shared" not in rest) or "_linear" in rest:
            found |= {block + key: part for key, part in of_experts(rest, value, interleaved)}
        elif rest.endswith("e_score_correction_bias"):
            found[block + "exp_probs_b.bias"] = value
        elif rest.endswith("sinks"):
            found[block + "attn_sinks.weight"] = value
        else:
            part, _, kind = rest.rpartition(".")
            key = (renamed or {}).get(part, PARTS[part])
            heads = {"attn_q": H, "attn_k": KV}.get(key) if permuted else None
            value = normal(value, heads) if heads else value
            found[f"{block}{key}.{kind}"] = value[0] if key == "ffn_gate_inp_shexp" else value
    return found


def write(path, architecture, tensors, metadata, kinds=None):
    """A GGUF file; a matrix of experts in one of the block types `kinds`, in turn."""
    writer = gguf.GGUFWriter(path, architecture)
    if "general.alignment" in metadata:
        writer.add_custom_alignment(metadata["general.alignment"])
        metadata = {key: value for key, value in metadata.items() if key != "general.alignment"}
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key if key.startswith(("general", "split")) else f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(V)])
    stacks = [key for key in tensors if "_exps.weight" in key]
    for key, value in tensors.items():
        value = np.ascontiguousarray(value, np.float32)
        kind = kinds[stacks.index(key) % len(kinds)] if kinds and key in stacks else None
        if kind:
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(key, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


DEEPSEEK = {
    "moe_intermediate_size": FF,
    "intermediate_size": 48,
    "n_routed_experts": E,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": H,
    "n_group": 2,
    "topk_group": 1,
}
LATENT = {
    "attention.q_lora_rank": 16,
    "attention.kv_lora_rank": 12,
    "attention.key_length": 16,
    "attention.value_length": 8,
    "attention.head_count_kv": H,
    "feed_forward_length": 48,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_group_count": 2,
    "expert_group_used_count": 1,
}
CASES = {
    "llama": ("Mixtral", {"intermediate_size": FF, "num_local_experts": E}, {}, {"permuted": True}),
    "qwen2moe": (
        "Qwen2Moe",
        {"moe_intermediate_size": FF, "num_experts": E, "shared_expert_intermediate_size": 24, "norm_topk_prob": False},
        {"expert_shared_feed_forward_length": 24},
        {},
    ),
    "qwen3moe": (
        "Qwen3Moe",
        {"moe_intermediate_size": FF, "num_experts": E, "head_dim": HD, "norm_topk_prob": True},
        {},
        {},
    ),
    "olmoe": ("Olmoe", {"intermediate_size": FF, "num_experts": E}, {}, {}),
    "deepseek2 v2": (
        "DeepseekV2",
        {
            **DEEPSEEK,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 4.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "beta_fast": 32,
                "beta_slow": 1,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 8,
            },
        },
        {
            **LATENT,
            "expert_weights_scale": 4.0,
            "expert_gating_func": 1,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        {},
    ),
    "deepseek2 v3": (
        "DeepseekV3",
        {**DEEPSEEK, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {**LATENT, "expert_weights_scale": 2.5, "expert_gating_func": 2, "expert_weights_norm": True},
        {},
    ),
    "gpt-oss": (
        "GptOss",
        {
            "intermediate_size": FF,
            "num_local_experts": E,
            "head_dim": HD,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 8,
                "rope_theta": 10000.0,
            },
        },
        {
            "attention.sliding_window": 4,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8,
        },
        {"interleaved": True, "renamed": {"post_attention_layernorm": "post_attention_norm"}},
    ),
    "glm4moe": (
        "Glm4Moe",
        {
            "moe_intermediate_size": FF,
            "intermediate_size": 48,
            "n_routed_experts": E,
            "head_dim": HD,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.0,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
        },
        {
            "feed_forward_length": 48,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.0,
            "expert_gating_func": 2,
            "rope.dimension_count": HD // 2,
        },
        {"renamed": {"post_attention_layernorm": "post_attention_norm"}},
    ),
    "granitemoe": (
        "GraniteMoe",
        {
            "intermediate_size": FF,
            "num_local_experts": E,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
            "attention_multiplier": 0.2,
        },
        {"embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0, "attention.scale": 0.2},
        {"permuted": True},
    ),
    "phimoe": (
        "Phimoe",
        {"intermediate_size": FF, "num_local_experts": E, "attention_bias": True, "lm_head_bias": True},
        {},
        {},
    ),
}


def original(name, fields):
    """A model of transformers with random weights, biases too."""
    torch.manual_seed(4)
    config = getattr(transformers, name + "Config")(**{**SMALL, **fields})
    module = (
        getattr(transformers, name + "ForCausalLM")._from_config(config, attn_implementation="eager").float().eval()
    )
    for name_, value in (*module.named_parameters(), *module.named_buffers()):
        if value.requires_grad or name_.endswith("e_score_correction_bias"):
            value.data.copy_(torch.randn(value.shape) * (0.3 if value.ndim > 1 else 0.1) + (value.ndim == 1))
    return module


def mixtral_tensors():
    return tensors_of(original("Mixtral", CASES["llama"][1]), permuted=True)
