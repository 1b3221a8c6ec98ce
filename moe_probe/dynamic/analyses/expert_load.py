"""How evenly the experts are used: load, importance, and the balance losses of the MoE literature."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Sums
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import check_draws
from moe_probe.statistics.by_label import ends, label_sums, resampled, shares, stacked
from moe_probe.texts.corpus import Corpus


class ExpertLoad(Sums):
    """Selections of every expert, and what the literature makes of them.

    With c_e the rows (tokens, or sub-tokens) that select expert e among their k, S rows, N tokens, I_e the sum of
    applied weights and P_e the mean of the router's scores divided by their sum over experts:

    `selections` c_e, int64, and `first_choices`; `share` c_e / (S k); `frequency` c_e / N (MH-MoE, arXiv 2404.15045,
    figure 1); `importance` I_e, and `gate_importance`, the same of weights divided by their sum over the k choices
    (the gates G of Shazeer et al., arXiv 1701.06538, equation 6); `smooth_load` (there equations 8 to 10, for a router
    without a noise network: sigma 1, noisy logits the logits); `cv2_load`, `cv2_importance`, `cv2_gate_importance`,
    `cv2_smooth_load` population variance / mean^2 (there section 4); `entropy` of `share` / ln E; `max_violation`
    max c_e / mean c_e - 1 (MaxVio of arXiv 2408.15664); `activation_ratio` the share of experts with `frequency` above
    `threshold`; `gshard_loss` (1/E) sum f_e P_e with f_e the share of first choices (arXiv 2006.16668, algorithm 1);
    `first_choice_loss` E sum f_e P_e (Switch, arXiv 2101.03961, equation 4; MH-MoE's code for any k); `switch_loss`
    E sum share_e P_e, the same over all k choices, 1 if balanced; `z_loss` the mean of logsumexp(logits)^2 (ST-MoE,
    arXiv 2202.08906, equation 5). Losses are those of the whole corpus as one batch, without their coefficients.

    Where documents have labels: `label_share` (layer, label, expert), the share among the tokens of one label, with a
    95 % bootstrap interval over documents, `label_share_low` and `_high`, and `label_share_chance` (layer, expert), the
    share among all labelled tokens: what it would be if labels did not matter. The coordinate `kind` (expert) holds
    the experts' kinds.

    Args:
        threshold: selections per token above which an expert counts as active.
        bootstrap: draws of the intervals; 0 for none.
        chance: whether to give the chance level.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", ["A short text."])
        >>> bool(abs(ds.share.sum("expert") - 1).max() < 1e-12)
        True
    """

    name = "expert_load"

    def __init__(self, threshold: float = 0.0, bootstrap: int = 200, chance: bool = True):
        super().__init__()
        self.threshold, self.bootstrap, self.chance = threshold, check_draws(bootstrap), chance

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        selected, scores = batch.selected.double(), batch.scores.double()
        first = torch.bincount(batch.first_choice, minlength=batch.layer.num_experts)
        weights = batch.weights.double()
        return {
            "selections": selected.sum(0),
            "first": first,
            "importance": weights.sum(0),
            "gates": (weights / weights.sum(1, keepdim=True)).nan_to_num().sum(0),
            "smooth": _smooth_load(batch).sum(0),
            "scores": (scores / scores.sum(-1, keepdim=True)).sum(0),
            "z": batch.router_logits.double().logsumexp(-1).square().sum(),
            "rows": torch.tensor(len(selected)),
            "tokens": torch.tensor(len(batch.tokens)),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
            **label_sums(batch),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        load, rows, tokens = sums["selections"], sums["rows"][:, None], sums["tokens"][:, None]
        experts = load.shape[1]
        share = load / (rows * sums["least_k"][:, None])
        mean_scores, frequency = sums["scores"] / rows, load / tokens
        terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0)
        per_expert = {
            "selections": load.astype(np.int64),
            "first_choices": sums["first"].astype(np.int64),
            "gate_importance": sums["gates"],
            "smooth_load": sums["smooth"],
            "share": share,
            "frequency": frequency,
            "importance": sums["importance"],
        }
        per_layer = {
            "cv2_load": _cv2(load),
            "cv2_importance": _cv2(sums["importance"]),
            "cv2_gate_importance": _cv2(sums["gates"]),
            "cv2_smooth_load": _cv2(sums["smooth"]),
            "entropy": -terms.sum(1) / np.log(experts) if experts > 1 else np.ones(len(load)),
            "max_violation": load.max(1) / load.mean(1) - 1,
            "activation_ratio": (frequency > self.threshold).mean(1),
            "gshard_loss": (sums["first"] / rows * mean_scores).mean(1),
            "first_choice_loss": experts * (sums["first"] / rows * mean_scores).sum(1),
            "switch_loss": experts * (share * mean_scores).sum(1),
            "z_loss": sums["z"] / sums["rows"],
        }
        variables: dict[str, Any] = {name: (("layer", "expert"), value) for name, value in per_expert.items()}
        variables |= {name: (("layer",), value) for name, value in per_layer.items()}
        coords: dict[str, Any] = {"expert": [str(expert) for expert in range(experts)]}
        labels, counts = stacked(sums)  # (layers, labels, blocks, E)
        if labels:
            coords["label"] = labels
            variables["label_share"] = (("layer", "label", "expert"), shares(counts.sum(2)))
            if self.bootstrap:
                bounds = np.stack([ends(shares(resampled(one, self.bootstrap))) for one in counts], axis=1)
                for end, value in zip(("low", "high"), bounds, strict=True):
                    variables[f"label_share_{end}"] = (("layer", "label", "expert"), value)
            if self.chance:
                variables["label_share_chance"] = (("layer", "expert"), shares(counts.sum((1, 2))))
        return variables, coords

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        found = super().result(model, corpus)
        return found.assign_coords(kind=("expert", list(model.layer(int(found.layer[0])).expert_kinds)))


def _smooth_load(batch: LayerBatch) -> torch.Tensor:
    """P(s, e) = Phi(logit_e - the k-th largest logit of the other experts), (n, E), float64."""
    logits, k = batch.router_logits.double(), batch.top_k_index.shape[1]
    if k >= logits.shape[1]:
        return torch.ones_like(logits)
    top = logits.topk(k + 1, dim=1).values
    among = logits >= top[:, k - 1 : k]
    return torch.special.ndtr(logits - torch.where(among, top[:, k:], top[:, k - 1 : k]))


def _cv2(values: np.ndarray) -> np.ndarray:
    return values.var(1) / (values.mean(1) ** 2 + 1e-10)
