"""The losses of the first mixtures of experts, with what experts say now (Jacobs, Jordan, Nowlan and Hinton 1991)."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.dynamic.analysis import Sums
from moe_probe.routing import OUTPUTS, LayerBatch


class AdaptiveMixtures(Sums):
    """Cooperative and competitive losses, and responsibilities (Adaptive Mixtures of Local Experts, eq. 1.1, 1.2).

    o_e is an expert's output, p_e its score divided by the sum of scores over all experts, and the target d, post hoc,
    the block's own routed output. Means over tokens (or sub-tokens), in the residual stream's units squared:

    `cooperative` |d - sum_e p_e o_e|^2; `competitive` sum_e p_e |d - o_e|^2 (1.1); `likelihood`
    -log sum_e p_e exp(-|d - o_e|^2 / 2) (1.2), all (layer), float64; `responsibility` (layer, expert), the mean of
    r_e = p_e exp(-|d - o_e|^2 / 2) / sum_j p_j exp(-|d - o_j|^2 / 2), the posterior of which expert said it;
    `prior` (layer, expert), the mean of p_e; `responsibility_entropy` and `prior_entropy` (layer), means over tokens
    divided by ln E: 0 where one expert takes all.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.adaptive_mixtures("ckpt/tiny-mixtral", ["A short text."]).responsibility.dims
        ('layer', 'expert')
    """

    name = "adaptive_mixtures"
    needs = frozenset({OUTPUTS})

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        found = losses(batch)
        experts = batch.layer.num_experts
        entropies = {
            f"{name}_entropy": torch.special.entr(found[name]).sum() / np.log(max(experts, 2))
            for name in ("responsibility", "prior")
        }
        return (
            {name: value.sum(0) for name, value in found.items()}
            | entropies
            | {"rows": torch.tensor(len(batch.scores))}
        )

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        rows = sums.pop("rows")
        variables = {
            name: (("layer", "expert")[: value.ndim], value / rows.reshape(-1, *[1] * (value.ndim - 1)))
            for name, value in sums.items()
        }
        return variables, {"expert": [str(expert) for expert in range(sums["prior"].shape[1])]}


def losses(batch: LayerBatch) -> dict[str, torch.Tensor]:
    """The losses of each row, (n,), and `responsibility` and `prior`, (n, E), float64."""
    scores = batch.scores.double()
    prior = scores / scores.sum(1, keepdim=True)
    target = batch.routed_output.double()
    distance = torch.empty_like(prior)
    mixture = torch.zeros_like(target)
    for expert, output in enumerate(batch.outputs):
        own = output.double()
        distance[:, expert] = (target - own).square().sum(1)
        mixture += prior[:, expert, None] * own
    joint = prior.log() - distance / 2
    return {
        "cooperative": (target - mixture).square().sum(1),
        "competitive": (prior * distance).sum(1),
        "likelihood": -joint.logsumexp(1),
        "responsibility": joint.softmax(1),
        "prior": prior,
    }
