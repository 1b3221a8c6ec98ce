"""Converts the published layouts of Grok-1 to one, with the keys of hpcai-tech/grok-1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.formats.grok import NAME as FORMAT
from moe_probe.families.grok1.release import PARTS, from_release

KEYFAN_EMBEDDING = "transformer.in_out_embed.weight"
KEYFAN_KEYS = {KEYFAN_EMBEDDING: "model.embed_tokens.weight", "transformer.rms_norm.weight": "model.norm.scale"}
KEYFAN_LAYER = re.compile(r"transformer\.decoder_layer\.(\d+)\.(.+)\.weight")
KEYFAN_EXPERT = re.compile(r"moe\.(\d+)\.(.+)")
ARCHITECTURES = {"Grok1ModelForCausalLM"}  # config.json of hpcai-tech/grok-1 has no model_type


def recognised(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint without the model type `grok-1` is a Grok-1 by class name, format or keys."""
    named = ARCHITECTURES.intersection(checkpoint.config.get("architectures") or ())
    return bool(named) or checkpoint.config.get("format") == FORMAT or KEYFAN_EMBEDDING in checkpoint


def published(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor]]:
    """Returns configuration and tensors with the keys of hpcai-tech/grok-1, from any of the published layouts."""
    if checkpoint.config.get("format") == FORMAT:
        return from_release(checkpoint)
    if KEYFAN_EMBEDDING in checkpoint:
        return checkpoint.config, {_from_keyfan(key): tensor for key, tensor in checkpoint.items()}
    return checkpoint.config, checkpoint


def _from_keyfan(key: str) -> str:
    """Returns hpcai's key for a key of keyfan, which has the release's names and one tensor per expert."""
    match = KEYFAN_LAYER.fullmatch(key)
    if match is None:
        return KEYFAN_KEYS.get(key, key)
    layer, part = match.groups()
    expert = KEYFAN_EXPERT.fullmatch(part)
    name = f"moe/{expert[2]}" if expert else part.replace(".", "/")
    target = PARTS.get(name)
    return key if target is None else f"model.layers.{layer}." + target.format(expert=expert and expert[1])
