"""Mistral's own format, `params.json`: converts it to transformers' Mixtral or Mistral; Large 3 keeps its keys.

The files store adjacent rotary pairs of rows in wq and wk; transformers pairs rows half a head apart. The `.pt` files
of Mixtral-8x7B-v0.1 concatenate all experts of a layer along rows, with `w2` transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.formats.consolidated import NAME as FORMAT
from moe_probe.errors import DamagedFile
from moe_probe.families.releases import Spelled
from moe_probe.families.releases._rotary import half_by_half

LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
FLAT = re.compile(r"layers\.(\d+)\.block_sparse_moe\.(w[123])")
EXPERT = re.compile(r"(?:feed_forward|block_sparse_moe)\.experts\.(\d+)\.(w[123])")
ENDS = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
    "block_sparse_moe.gate": "block_sparse_moe.gate",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "rms_norm_eps": "norm_eps",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True)
class Mistral:
    """The release of checkpoints with a `params.json`."""

    preference: int = 20
    title: str = "Mistral's params.json (Mixtral, Mistral; Mistral Large 3 for static analyses)"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the files are in Mistral's own format."""
        return checkpoint.config.get("format") == FORMAT and "model_type" not in checkpoint.config

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors with transformers' fields and published keys; Large 3 keeps its keys.

        Raises:
            DamagedFile: params.json lacks a field.
        """
        params = checkpoint.config
        missing = next((name for name in ("dim", "n_layers", "n_heads") if not isinstance(params.get(name), int)), None)
        if missing is not None:
            raise DamagedFile(f"params.json has {missing}={params.get(missing)!r}, expected a whole number.")
        moe = params.get("moe") if isinstance(params.get("moe"), dict) else None
        if params.get("q_lora_rank") or params.get("kv_lora_rank"):
            return {**params, **(moe or {}), "model_type": "mistral_large_3"}, checkpoint
        config = {name: params[key] for name, key in FIELDS.items() if key in params}
        config |= {
            "rope_theta": params.get("rope_theta", 1e6 if moe else 1e4),
            "tie_word_embeddings": False,
            "sliding_window": params.get("sliding_window"),
            "num_key_value_heads": _kv_heads(params),
        }
        config.setdefault("vocab_size", checkpoint["tok_embeddings.weight"].shape[0])
        if moe is None:
            return {**config, "model_type": "mistral"}, dict(_published(checkpoint, params, 0))
        counts = {"num_local_experts": moe.get("num_experts"), "num_experts_per_tok": moe.get("num_experts_per_tok")}
        tensors = dict(_published(checkpoint, params, int(moe.get("num_experts") or 0)))
        return {**config, **counts, "model_type": "mixtral"}, tensors


RELEASE = Mistral()


def _kv_heads(params: Mapping[str, Any]) -> int:
    return params.get("n_kv_heads") or params["n_heads"]


def _published(
    tensors: Mapping[str, LazyTensor], params: Mapping[str, Any], experts: int
) -> Iterator[tuple[str, LazyTensor]]:
    for key, tensor in tensors.items():
        flat, match = FLAT.fullmatch(key), LAYER.fullmatch(key)
        if flat is not None:
            yield from _below_each_other(flat[1], flat[2], tensor, experts)
        elif match is None:
            yield ENDS.get(key, key), tensor
        else:
            yield _renamed(match[1], match[2]), _paired(match[2], tensor, params)


def _paired(name: str, tensor: LazyTensor, params: Mapping[str, Any]) -> LazyTensor:
    heads = {"attention.wq": params["n_heads"], "attention.wk": _kv_heads(params)}.get(name)
    return tensor if heads is None else half_by_half(tensor, heads)


def _renamed(layer: str, name: str) -> str:
    expert = EXPERT.fullmatch(name)
    if expert is not None:
        return f"model.layers.{layer}.block_sparse_moe.experts.{expert[1]}.{expert[2]}.weight"
    return f"model.layers.{layer}.{NAMES.get(name, name)}.weight"


def _below_each_other(layer: str, name: str, rows: LazyTensor, experts: int) -> Iterator[tuple[str, LazyTensor]]:
    neurons = rows.shape[0] // experts if experts else 0
    if not neurons or neurons * experts != rows.shape[0]:
        raise DamagedFile(
            f"layers.{layer}.block_sparse_moe.{name} has {rows.shape[0]} rows, which {experts} experts do not share; "
            "use the params.json that was published with the files."
        )
    for expert in range(experts):
        matrix = rows[expert * neurons : (expert + 1) * neurons]
        target = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
        yield target, matrix.T if name == "w2" else matrix
