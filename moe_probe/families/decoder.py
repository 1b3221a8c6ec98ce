"""Finds the language model inside a module: its decoder and the list of decoder layers.

Every search by layer starts here, so that layers of a vision or audio tower are never mistaken for decoder layers.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from moe_probe.errors import UnknownModel
from moe_probe.families.experts_layout import experts_layout, ffn_layout
from moe_probe.families.live import core, parts

# names of classes that only a mixture of experts has
OF_EXPERTS = re.compile(r"(Experts?|Router|SparseMLP|SparseMoeBlock|MoeBlock|MoEBlock|MoELayer|MoeLayer|MoE)$")


def text_config(module: PreTrainedModel) -> Any:
    """Returns the configuration of the language model."""
    return module.config.get_text_config(decoder=True)


def decoder_path(module: PreTrainedModel) -> str:
    """Returns the path of the decoder, which excludes the head; empty if the module itself is the decoder."""
    decoder = core(module.get_decoder() if hasattr(module, "get_decoder") else module.base_model)
    return next((path for path, child in parts(module) if child is decoder), "")


def layers_path(module: PreTrainedModel) -> str:
    """Returns the path of the list of decoder layers.

    Among the module lists in the decoder, this is the one with the most MoE blocks; in a dense model, the one whose
    length is `num_hidden_layers`.

    Raises:
        UnknownModel: the decoder has no list of modules.
    """
    lists = _lists(module)
    stated = getattr(text_config(module), "num_hidden_layers", None)

    def fitness(entry: tuple[str, nn.ModuleList]) -> tuple[int, bool, int]:
        return sum(map(has_block, entry[1])), len(entry[1]) == stated, sum(map(has_ffn, entry[1]))

    if not lists:
        raise UnknownModel(
            f"{module.config.model_type}: the list of decoder layers was not found in {type(module).__name__}; pass a "
            "model whose decoder has one."
        )
    return max(lists, key=fitness)[0]


def _lists(module: PreTrainedModel) -> list[tuple[str, nn.ModuleList]]:
    """Returns path and module of the outermost module lists in the decoder, without those of towers inside it."""
    root = decoder_path(module)
    lists: list[tuple[str, nn.ModuleList]] = []
    left_out: list[str] = []
    for path, child in parts(module):
        inside = path.startswith(root + ".") if root else bool(path)
        if not inside or any(path.startswith(other + ".") for other in left_out):
            continue
        if isinstance(child, nn.ModuleList):
            lists.append((path, child))
            left_out.append(path)
        elif isinstance(child, PreTrainedModel) and _is_tower(child, module):
            left_out.append(path)
    return lists


def _is_tower(child: PreTrainedModel, module: PreTrainedModel) -> bool:
    return type(child.config) not in (type(module.config), type(text_config(module)))


def has_block(layer: nn.Module) -> bool:
    """Whether a decoder layer contains a MoE block."""
    return any(experts_layout(child) is not None for _, child in parts(layer))


def has_ffn(layer: nn.Module) -> bool:
    """Whether a decoder layer contains a plain FFN."""
    return any(ffn_layout(child) is not None for _, child in parts(layer))


def require_known_blocks(module: PreTrainedModel) -> None:
    """Raises an error if a module in which no MoE block was recognized is a mixture of experts all the same.

    Raises:
        UnknownModel: the module has a class that only a mixture of experts has; the message names the first.
    """
    for path, child in parts(module):
        name = type(child).__name__
        if path and OF_EXPERTS.search(name) and not isinstance(child, PreTrainedModel):
            raise UnknownModel(
                f"{module.config.model_type} is a Mixture-of-Experts model whose blocks are not known: {name} at "
                f"{path!r} is none of the layouts that moe_probe reads; add a family for it, see docs/add_a_family.md."
            )
