"""MLX's keys (mlx-lm `models/*.py`, `sanitize`): experts stacked below `switch_mlp`, latent attention in two parts.

For some model types MLX also changes weights (norms plus 1, convolutions transposed); those raise an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import Concatenated, Stacked
from moe_probe.errors import UnknownModel
from moe_probe.families.releases import Spelled

STACK = re.compile(r"(.+)\.(switch_mlp|experts)\.(gate_proj|up_proj|down_proj)\.(weight|bias)")
W = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
# model types whose weights MLX stores unchanged, except for stacking
AS_THEY_ARE = {
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
    "glm4_moe",
    "dots1",
    "phimoe",
    "granitemoe",
    "gpt_oss",
    "minimax_m2",
    "bailing_moe",
    "bailing_moe_v2",
    "hunyuan",
    "hunyuan_v1_moe",
    "ernie4_5_moe",
    "mistral",
    "llama",
}


@dataclass(frozen=True)
class Mlx:
    """The release of folders that MLX converted."""

    preference: int = 60
    title: str = "MLX of " + ", ".join(sorted(AS_THEY_ARE))

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the keys are MLX's."""
        return any(".switch_mlp." in key or key.endswith(".embed_q.weight") for key in checkpoint) or (
            Quantization.of(checkpoint.config).method == "mlx"
            and any(".mlp.experts.gate_proj.weight" in key for key in checkpoint)
        )

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors with the published keys.

        Raises:
            UnknownModel: MLX may change the weights of this model type.
        """
        kind = checkpoint.config.get("model_type")
        if kind not in AS_THEY_ARE:
            raise UnknownModel(
                f"MLX changes weights of {kind!r} models when it converts them, and how is not known; use the release "
                "in safetensors that was converted."
            )
        return checkpoint.config, dict(_published(str(kind), checkpoint))


RELEASE = Mlx()


def _published(kind: str, tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    for key, tensor in tensors.items():
        match = STACK.fullmatch(key)
        if match is not None and tensor.ndim == (3 if match[4] == "weight" else 2):
            yield from _experts(kind, match, tensors)
        elif key.endswith(".embed_q.weight"):
            values = tensors[key.replace("embed_q", "unembed_out")]
            rows = Concatenated([tensor.transpose(1, 2), values], 1)
            yield key.replace("embed_q", "kv_b_proj"), rows.reshape(-1, rows.shape[-1])
        elif not key.endswith(".unembed_out.weight"):
            yield key, tensor


def _experts(kind: str, match: re.Match, tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Yields a stack of experts with the publisher's keys and layout."""
    block, _, name, role = match.groups()
    stack = tensors[match[0]]
    if kind == "gpt_oss":
        yield from _alternating(block, name, role, stack, tensors, match)
    elif kind == "granitemoe":
        if name == "down_proj":
            yield f"{block}.output_linear.{role}", stack
        elif name == "gate_proj":
            up = tensors[match[0].replace(".gate_proj.", ".up_proj.")]
            yield f"{block}.input_linear.{role}", Concatenated([stack, up], 1)
    else:
        published = W[name] if block.endswith("block_sparse_moe") else name
        for expert in range(stack.shape[0]):
            yield f"{block}.experts.{expert}.{published}.{role}", stack[expert]


def _alternating(
    block: str, name: str, role: str, stack: LazyTensor, tensors: Mapping[str, LazyTensor], match: re.Match
) -> Iterator[tuple[str, LazyTensor]]:
    """gpt-oss: yields gate and up with alternating rows, and down; weights are stored as (E, in, out)."""
    ending = "" if role == "weight" else "_bias"
    if name == "down_proj":
        yield f"{block}.experts.down_proj{ending}", stack.transpose(1, 2) if role == "weight" else stack
    elif name == "gate_proj":
        up = tensors[match[0].replace(".gate_proj.", ".up_proj.")]
        gate_up = Stacked([stack, up], 2)
        rows = gate_up.reshape(gate_up.shape[0], 2 * gate_up.shape[1], *gate_up.shape[3:])
        yield f"{block}.experts.gate_up_proj{ending}", rows.transpose(1, 2) if role == "weight" else rows
