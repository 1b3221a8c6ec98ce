"""The original release: the meaning of its numbered tensors, and the hyperparameters that its `run.py` hard-codes.

The tensors are the leaves of a tree of names, sorted as strings (`decoder_layer_10` before `decoder_layer_2`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import DamagedFile, WrongShape
from moe_probe.families.grok1.configuration import Grok1Config

# field of run.py to config field and published value
HYPERPARAMETERS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 131072),
    "pad_token": ("pad_token_id", 0),
    "eos_token": ("eos_token_id", 2),
    "sequence_len": ("max_position_embeddings", 8192),
    "embedding_multiplier_scale": ("embedding_multiplier_scale", 78.38367176906169),
    "output_multiplier_scale": ("output_multiplier_scale", 0.5773502691896257),
    "emb_size": ("hidden_size", 6144),
    "key_size": ("head_dim", 128),
    "num_q_heads": ("num_attention_heads", 48),
    "num_kv_heads": ("num_key_value_heads", 8),
    "attn_output_multiplier": ("attn_output_multiplier", 0.08838834764831845),
    "num_experts": ("num_experts", 8),
    "num_selected_experts": ("num_experts_per_tok", 2),
}
PUBLISHED_LAYERS, PUBLISHED_WIDENING = 64, 8
OPTION_TYPES = {
    option: int if isinstance(number, int) else int | float for option, (_, number) in HYPERPARAMETERS.items()
}
OPTION_TYPES |= {"num_layers": int, "widening_factor": int | float}
# fields of its configuration classes that have no effect on what the model computes
WITHOUT_EFFECT = set(
    "format model model_size embedding_init_scale init_scale init_scale_override name model_type fprop_dtype "
    "capacity_factor shard_activations shard_embeddings data_axis model_axis".split()
)
GROK1_FIELDS = {field.name for field in dataclasses.fields(Grok1Config)}
# fields in which the release differs from its ports
ORIGINAL = {"hidden_act": "gelu_pytorch_tanh", "mask_pad_tokens": True, "float32_router": True}

FIRST_FILES = {"in_out_embed": "model.embed_tokens.weight", "rms_norm": "model.norm.scale"}
# parts of a layer in the order of their files, with their keys in the ports; keys of experts have an {expert}
PARTS = {
    "moe/linear": "moe_block.experts.{expert}.linear.weight",
    "moe/linear_1": "moe_block.experts.{expert}.linear_1.weight",
    "moe/linear_v": "moe_block.experts.{expert}.linear_v.weight",
    "multi_head_attention/key": "attn.k_proj.weight",
    "multi_head_attention/linear": "attn.o_proj.weight",
    "multi_head_attention/query": "attn.q_proj.weight",
    "multi_head_attention/value": "attn.v_proj.weight",
    "rms_norm": "pre_attn_norm.scale",
    "rms_norm_1": "post_attn_norm.scale",
    "rms_norm_2": "pre_moe_norm.scale",
    "rms_norm_3": "post_moe_norm.scale",
    "router": "moe_block.gate.weight",
}


def from_release(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Returns configuration and tensors of a release, with the fields and keys of a port.

    Options may have the names of `run.py` (those of its inner `model` also at the top level) or of `Grok1Config`.

    Raises:
        DamagedFile: the number of files fits no number of layers or not the stated one, or an option is invalid.
        WrongShape: a tensor's shape is not the one that the options call for.
    """
    fields = hyperparameters(checkpoint)
    shapes, files = _shapes(fields), iter(checkpoint.items())

    def take(part: str, place: str = "") -> LazyTensor:
        file, tensor = next(files)
        if tuple(tensor.shape) != shapes[part]:
            raise WrongShape(
                f"{file} of {checkpoint.path} ({place}{part}) has shape {tuple(tensor.shape)}, but the options call "
                f"for {shapes[part]}; give those of the model in model_config.json or as config=."
            )
        return tensor

    tensors = {key: take(part) for part, key in FIRST_FILES.items()}
    for layer in sorted(range(fields["num_hidden_layers"]), key=str):
        for part, key in PARTS.items():
            tensor, target = take(part, f"decoder_layer_{layer}/"), f"model.layers.{layer}.{key}"
            if "{expert}" in target:
                tensors.update((target.format(expert=e), tensor[e].T) for e in range(tensor.shape[0]))
            else:
                tensors[target] = tensor.T if tensor.ndim > 1 else tensor
    return fields, tensors


def hyperparameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the fields of `Grok1Config`: stated or published values, and the number of layers from the files.

    Raises:
        DamagedFile: the number of files fits no number of layers or not the stated one, or an option is invalid.
    """
    stated = _stated(checkpoint)
    fields = ORIGINAL | {name: stated.get(option, number) for option, (name, number) in HYPERPARAMETERS.items()}
    fields["intermediate_size"] = ffn_size(fields["hidden_size"], stated.get("widening_factor", PUBLISHED_WIDENING))
    fields |= {name: value for name, value in stated.items() if name in GROK1_FIELDS}
    published_layers = None if stated else PUBLISHED_LAYERS
    layers = stated.get("num_layers", stated.get("num_hidden_layers", published_layers))
    return fields | {"num_hidden_layers": _count_layers(checkpoint, layers)}


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the options that have an effect, with those of `model` at the top level."""
    inner = checkpoint.config.get("model", {})
    if not isinstance(inner, dict):
        raise DamagedFile(f"The option 'model' for {checkpoint.path} is {inner!r}, expected run.py's inner fields.")
    stated = {key: value for key, value in {**inner, **checkpoint.config}.items() if key not in WITHOUT_EFFECT}
    for option, value in stated.items():
        if option not in GROK1_FIELDS and option not in OPTION_TYPES:
            raise DamagedFile(
                f"The option {option!r} for {checkpoint.path} is unknown; expected the fields of Grok-1's run.py "
                f"({', '.join(OPTION_TYPES)}) or of Grok1Config."
            )
        if option in OPTION_TYPES and not isinstance(value, OPTION_TYPES[option]):
            raise DamagedFile(f"The option {option!r} for {checkpoint.path} is {value!r}, expected a number.")
    return stated


def ffn_size(emb_size: int, widening_factor: float) -> int:
    """Returns the neurons of an expert: two thirds of the widened size, rounded up to a multiple of 8."""
    neurons = int(widening_factor * emb_size) * 2 // 3
    return neurons + -neurons % 8


def _count_layers(checkpoint: Checkpoint, stated: int | None) -> int:
    layers, remainder = divmod(len(checkpoint) - 2, len(PARTS))
    if remainder or layers < 1:
        raise DamagedFile(
            f"{checkpoint.path} has {len(checkpoint)} tensor files, which fits no number of layers: expected 2 and "
            f"{len(PARTS)} per layer; files are missing or belong to another model."
        )
    if stated not in (None, layers):
        raise DamagedFile(
            f"{checkpoint.path} has {len(checkpoint)} tensor files, those of {layers} layers, but the model has "
            f"{stated}; download the missing files, or correct num_layers."
        )
    return layers


def _shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each part in the files, where matrices are (in, out)."""
    width, neurons, experts = fields["hidden_size"], fields["intermediate_size"], fields["num_experts"]
    query, key = (fields[f"num_{heads}_heads"] * fields["head_dim"] for heads in ("attention", "key_value"))
    return {
        "in_out_embed": (fields["vocab_size"], width),
        "moe/linear": (experts, width, neurons),
        "moe/linear_1": (experts, neurons, width),
        "moe/linear_v": (experts, width, neurons),
        "multi_head_attention/key": (width, key),
        "multi_head_attention/linear": (query, width),
        "multi_head_attention/query": (width, query),
        "multi_head_attention/value": (width, key),
        **dict.fromkeys(("rms_norm", "rms_norm_1", "rms_norm_2", "rms_norm_3"), (width,)),
        "router": (width, experts),
    }
