"""GGUF files of models that transformers has: converts metadata to config fields, and llama.cpp's names to its keys.

Other architectures open as `families.gguf`, for static analyses only. Names and keys are those of the `gguf` package
(`constants.py`). This module undoes what llama.cpp does on conversion: permuting rows of q and k for interleaved rotary
positions (llama, granitemoe), separating the rows of gate and up (gpt-oss), splitting `kv_b` in two (newer DeepSeek
files), and including multi-token prediction layers in the number of layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.formats.gguf import NAME as FORMAT
from moe_probe.checkpoint.lazy import Concatenated, Stacked
from moe_probe.errors import DamagedFile
from moe_probe.families.releases import Spelled
from moe_probe.families.releases._rotary import half_by_half

BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
SINGLE = re.compile(r"(ffn_(?:gate|up|down))\.(\d+)")  # files from before April 2024: one tensor per expert
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
DENSE = {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
EXPERTS = {f"ffn_{name}_exps": f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down")}
MIXTRAL = {
    f"ffn_{name}_exps": f"block_sparse_moe.experts.{{}}.{old}"
    for name, old in {"gate": "w1", "up": "w3", "down": "w2"}.items()
}
LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}
# config field to metadata key, without the architecture's name before it
COMMON = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_experts_per_tok": "expert_used_count",
}


def shared(name: str) -> dict[str, str]:
    """Returns the published names of a shared block's matrices, by GGUF name."""
    return {f"ffn_{part}_shexp": f"mlp.{name}.{part}_proj" for part in ("gate", "up", "down")}


class Metadata(dict):
    """The metadata of a file, without the architecture's name before keys; a missing key raises `DamagedFile`."""

    def __init__(self, fields: Mapping[str, Any]):
        self.architecture = str(fields["general.architecture"])
        super().__init__({name.removeprefix(self.architecture + "."): value for name, value in fields.items()})

    def __missing__(self, key: str) -> Any:
        raise DamagedFile(
            f"The metadata of this {self.architecture!r} file lack {self.architecture + '.' + key!r}; convert the "
            "model again, or pass the field: config={...}."
        )


Extra = Callable[[Metadata, Mapping[str, LazyTensor]], dict[str, Any]]
Assemble = Callable[[Metadata, dict[str, LazyTensor]], dict[str, LazyTensor]]


@dataclass(frozen=True)
class Model:
    """The conversion of an architecture of llama.cpp to a model type of transformers.

    Attributes:
        model_type: model type of transformers.
        names: GGUF name in a block to published name in a layer, with `{}` for the number of an expert.
        experts: config field with the number of experts.
        more: returns the config fields besides those in `COMMON`.
        permuted: whether the file has permuted rows of q and k.
        assemble: joins tensors that the file has in parts, after renaming.
        ends: GGUF name to published name of embeddings, last norm and head.
    """

    model_type: str
    names: Mapping[str, str]
    experts: str
    more: Extra = lambda metadata, tensors: {}
    permuted: bool = False
    assemble: Assemble = lambda metadata, tensors: tensors
    ends: Mapping[str, str] = field(default_factory=lambda: ENDS)


def _qwen2(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    wide = tensors.get("blk.0.ffn_up_shexp.weight")
    shared_size = metadata.get("expert_shared_feed_forward_length") or (wide.shape[0] if wide is not None else None)
    return {
        **_separate(metadata, tensors),
        "norm_topk_prob": bool(metadata.get("expert_weights_norm", False)),
        "shared_expert_intermediate_size": shared_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen3(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    return {
        **_separate(metadata, tensors),
        "norm_topk_prob": bool(metadata.get("expert_weights_norm", True)),
        "head_dim": metadata["attention.key_length"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _separate(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    return {"moe_intermediate_size": neurons(metadata, tensors)}


def neurons(metadata: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> int:
    """Returns the number of neurons of an expert: from the metadata, else from the first up projection."""
    stated = metadata.get("expert_feed_forward_length")
    if isinstance(stated, int):
        return stated
    key = next(key for key in tensors if re.search(r"ffn_up(_exps|\.0)\.weight$", key))
    return tensors[key].shape[-2]


def _olmoe(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    norm = bool(metadata.get("expert_weights_norm", False))
    return {
        "norm_topk_prob": norm,
        "intermediate_size": neurons(metadata, tensors),
        "clip_qkv": metadata.get("attention.clamp_kqv"),
    }


def _granite(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    names = {
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
        "attention_multiplier": "attention.scale",
    }
    shared_size = metadata.get("expert_shared_feed_forward_length")
    wide = {"shared_intermediate_size": shared_size} if shared_size else {}
    return {
        **{name: metadata[key] for name, key in names.items()},
        **wide,
        "model_type": "granitemoeshared" if shared_size else "granitemoe",
        "intermediate_size": neurons(metadata, tensors),
    }


def _glm(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    predicting = metadata.get("nextn_predict_layers", 0)
    head = metadata["attention.key_length"]
    rotary = metadata.get("rope.dimension_count", head // 2)
    return {
        **_sigmoid(metadata, tensors),
        "num_hidden_layers": metadata["block_count"] - predicting,
        "head_dim": head,
        "partial_rotary_factor": rotary / head,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    }


def _sigmoid(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns the config fields of routers like DeepSeek's."""
    return {
        "moe_intermediate_size": neurons(metadata, tensors),
        "n_shared_experts": metadata.get("expert_shared_count", 0),
        "first_k_dense_replace": metadata.get("leading_dense_block_count", 0),
        "norm_topk_prob": bool(metadata.get("expert_weights_norm", False)),
        "routed_scaling_factor": float(metadata.get("expert_weights_scale", 1.0) or 1.0),
        "n_group": metadata.get("expert_group_count", 1) or 1,
        "topk_group": metadata.get("expert_group_used_count", 1) or 1,
    }


SIGMOID = 2  # value of `expert_gating_func`


def _deepseek(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    rope = metadata["rope.dimension_count"]
    key = metadata.get("attention.key_length_mla", metadata.get("attention.key_length"))
    value = metadata.get("attention.value_length_mla", metadata.get("attention.value_length"))
    sigmoid = metadata.get("expert_gating_func", 1) == SIGMOID
    fields = _sigmoid(metadata, tensors)
    layers = metadata["block_count"] - metadata.get("nextn_predict_layers", 0)
    return {
        **fields,
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "num_hidden_layers": layers,
        "q_lora_rank": metadata.get("attention.q_lora_rank"),
        "kv_lora_rank": metadata["attention.kv_lora_rank"],
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "head_dim": rope,
        "num_key_value_heads": metadata["attention.head_count"],
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "topk_method": "noaux_tc" if sigmoid else "greedy" if fields["n_group"] == 1 else "group_limited_greedy",
        **_yarn(metadata, metadata.get("rope.scaling.yarn_log_multiplier", 0.0) * 10),
    }


def _yarn(metadata: Metadata, mscale: float | None) -> dict[str, Any]:
    """Returns the YaRN fields, if any; llama.cpp stores a tenth of DeepSeek's `mscale_all_dim` (= `mscale`)."""
    if metadata.get("rope.scaling.type") != "yarn":
        return {}
    scaling = {
        "rope_type": "yarn",
        "factor": metadata["rope.scaling.factor"],
        "original_max_position_embeddings": metadata["rope.scaling.original_context_length"],
    }
    scales = {} if mscale is None else {"mscale": mscale, "mscale_all_dim": mscale}
    return {
        "rope_scaling": {
            **scaling,
            "beta_fast": metadata.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": metadata.get("rope.scaling.yarn_beta_slow", 1.0),
            **scales,
        }
    }


def _gpt_oss(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    scaling = _yarn(metadata, None)
    for fields in scaling.values():
        fields["truncate"] = False
    kinds = [("sliding_attention", "full_attention")[layer % 2] for layer in range(metadata["block_count"])]
    return {
        "head_dim": metadata["attention.key_length"],
        "sliding_window": metadata["attention.sliding_window"],
        "layer_types": kinds,
        "intermediate_size": neurons(metadata, tensors),
        "attention_bias": True,
        "swiglu_limit": 7.0,
        **scaling,
    }


def _phi(metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    fields = {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "lm_head_bias": "output.bias" in tensors,
        "intermediate_size": neurons(metadata, tensors),
        "rms_norm_eps": _epsilon(metadata),
        "sliding_window": metadata.get("attention.sliding_window"),
    }
    if "rope_factors_long.weight" not in tensors:
        return fields
    long, short = (tensors[f"rope_factors_{name}.weight"].read().tolist() for name in ("long", "short"))
    original = metadata.get("rope.scaling.original_context_length", 4096)
    scale = metadata.get("rope.scaling.attn_factor", 1.0)
    return {
        **fields,
        "original_max_position_embeddings": original,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": long,
            "short_factor": short,
            "long_mscale": scale,
            "short_mscale": scale,
            "original_max_position_embeddings": original,
        },
    }


def _epsilon(metadata: Metadata) -> float:
    return metadata.get("attention.layer_norm_rms_epsilon") or metadata["attention.layer_norm_epsilon"]


def _parts_of_kv(metadata: Metadata, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Joins `kv_b_proj` from its parts for keys (heads, rank, nope) and values (heads, v, rank)."""
    for key in [key for key in tensors if key.endswith(".attn_k_b.weight")]:
        layer = key.removesuffix("attn_k_b.weight")
        keys, values = tensors.pop(key), tensors.pop(layer + "attn_v_b.weight")
        rows = Concatenated([keys.transpose(1, 2), values], 1)
        tensors[layer + "self_attn.kv_b_proj.weight"] = rows.reshape(-1, rows.shape[-1])
    return tensors


def _together(metadata: Metadata, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """granitemoe: joins gate and up into one stack, with all gate rows first."""
    for key in [key for key in tensors if key.endswith(".ffn_gate_exps.weight")]:
        layer = key.removesuffix("ffn_gate_exps.weight")
        gate, up = tensors.pop(key), tensors.pop(layer + "ffn_up_exps.weight")
        tensors[layer + "block_sparse_moe.input_linear.weight"] = Concatenated([gate, up], 1)
        tensors[layer + "block_sparse_moe.output_linear.weight"] = tensors.pop(layer + "ffn_down_exps.weight")
        wide = tensors.pop(layer + "ffn_gate_shexp.weight", None)
        if wide is not None:
            gate_up = Concatenated([wide, tensors.pop(layer + "ffn_up_shexp.weight")], 0)
            tensors[layer + "shared_mlp.input_linear.weight"] = gate_up
    return tensors


def _alternating(metadata: Metadata, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """gpt-oss: joins gate and up into one stack with alternating rows, stored as (E, in, out)."""
    for key in [key for key in tensors if key.endswith(".ffn_gate_exps.weight")]:
        layer = key.removesuffix("ffn_gate_exps.weight")
        experts = layer + "mlp.experts."
        gate, up = tensors.pop(key), tensors.pop(layer + "ffn_up_exps.weight")
        gate_up = Stacked([gate, up], 2)
        number, rows, _, columns = gate_up.shape
        tensors[experts + "gate_up_proj"] = gate_up.reshape(number, 2 * rows, columns).transpose(1, 2)
        biases = [tensors.pop(f"{layer}ffn_{name}_exps.bias") for name in ("gate", "up")]
        flat = Stacked(biases, 2)
        tensors[experts + "gate_up_proj_bias"] = flat.reshape(number, 2 * rows)
        tensors[experts + "down_proj"] = tensors.pop(layer + "ffn_down_exps.weight").transpose(1, 2)
        tensors[experts + "down_proj_bias"] = tensors.pop(layer + "ffn_down_exps.bias")
    return tensors


ROUTER = {"ffn_gate_inp": "mlp.gate"}
BIASED = {**ROUTER, "exp_probs_b": "mlp.gate.e_score_correction_bias"}
MODELS = {
    "llama": Model(
        "mixtral", {**ATTENTION, **MIXTRAL, "ffn_gate_inp": "block_sparse_moe.gate"}, "num_local_experts", permuted=True
    ),
    "qwen2moe": Model(
        "qwen2_moe",
        {**ATTENTION, **EXPERTS, **ROUTER, **shared("shared_expert"), "ffn_gate_inp_shexp": "mlp.shared_expert_gate"},
        "num_experts",
        _qwen2,
    ),
    "qwen3moe": Model("qwen3_moe", {**ATTENTION, **EXPERTS, **ROUTER}, "num_experts", _qwen3),
    "olmoe": Model("olmoe", {**ATTENTION, **EXPERTS, **ROUTER}, "num_experts", _olmoe),
    "deepseek2": Model(
        "deepseek_v3",
        {**ATTENTION, **LATENT, **EXPERTS, **DENSE, **BIASED, **shared("shared_experts")},
        "n_routed_experts",
        _deepseek,
        assemble=_parts_of_kv,
    ),
    "gpt-oss": Model(
        "gpt_oss",
        {
            **ATTENTION,
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
            "attn_sinks": "self_attn.sinks",
        },
        "num_local_experts",
        _gpt_oss,
        assemble=_alternating,
    ),
    "glm4moe": Model(
        "glm4_moe",
        {
            **ATTENTION,
            **EXPERTS,
            **DENSE,
            **BIASED,
            **shared("shared_experts"),
            "post_attention_norm": "post_attention_layernorm",
        },
        "n_routed_experts",
        _glm,
    ),
    "granitemoe": Model(
        "granitemoe",
        {**ATTENTION, "ffn_gate_inp": "block_sparse_moe.router.layer", "ffn_down_shexp": "shared_mlp.output_linear"},
        "num_local_experts",
        _granite,
        permuted=True,
        assemble=_together,
    ),
    "phimoe": Model(
        "phimoe", {**ATTENTION, **MIXTRAL, "ffn_gate_inp": "block_sparse_moe.gate"}, "num_local_experts", _phi
    ),
}
BARE = ("self_attn.sinks", "e_score_correction_bias")  # parameters whose keys do not end in `.weight` or `.bias`


@dataclass(frozen=True)
class Gguf:
    """The release of GGUF files of the architectures in `MODELS`."""

    preference: int = 10
    title: str = "GGUF of " + ", ".join(MODELS)

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is a GGUF file of such an architecture, with experts."""
        fields = checkpoint.config
        architecture = fields.get("general.architecture")
        return (
            fields.get("format") == FORMAT
            and "model_type" not in fields
            and architecture in MODELS
            and bool(fields.get(f"{architecture}.expert_count"))
        )

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors with transformers' fields and published keys.

        Raises:
            DamagedFile: the metadata lack a field.
        """
        metadata = Metadata(checkpoint.config)
        model = MODELS[metadata.architecture]
        config = configuration(model, metadata, checkpoint)
        tensors = {_renamed(key, model): tensor for key, tensor in checkpoint.items()}
        tensors = model.assemble(metadata, tensors)
        return config, _published(tensors, model, metadata)


RELEASE = Gguf()


def configuration(model: Model, metadata: Metadata, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns the fields of config.json that the metadata imply."""
    common = {name: metadata[key] for name, key in COMMON.items() if key in metadata}
    common["vocab_size"] = tensors["token_embd.weight"].shape[0]
    common["tie_word_embeddings"] = "output.weight" not in tensors
    if "rope.freq_base" in metadata:
        common["rope_theta"] = float(metadata["rope.freq_base"])
    tokens = {f"{name}_token_id": metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    counted = {model.experts: metadata["expert_count"]}
    return {"model_type": model.model_type, **common, **tokens, **counted, **model.more(metadata, tensors)}


def _renamed(key: str, model: Model) -> str:
    """Returns the published key of a tensor; for stacks and unknown names, `model.layers.N.` and the GGUF name."""
    match = BLOCK.fullmatch(key)
    if match is None:
        stem, _, kind = key.rpartition(".")
        return f"{model.ends[stem]}.{kind}" if stem in model.ends else key
    layer, name, kind = match.groups()
    single = SINGLE.fullmatch(name)
    if single is not None:
        return f"model.layers.{layer}.{model.names[single[1] + '_exps'].format(single[2])}.{kind}"
    target = model.names.get(name)
    if target is None or "{}" in target:
        return f"model.layers.{layer}.{name}.{kind}"
    return f"model.layers.{layer}.{target}" + ("" if target.endswith(BARE) else f".{kind}")


def _published(tensors: dict[str, LazyTensor], model: Model, metadata: Metadata) -> dict[str, LazyTensor]:
    """Splits stacks into experts, restores the rows of q and k, and makes shared experts' gates matrices."""
    published: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        before, _, name = key.rpartition(".ffn_")
        target = model.names.get("ffn_" + name.rpartition(".")[0], "") if before else ""
        if "{}" in target:
            for expert in range(tensor.shape[0]):
                published[f"{before}.{target.format(expert)}.{name.rpartition('.')[2]}"] = tensor[expert]
        elif model.permuted and ".self_attn.q_proj." in key:
            published[key] = half_by_half(tensor, metadata["attention.head_count"])
        elif model.permuted and ".self_attn.k_proj." in key:
            heads = metadata.get("attention.head_count_kv") or metadata["attention.head_count"]
            published[key] = half_by_half(tensor, heads)
        else:
            published[key] = tensor.reshape(1, -1) if "shared_expert_gate" in key and tensor.ndim == 1 else tensor
    return published
