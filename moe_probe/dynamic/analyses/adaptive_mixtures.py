"""Losses of the first mixtures of experts on the outputs of trained experts (Jacobs, Jordan, Nowlan, Hinton 1991)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Total

UNITS = "residual stream squared"


@dataclass
class AdaptiveMixtures(Analysis):
    """Cooperative and competitive losses, and responsibilities (Adaptive Mixtures of Local Experts, eq. 1.1, 1.2).

    o_e is the output of expert e, and p_e its score divided by the sum of scores over all experts. A trained model has
    no target, so d is the block's own routed output. The result has means over tokens (or sub-tokens), float64:

    - `cooperative` (layer), |d - sum_e p_e o_e|^2, in the residual stream's units squared;
    - `competitive` (layer), sum_e p_e |d - o_e|^2 (1.1), in the same units;
    - `likelihood` (layer), -log sum_e p_e exp(-|d - o_e|^2 / 2) (1.2), a negative log likelihood in nats;
    - `responsibility` (layer, expert), r_e = p_e exp(-|d - o_e|^2 / 2) / sum_j p_j exp(-|d - o_j|^2 / 2), the
      posterior probability of the expert;
    - `prior` (layer, expert), p_e;
    - `responsibility_entropy` and `prior_entropy` (layer), divided by ln E: 0 if one expert has all of the weight.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.adaptive_mixtures("ckpt/tiny-mixtral", ["A short text."]).responsibility.dims
        ('layer', 'expert')
    """

    name = "adaptive_mixtures"
    title = "Losses of adaptive mixtures"
    needs = frozenset({Need.OUTPUTS, Need.SCORES, Need.ROUTED})
    legend = {
        "cooperative": ("cooperative loss", UNITS),
        "competitive": ("competitive loss", UNITS),
        "likelihood": ("negative log likelihood of the mixture", "nats"),
    }

    cooperative, competitive, likelihood = Total(), Total(), Total()
    responsibility, prior = Total("expert"), Total("expert")
    responsibility_entropy, prior_entropy = Total(), Total()
    rows = Total()

    def update(self, batch: LayerBatch) -> None:
        terms = losses(batch)
        for name, value in terms.items():
            self.state_of(name).add(batch, value.sum(0))
        for name in ("responsibility", "prior"):
            entropy = torch.special.entr(terms[name]).sum() / np.log(max(batch.layer.num_experts, 2))
            self.state_of(f"{name}_entropy").add(batch, entropy)
        self.rows.add(batch, len(batch.scores))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        summed = [name for name in self.declared() if name not in ("rows", "score_kinds")]
        return {name: self.state_of(name).array / self.rows.array for name in summed}


def losses(batch: LayerBatch) -> dict[str, torch.Tensor]:
    """The losses of each row, (n,), and `responsibility` and `prior`, (n, E), float64."""
    scores = batch.scores.double()
    prior = scores / scores.sum(1, keepdim=True)
    target = batch.routed_output.double()
    distance = torch.empty_like(prior)
    mixture = torch.zeros_like(target)
    for expert, output in enumerate(batch.outputs):
        said = output.double()
        distance[:, expert] = (target - said).square().sum(1)
        mixture += prior[:, expert, None] * said
    joint = prior.log() - distance / 2
    return {
        "cooperative": (target - mixture).square().sum(1),
        "competitive": (prior * distance).sum(1),
        "likelihood": -joint.logsumexp(1),
        "responsibility": joint.softmax(1),
        "prior": prior,
    }
