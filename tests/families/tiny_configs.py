"""A tiny configuration of every MoE model type of transformers: the defaults, shrunk."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN, EXPERTS, LAYERS = 32, 6, 3
SHRUNK: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 40,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "layer_types": None,
    "mlp_layer_types": None,
}
SHRUNK["num_experts_per_token"] = 2
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_experts_per_tok": 2},
    "beam": {"num_hidden_layers": 5},
    "dbrx": {
        "d_model": HIDDEN,
        "n_heads": 4,
        "n_layers": LAYERS,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": EXPERTS, "moe_top_k": 2, "hidden_size": HIDDEN},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma4_text": {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 24},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * LAYERS},
    "longcat_flash": {"num_layers": LAYERS, "zero_expert_num": 2, "num_hidden_layers": 2 * LAYERS},
    "zaya": {"num_experts_per_tok": 1},
}
LATENT_ATTENTION = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash".split()
for name in LATENT_ATTENTION:  # one key and value head per query head
    OVERRIDES.setdefault(name, {})["num_key_value_heads"] = SHRUNK["num_attention_heads"]


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a model of a few thousand parameters."""
    defaults = CONFIG_MAPPING[model_type]().to_dict()
    fields = {name: value for name, value in SHRUNK.items() if name in defaults}
    return CONFIG_MAPPING[model_type](**{**fields, **OVERRIDES.get(model_type, {})})
