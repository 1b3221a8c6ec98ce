"""How evenly the experts are used: load, importance, and the balance losses of the MoE literature."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moe_probe.dynamic.analysis import LayerBatch, Sums

LABEL = "label:"


class ExpertLoad(Sums):
    """Selections of every expert, and what the literature makes of them.

    With c_e the rows (tokens, or sub-tokens) that select expert e among their k, S rows, N tokens, I_e the sum of
    applied weights and P_e the mean of the router's scores divided by their sum over experts:

    `selections` c_e, int64; `share` c_e / (S k); `frequency` c_e / N (MH-MoE, arXiv 2404.15045, figure 1);
    `label_share` (layer, label, expert), the share among the tokens of one document label; `importance` I_e;
    `cv2_load`, `cv2_importance` population variance / mean^2 (Shazeer et al., arXiv 1701.06538, section 4);
    `entropy` of `share` / ln E; `max_violation` max c_e / mean c_e - 1 (MaxVio of arXiv 2408.15664);
    `activation_ratio` the share of experts with `frequency` above `threshold`;
    `gshard_loss` (1/E) sum f_e P_e with f_e the share of first choices (arXiv 2006.16668, algorithm 1);
    `switch_loss` E sum share_e P_e, 1 if balanced (arXiv 2101.03961, equation 4, over all k choices);
    `z_loss` the mean of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, equation 5).
    Losses are those of the whole corpus as one batch, without their coefficients.

    Args:
        threshold: selections per token above which an expert counts as active.

    Example:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", ["A short text."])
        >>> bool(abs(ds.share.sum("expert") - 1).max() < 1e-12)
        True
    """

    name = "expert_load"

    def __init__(self, threshold: float = 0.0):
        super().__init__()
        self.threshold = threshold

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        selected, scores = batch.selected.double(), batch.scores.double()
        first = torch.bincount(batch.first_choice, minlength=batch.layer.num_experts)
        labels = batch.labels
        by_label = {
            f"{LABEL}{label}": selected[np.flatnonzero(labels == label)].sum(0) for label in sorted(set(labels))
        }
        return {
            "selections": selected.sum(0),
            "first": first,
            "importance": batch.weights.double().sum(0),
            "scores": (scores / scores.sum(-1, keepdim=True)).sum(0),
            "z": batch.router_logits.double().logsumexp(-1).square().sum(),
            "rows": torch.tensor(len(selected)),
            "tokens": torch.tensor(len(batch.tokens)),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
            **by_label,
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        load, rows, tokens = sums["selections"], sums["rows"][:, None], sums["tokens"][:, None]
        experts = load.shape[1]
        share = load / (rows * sums["least_k"][:, None])
        mean_scores, frequency = sums["scores"] / rows, load / tokens
        terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0)
        per_expert = {
            "selections": load.astype(np.int64),
            "share": share,
            "frequency": frequency,
            "importance": sums["importance"],
        }
        per_layer = {
            "cv2_load": _cv2(load),
            "cv2_importance": _cv2(sums["importance"]),
            "entropy": -terms.sum(1) / np.log(experts) if experts > 1 else np.ones(len(load)),
            "max_violation": load.max(1) / load.mean(1) - 1,
            "activation_ratio": (frequency > self.threshold).mean(1),
            "gshard_loss": (sums["first"] / rows * mean_scores).mean(1),
            "switch_loss": experts * (share * mean_scores).sum(1),
            "z_loss": sums["z"] / sums["rows"],
        }
        variables: dict[str, Any] = {name: (("layer", "expert"), value) for name, value in per_expert.items()}
        variables |= {name: (("layer",), value) for name, value in per_layer.items()}
        coords: dict[str, Any] = {"expert": [str(expert) for expert in range(experts)]}
        labels = sorted(name for name in sums if name.startswith(LABEL) and name != LABEL)
        if labels:
            of_label = np.stack([sums[name] for name in labels], axis=1)
            variables["label_share"] = (("layer", "label", "expert"), of_label / of_label.sum(-1, keepdims=True))
            coords["label"] = [name.removeprefix(LABEL) for name in labels]
        return variables, coords


def _cv2(values: np.ndarray) -> np.ndarray:
    return values.var(1) / values.mean(1) ** 2
