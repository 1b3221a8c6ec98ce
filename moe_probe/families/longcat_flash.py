"""LongCat-Flash as released: its files hold no rows for the experts that return their input.

transformers' module has unused rows for these experts in `gate_up_proj`. The module here lacks them, so that it fits
the released files and has no unused parameters. Files that transformers wrote have these rows; they are omitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.families.registered import Published, Registered

FUSED = ".experts.gate_up_proj"
EXPERT = re.compile(r"\.experts\.(\d+)\.")


class ReleasedLongcatFlashForCausalLM(LongcatFlashForCausalLM):
    """transformers' model, with rows of `gate_up_proj` only for the experts that have weights."""

    config_class = LongcatFlashConfig

    def __init__(self, config: LongcatFlashConfig):
        super().__init__(config)
        for layer in self.model.layers:
            experts: Any = layer.get_submodule("mlp.experts")
            rows = experts.gate_up_proj
            if rows is not None and len(rows) > experts.num_routed_experts:
                routed_rows = torch.empty(
                    experts.num_routed_experts, *rows.shape[1:], device=rows.device, dtype=rows.dtype
                )
                experts.gate_up_proj = nn.Parameter(routed_rows)


def published(checkpoint: Checkpoint) -> Published:
    """Returns configuration and tensors, without rows for experts that have no weights, and without `architectures`.

    `head_dim`, which the release omits, is `qk_rope_head_dim`.
    """
    fields = {name: value for name, value in checkpoint.config.items() if name != "architectures"}
    if "qk_rope_head_dim" in fields:
        fields.setdefault("head_dim", fields["qk_rope_head_dim"])
    return fields, dict(_with_weights(checkpoint))


def _with_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, LazyTensor]]:
    experts = checkpoint.config.get("n_routed_experts")
    for key, tensor in checkpoint.items():
        of_expert = EXPERT.search(key)
        if isinstance(experts, int) and of_expert is not None and int(of_expert[1]) >= experts:
            continue
        too_many = key.endswith(FUSED) and isinstance(experts, int) and tensor.shape[0] > experts
        yield key, tensor[:experts] if too_many else tensor


FAMILY = Registered(
    name="longcat_flash",
    model_class=ReleasedLongcatFlashForCausalLM,
    conversion=get_checkpoint_conversion_mapping("longcat_flash") or [],
    published=published,
)
