"""Activations of the neurons of all experts: act(gate projection) (arXiv 2406.18219, appendix H)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting
from moe_probe.families import DENSE
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable


@dataclass
class IntermediateStates(Analysis):
    """Activation act(gate projection of x) of every expert with matrices, before the product with the up projection.

    Use this for very short texts, and `ActiveNeurons` for a corpus (arXiv 2406.18219, appendix H).

    Args:
        baseline: add the FFN of the dense model, in its own forward pass over the same token ids, as `"F"`; it must
            have as many neurons as an expert.

    The result has `activation` (layer, token[, subtoken], expert, neuron), float32, and `topk_expert` (layer,
    token[, subtoken], rank), int64, the chosen experts.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.intermediate_states("ckpt/tiny-mixtral", ["Short."], layers=[0]).activation.sizes["neuron"]
        96
    """

    baseline: bool = False

    name = "intermediate_states"
    title = "Intermediate states"
    unasked = False
    needs = frozenset({Need.ACTIVATIONS})

    legend = {"topk_expert": ("chosen expert", "expert index")}

    activation, chosen = TokenTable("expert", "neuron"), TokenTable("rank")

    def needed(self) -> frozenset[Need]:
        return self.needs | ({Need.BASELINE} if self.baseline else set())

    def update(self, batch: LayerBatch) -> None:
        activation = batch.activations.transpose(0, 1)
        if self.baseline:
            if not batch.holds("baseline_activation") or batch.baseline_activation.shape[-1] != activation.shape[-1]:
                raise NotFitting(
                    f"Layer {batch.layer.index}: the baseline's FFN lacks {activation.shape[-1]} neurons and an "
                    "activation module, as the experts do; omit the baseline."
                )
            activation = torch.cat([activation, batch.baseline_activation[:, None]], dim=1)
        self.activation.add(batch, activation)
        self.chosen.add(batch, batch.top_k_index)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        labels = [*source.first_layer.weighted_experts, *([DENSE] if self.baseline else [])]
        return {"activation": self.activation.array.assign_coords(expert=labels), "topk_expert": self.chosen.array}
