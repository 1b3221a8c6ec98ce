"""Numbers of parameters of a module, separately for its language model and its towers; buffers do not count."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters; a parameter that two modules share counts once.

    Attributes:
        language: number in the language model: decoder, embeddings and head.
        apart: number in every other part of the module, by its name.
    """

    language: int
    apart: dict[str, int]


def count_parameters(module: PreTrainedModel) -> Counts:
    """Counts the parameters of a module on any device, including meta."""
    from moe_probe.families.decoder import decoder_path, text_config

    root = decoder_path(module) + "."
    multimodal = text_config(module) is not module.config
    head = module.get_output_embeddings()
    of_head = set() if head is None else {id(value) for value in head.parameters()}
    language, apart = 0, Counter[str]()
    for name, value in module.named_parameters():  # each parameter once
        if not multimodal or root == "." or name.startswith(root) or id(value) in of_head:
            language += size_of(value)
        else:
            apart[name.removeprefix("model.").split(".")[0]] += size_of(value)
    return Counts(language, dict(apart))


def size_of(value: torch.Tensor) -> int:
    """Returns the number of values in a parameter; for a packed one, after unpacking."""
    state = getattr(value, "quant_state", None)
    return value.numel() if state is None else math.prod(state.shape)
