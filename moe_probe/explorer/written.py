"""Tokens that experts promote: their mean output, passed through the model's own last norm and head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
import xarray as xr
from torch import nn

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting
from moe_probe.forward.execution import Runner, is_layerwise
from moe_probe.model import MoEModel
from moe_probe.options import Execution
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Total

WORDS = 10  # of each expert


class Words(NamedTuple):
    """The token ids that each expert promotes most, (E, WORDS), and their logits above the vocabulary's mean.

    They are in descending order.

    `ids` is -1 for an expert that no token chose.
    """

    ids: np.ndarray
    logits: np.ndarray


@dataclass
class Written(Analysis):
    """Each expert's sum of weighted outputs, `total` (layer, expert, width), and the choices in it, `choices`."""

    name = "written"
    title = "Written"
    needs = frozenset({Need.SELECTED, Need.WEIGHTS})

    total, choices = Total("expert", "width"), Total("expert")

    def check(self, source: Source) -> None:
        """Raises an error if the outputs of experts are not in the residual stream.

        Raises:
            NotFitting: experts output sub-tokens.
        """
        split = next((layer.index for layer in source.layers.values() if layer.subtokens > 1), None)
        if split is not None:
            raise NotFitting(
                f"Experts of layer {split} of {source.name} output sub-tokens, which the head cannot read; "
                "omit vocabulary=."
            )

    def update(self, batch: LayerBatch) -> None:
        weighted = batch.selected_outputs.float() * batch.top_k_weights[..., None]
        expert, experts = batch.top_k_index.flatten(), batch.layer.num_experts
        total = torch.zeros(experts, weighted.shape[-1], device=weighted.device)
        self.total.add(batch, total.index_add_(0, expert, weighted.flatten(0, 1)))
        self.choices.add(batch, torch.bincount(expert, minlength=experts))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"total": self.total.array, "choices": self.choices.array}

    def words(self, model: MoEModel, execution: Execution) -> dict[int, Words]:
        """Returns the tokens that experts promote most, by layer.

        Raises:
            NotFitting: the model has no last norm or no head.
        """
        runner = Runner(model, is_layerwise(model, execution), head=True)
        norm, head = last_norm(runner), runner.module.get_output_embeddings()
        if head is None:
            raise NotFitting(f"{model.name} has no language model head; omit vocabulary=.")
        return {
            layer: most_written(self.total[layer], self.choices[layer], norm, cast(nn.Module, head))
            for layer in self.total.layers
        }


def last_norm(runner: Runner) -> nn.Module:
    """Returns the norm that a decoder applies after its layers.

    Raises:
        NotFitting: the decoder has none.
    """
    children = [child for child in runner.decoder.children() if child is not runner.layers]
    norms = [child for child in children if "norm" in type(child).__name__.lower()]
    if not norms:
        raise NotFitting("The decoder has no norm before its head; omit vocabulary=.")
    return norms[-1]


@torch.no_grad()
def most_written(total: np.ndarray, choices: np.ndarray, norm: nn.Module, head: nn.Module) -> Words:
    """The words of one layer's experts, from sums of outputs (E, width) and numbers of choices (E,)."""
    weight = cast(torch.Tensor, head.weight)
    mean = torch.from_numpy(total / np.maximum(choices, 1)[:, None]).to(weight)
    logits = head(norm(mean)).float()
    best, ids = (logits - logits.mean(1, keepdim=True)).topk(min(WORDS, logits.shape[1]), dim=1)
    unused = torch.from_numpy(choices == 0)[:, None]
    return Words(ids.cpu().masked_fill(unused, -1).numpy(), best.cpu().masked_fill(unused, 0).numpy())
