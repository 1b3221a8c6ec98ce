"""gpt-oss in OpenAI's own format (`original/`): keys like `block.N.mlp.mlp1_weight`, and q, k and v in one matrix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import DamagedFile
from moe_probe.families.releases import Spelled

BLOCK = re.compile(r"block\.(\d+)\.(.+)")
ENDS = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
NAMES = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight": "mlp.experts.gate_up_proj",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight": "mlp.experts.down_proj",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
SIZES = (
    "num_hidden_layers",
    "num_experts",
    "experts_per_token",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "sliding_window",
    "initial_context_length",
)


@dataclass(frozen=True)
class Original:
    """The release of OpenAI's own files."""

    preference: int = 30
    title: str = "gpt-oss original/"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the keys are those of OpenAI's own format."""
        return "model_type" not in checkpoint.config and "block.0.mlp.mlp1_weight" in checkpoint

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors with transformers' fields and published keys.

        Raises:
            DamagedFile: config.json lacks a size.
        """
        fields = checkpoint.config
        missing = next((name for name in SIZES if not isinstance(fields.get(name), int)), None)
        if missing is not None:
            raise DamagedFile(f"config.json has {missing}={fields.get(missing)!r}, expected a whole number.")
        return _config(fields), dict(_published(checkpoint, fields))


RELEASE = Original()


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    same = (
        "num_hidden_layers",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "vocab_size",
        "intermediate_size",
        "sliding_window",
        "rope_theta",
        "swiglu_limit",
        "initial_context_length",
    )
    factor, length = fields.get("rope_scaling_factor", 32.0), fields["initial_context_length"]
    kinds = [("sliding_attention", "full_attention")[layer % 2] for layer in range(fields["num_hidden_layers"])]
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "beta_fast": float(fields.get("rope_ntk_beta", 32)),
        "beta_slow": float(fields.get("rope_ntk_alpha", 1)),
        "original_max_position_embeddings": length,
        "truncate": False,
    }
    return {
        "model_type": "gpt_oss",
        **{name: fields[name] for name in same if name in fields},
        "num_local_experts": fields["num_experts"],
        "num_experts_per_tok": fields["experts_per_token"],
        "layer_types": kinds,
        "rope_scaling": scaling,
        "max_position_embeddings": int(length * factor),
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }


def _published(tensors: Mapping[str, LazyTensor], fields: Mapping[str, Any]) -> Iterator[tuple[str, LazyTensor]]:
    sizes = [fields[f"num_{kind}_heads"] * fields["head_dim"] for kind in ("attention", "key_value", "key_value")]
    for key, tensor in tensors.items():
        match = BLOCK.fullmatch(key)
        if match is None:
            yield ENDS.get(key, key), tensor
            continue
        layer, name = f"model.layers.{match[1]}.", match[2]
        if name.startswith("attn.qkv."):
            if tensor.shape[0] != sum(sizes):
                raise DamagedFile(
                    f"{key!r} has {tensor.shape[0]} rows, expected {sum(sizes)}; use the published config.json."
                )
            for part, rows in zip("qkv", tensor.split(sizes, 0), strict=True):
                yield f"{layer}self_attn.{part}_proj.{name.rpartition('.')[2]}", rows
        else:
            stacked = name in ("mlp.mlp1_weight", "mlp.mlp2_weight")
            yield layer + NAMES.get(name, name), tensor.transpose(1, 2) if stacked else tensor
