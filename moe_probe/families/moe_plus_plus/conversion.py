"""Conversion from the published keys of MoE++ to the parameters of the module, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter, WeightRenaming

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import WrongShape
from moe_probe.families.modules import make_config


class StackConstants(MergeModulelist):
    """Stacks the constant experts, which are numbered after the FFN experts."""

    @property
    def reverse_op(self) -> ConversionOps:
        return UnstackConstants()


class UnstackConstants(ConversionOps):
    """Gives each constant expert its published key, with its number in router order."""

    @torch.no_grad
    def convert(  # pyright: ignore[reportIncompatibleMethodOverride] - transformers passes these by name
        self,
        input_dict: dict[str, list[torch.Tensor]],
        full_layer_name: str,
        config: PreTrainedConfig,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        (stacked,) = next(iter(input_dict.values()))
        numbered = enumerate(stacked.unbind(), start=config.num_ffn_experts)
        return {full_layer_name.replace("*", str(expert)): row for expert, row in numbered}

    @property
    def reverse_op(self) -> ConversionOps:
        return StackConstants()


_PUBLISHED = ".mlp.moe.experts.experts.*"

CONVERSION = [
    WeightRenaming(".mlp.moe.gate.", ".mlp.gate."),
    WeightConverter(f"{_PUBLISHED}.up_proj.weight", ".mlp.experts.gate_up_proj", [MergeModulelist()]),
    WeightConverter(f"{_PUBLISHED}.down_proj.weight", ".mlp.experts.down_proj", [MergeModulelist()]),
    WeightConverter(f"{_PUBLISHED}.constant", ".mlp.experts.constants", [StackConstants()]),
    WeightConverter(f"{_PUBLISHED}.wg.weight", ".mlp.experts.constants_wg", [StackConstants()]),
]

_PARTS = {"ffn": ("up_proj", "down_proj"), "constant": ("constant", "wg")}


def published(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], Mapping[str, LazyTensor]]:
    """Returns configuration and tensors as they are in the files, if each expert's number fits its kind.

    Only the order of numbers decides how experts are stacked, so other numbers would assign tensors to wrong experts.

    Raises:
        WrongShape: an expert of that number does not have such a tensor; the message names the first one.
    """
    kinds = make_config(checkpoint.config).expert_kinds
    for key in checkpoint:
        match = re.search(r"\.mlp\.moe\.experts\.experts\.(\d+)\.(\w+)", key)
        if match is None:
            continue
        expert, part = int(match[1]), match[2]
        kind = kinds[expert] if expert < len(kinds) else "missing"
        if part not in _PARTS.get(kind, ()):
            raise WrongShape(
                f"The checkpoint has a tensor {key!r}, but expert {expert} is {kind} in its configuration, which has "
                f"{kinds.count('ffn')} ffn, {kinds.count('constant')} constant, one copy and one zero; it is that of "
                "another model."
            )
    return checkpoint.config, checkpoint
