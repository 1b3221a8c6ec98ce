"""Converts fairseq's options and keys to those of `MhMoeConfig` and its module."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.formats.fairseq import NAME as FORMAT
from moe_probe.errors import DamagedFile, MissingFiles, MissingWeight, UnknownModel
from moe_probe.families.mh_moe.configuration import MhMoeConfig

# patterns of fairseq's names to the module's names, applied in order
RENAMED = {
    r"^decoder\.embed_tokens\.": "model.embed_tokens.",
    r"^decoder\.output_projection\.": "lm_head.",
    r"^decoder\.layer_norm\.": "model.norm.",
    r"^decoder\.layers\.": "model.layers.",
    r"\.self_attn\.out_proj\.": ".self_attn.o_proj.",
    r"\.self_attn_layer_norm\.": ".input_layernorm.",
    r"\.final_layer_norm\.": ".post_attention_layernorm.",
    r"\.moe_layer\.": ".mlp.",
    r"\.ffn\.": ".mlp.",
}
PROJECTIONS = {".fc1.": ".up_proj.", ".fc2.": ".down_proj.", ".fc3.": ".gate_proj."}
# options that must have one of these values (or be absent): others change what the model computes
EXPECTED: dict[str, tuple[Any, ...]] = {
    "rotary_embed": (True,),
    "decoder_normalize_before": (True,),
    "partial_rotary_factor": (1.0,),
    **dict.fromkeys(("lora_rank", "rel_pos_buckets", "max_rel_pos"), (0,)),
    "moe_lora_rank": (-1, 0),
    "group_norm_size": (1,),
    **dict.fromkeys(("weight_bits", "input_bits", "attn_bits", "query_bits"), (32,)),
    **dict.fromkeys(
        "subln deepnorm layernorm_embedding xpos_rel_pos sope_rel_pos key_norm binary_attn binary_kv binary_query "
        "binary_routing fp8 quip_sharp bmt quant_ffn_only use_quant_for_activation".split(),
        (False,),
    ),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "leaky_relu": "leaky_relu"}


def recognised(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is in fairseq's format, with experts or dense."""
    return checkpoint.config.get("format") == FORMAT


def published(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor]]:
    """Returns configuration and tensors with the module's keys; a checkpoint that has them already stays unchanged.

    Raises:
        DamagedFile: options are missing or invalid.
        MissingFiles: files of experts are missing.
        UnknownModel: an option has a value that moe_probe does not support.
    """
    if not recognised(checkpoint):
        return checkpoint.config, checkpoint
    options = Options(checkpoint)
    fields = options.fields()
    tensors = {rename(key, fields["gated"]): tensor for key, tensor in checkpoint.items()}
    if fields["moe_freq"]:
        _require_all_experts(checkpoint, tensors, fields["num_experts"])
    return fields, tensors


def rename(key: str, gated: bool) -> str:
    """Returns the module's key for a key of fairseq; experts still have one key each."""
    for pattern, name in RENAMED.items():
        key = re.sub(pattern, name, key)
    for name, ours in PROJECTIONS.items():
        key = key.replace(name, ours)
    return key if gated else re.sub(r"(\.experts\.\d+)\.up_proj\.", r"\1.fc1.", key)


def _require_all_experts(checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], experts: int) -> None:
    present = {int(match[1]) for key in tensors if (match := re.search(r"\.experts\.(\d+)\.", key))}
    if present != set(range(experts)):
        raise MissingFiles(
            f"{checkpoint.path} holds {len(present)} of {experts} experts (moe_expert_count); files of other ranks are "
            "missing, or the options belong to another model."
        )


class Options:
    """The fairseq options of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.values = checkpoint, checkpoint.config
        for name, allowed in EXPECTED.items():
            value = self.values.get(name)
            if value is not None and value not in allowed:
                raise UnknownModel(
                    f"The option {name}={value!r} of {checkpoint.path} changes the model in a way that is not known "
                    f"here; expected {allowed[0]!r}."
                )

    def required(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise DamagedFile(
                f"The options of {self.checkpoint.path} lack {name!r}; write those of training to a config.json beside "
                "the files."
            )
        return self.values[name]

    def get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name: str, default: int) -> int:
        """Returns an option that must be a whole number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DamagedFile(
                f"The option {name}={value!r} of {self.checkpoint.path} is not a whole number; correct it."
            )
        return value

    def fields(self) -> dict[str, Any]:
        """Returns the fields of `MhMoeConfig`; those passed under their own names (`load(config=...)`) win."""
        width, neurons = self.required("decoder_embed_dim"), self.required("decoder_ffn_embed_dim")
        heads, subtokens = self.required("decoder_attention_heads"), self.get("mhmoe_heads_number", 1)
        activation, squared = self.get("activation_fn", "gelu"), self.get("relu_squared", False)
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UnknownModel(f"The activation {activation!r} is not known; there are {', '.join(ACTIVATIONS)}.")
        biased = not self.get("no_bias", False)
        expert_neurons = self.get("moe_ffn_dim", -1)
        gated = activation in ("silu", "swish", "leaky_relu") or (activation == "relu" and not squared)
        fields = {
            "vocab_size": self._embedding().shape[0],
            "hidden_size": width,
            "intermediate_size": neurons,
            "moe_intermediate_size": neurons if expert_neurons == -1 else expert_neurons,
            "num_hidden_layers": self.required("decoder_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("n_kv_heads", heads),
            "moe_freq": self.number("moe_freq", 0),
            "num_experts": self.number("moe_expert_count", 1),
            "mhmoe_heads_number": subtokens,
            "gated": bool(self.get("glu", False)) or gated,
            "hidden_act": "relu2" if activation == "relu" and squared else ACTIVATIONS[activation],
            "attention_bias": biased,
            "mlp_bias": biased,
            "rms_norm": self.get("rms_norm", False),
            "scale_embedding": not self.get("no_scale_embedding", False),
            "mask_pad_tokens": not self.get("flash_attention", False),
            "max_position_embeddings": self.get("max_target_positions", self.get("tokens_per_sample", 2048)),
            "tie_word_embeddings": self.get("share_decoder_input_output_embed", False),
            **self._routing(),
        }
        known = {field.name for field in dataclasses.fields(MhMoeConfig)}
        return fields | {name: value for name, value in self.values.items() if name in known}

    def _embedding(self) -> LazyTensor:
        key = "decoder.embed_tokens.weight"
        if key not in self.checkpoint:
            raise MissingWeight(f"{self.checkpoint.path} has no tensor {key!r}; it is not a decoder of fairseq.")
        return self.checkpoint[key]

    def _routing(self) -> dict[str, Any]:
        """Returns the fields of router and top-k.

        Without `moe_top_k` (torchscale's own X-MoE), a token uses one expert, or two with renormalized weights.
        """
        top_k = self.values.get("moe_top_k")
        one = bool(self.get("moe_top1_expert", False))
        routing = {
            "num_experts_per_tok": top_k if top_k is not None else 1 if one else 2,
            "norm_topk_prob": top_k is None and not one,
            "router": "softmax",
        }
        if self.get("use_xmoe", False):
            rank = next((t.shape[0] for k, t in self.checkpoint.items() if k.endswith(".wg_reduction.weight")), 16)
            routing |= {"router": "cosine", "router_rank": rank}
        return routing
