"""Write an MH-MoE or X-MoE module as fairseq does: a shared file, and a file of experts per expert-parallel rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from moe_probe.families.mh_moe.configuration import MhMoeConfig
from moe_probe.families.mh_moe.modeling import MhMoeForCausalLM

RENAMED = {
    r"^model\.embed_tokens\.": "decoder.embed_tokens.",
    r"^lm_head\.": "decoder.output_projection.",
    r"^model\.norm\.": "decoder.layer_norm.",
    r"^model\.layers\.": "decoder.layers.",
    r"\.self_attn\.o_proj\.": ".self_attn.out_proj.",
    r"\.input_layernorm\.": ".self_attn_layer_norm.",
    r"\.post_attention_layernorm\.": ".final_layer_norm.",
    r"\.mlp\.(gate|multi_heads|out_proj|experts)\.": r".moe_layer.\1.",
    r"\.mlp\.": ".ffn.",
    r"\.up_proj\.": ".fc1.",
    r"\.down_proj\.": ".fc2.",
    r"\.gate_proj\.": ".fc3.",
}


def options(config: MhMoeConfig) -> dict[str, Any]:
    """The options of training that say what the model computes, under fairseq's names."""
    return {
        "_name": "gpt_small_v2",
        "activation_fn": config.hidden_act,
        "decoder_attention_heads": config.num_attention_heads,
        "decoder_embed_dim": config.hidden_size,
        "decoder_ffn_embed_dim": config.intermediate_size,
        "decoder_layers": config.num_hidden_layers,
        "decoder_normalize_before": True,
        "flash_attention": not config.mask_pad_tokens,
        "max_target_positions": config.max_position_embeddings,
        "mhmoe_heads_number": config.mhmoe_heads_number,
        "moe_eval_capacity_token_fraction": -1.0,
        "moe_expert_count": config.num_experts,
        "moe_ffn_dim": config.moe_intermediate_size,
        "moe_freq": config.moe_freq,
        "moe_top_k": config.num_experts_per_tok,
        "n_kv_heads": config.num_key_value_heads,
        "no_bias": not config.mlp_bias,
        "no_scale_embedding": not config.scale_embedding,
        "rms_norm": config.rms_norm,
        "rotary_embed": True,
        "share_decoder_input_output_embed": config.tie_word_embeddings,
        "use_xmoe": config.router == "cosine",
    }


def state(module: MhMoeForCausalLM) -> dict[str, torch.Tensor]:
    """The module's parameters under fairseq's keys, experts apart and numbered through, in float16."""
    tensors = {}
    for name, value in module.state_dict().items():
        for key, tensor in _apart(name, value.half()):
            for pattern, replacement in RENAMED.items():
                key = re.sub(pattern, replacement, key)
            tensors[key] = tensor.clone()
    return tensors


def _apart(name: str, value: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A fused parameter's experts, each projection by itself; other parameters as they are."""
    match = re.fullmatch(r"(.*\.experts)\.(gate_up|up|down)_proj(_bias)?", name)
    if match is None:
        return [(name, value)]
    prefix, projection, bias = match.groups()
    kind = "bias" if bias else "weight"
    parts = ("gate", "up") if projection == "gate_up" else (projection,)
    return [
        (f"{prefix}.{expert}.{part}_proj.{kind}", matrix)
        for expert, fused in enumerate(value)
        for part, matrix in zip(parts, fused.chunk(len(parts)), strict=True)
    ]


def write_release(module: MhMoeForCausalLM, folder: str | Path, ranks: int = 2) -> None:
    """`checkpoint_last-shared.pt` and `checkpoint_last-rank-N.pt` in `folder`; each rank numbers its experts from 0.

    Args:
        module: any dtype; written as float16, as with fairseq's `--memory-efficient-fp16`.
        folder: made if need be.
        ranks: expert-parallel processes; must divide the number of experts.

    Raises:
        ValueError: it does not.
    """
    local, rest = divmod(module.config.num_experts, ranks)
    if rest:
        raise ValueError(f"{ranks} ranks do not divide {module.config.num_experts} experts")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, torch.Tensor]] = {"shared": {}} | {f"rank-{rank}": {} for rank in range(ranks)}
    for key, tensor in state(module).items():
        number = re.search(r"(?<=\.experts\.)\d+", key)
        if number is None:
            files["shared"][key] = tensor
        else:
            rank, expert = divmod(int(number[0]), local)
            files[f"rank-{rank}"][f"{key[: number.start()]}{expert}{key[number.end() :]}"] = tensor
    for suffix, tensors in files.items():
        value = {"args": None, "cfg": {"model": options(module.config)}, "model": tensors, "extra_state": {}}
        torch.save(value, folder / f"checkpoint_last-{suffix}.pt")
