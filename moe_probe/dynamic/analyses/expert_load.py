"""How evenly the experts are used: load, importance, and the balance losses of the MoE literature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import entropy as scipy_entropy

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import DRAWS, FEW, check_draws, interval, ratio_interval
from moe_probe.statistics.by_label import add_by_label, expert_shares, labeled_tables, share_tests, totals
from moe_probe.statistics.states import PerUnit, Same, Total


@dataclass
class ExpertLoad(Analysis):
    """Selections of every expert, and the measures of balance and balance losses of the MoE literature.

    c_e is the number of rows (tokens, or sub-tokens) that select expert e among their k choices, S the number of rows,
    N that of tokens, I_e the sum of applied weights, and P_e the mean of the router's scores divided by their sum over
    experts. Per expert, the result has (layer, expert), float64 unless said otherwise:

    - `selections`, c_e, and `first_choices`, rows whose first choice is the expert, both int64;
    - `share`, c_e / (S k);
    - `frequency`, c_e / N (MH-MoE, arXiv 2404.15045, figure 1);
    - `importance`, I_e, and `gate_importance`, the same of weights divided by their sum over the k choices (the gates
      G of Shazeer et al., arXiv 1701.06538, equation 6);
    - `smooth_load` (arXiv 1701.06538, equations 8 to 10, for a router without a noise network: sigma is 1, and the
      logits are the noisy logits).

    Per layer, the result has (layer), float64:

    - `cv2_load`, `cv2_importance`, `cv2_gate_importance` and `cv2_smooth_load`, population variance / mean^2 over
      experts (arXiv 1701.06538, section 4);
    - `entropy`, the entropy of `share` / ln E;
    - `max_violation`, max c_e / mean c_e - 1 (MaxVio, arXiv 2408.15664);
    - `activation_ratio`, the share of experts with `frequency` above `threshold`;
    - `gshard_loss`, (1/E) sum f_e P_e, with f_e the share of first choices (arXiv 2006.16668, algorithm 1);
    - `first_choice_loss`, E sum f_e P_e (Switch, arXiv 2101.03961, equation 4; MH-MoE's code for any k);
    - `switch_loss`, E sum share_e P_e, the same over all k choices, 1 if balanced;
    - `z_loss`, the mean of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, equation 5).

    Losses are those of the whole corpus as one batch, without their coefficients. `share`, `cv2_load`, `entropy` and
    `max_violation` have 95 % intervals over documents, `_low` and `_high`. With few tokens, the last three differ from
    their balanced value by chance; the jackknife removes this bias from their intervals.

    If documents have labels, the result also has:

    - `label_share` (layer, label, expert), the share among the tokens of one label, with a 95 % interval over
      documents, `label_share_low` and `label_share_high`;
    - `label_share_chance` (layer, expert), the share among all labeled tokens: its value if labels did not matter;
    - `label_share_p` (layer, label, expert), the two-sided p-value of their difference: the share of random
      permutations of the labels among documents with a difference as large;
    - `label_share_q` (layer, label, expert), the same with the false discovery rate controlled over all layers, labels
      and experts (Benjamini and Hochberg 1995).

    The coordinate `kind` (expert) holds the experts' kinds.

    Args:
        threshold: selections per token above which an expert counts as active.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        permutations: permutations of the labels among documents; 0 for none.
        chance: whether to compute the chance level.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", ["A short text."])
        >>> bool(abs(ds.share.sum("expert") - 1).max() < 1e-12)
        True
    """

    threshold: float = 0.0
    bootstrap: int = DRAWS
    permutations: int = DRAWS
    chance: bool = True

    name = "expert_load"
    title = "Expert load"
    unasked = True
    needs = frozenset({Need.WEIGHTS, Need.SCORES})
    legend = {
        "selections": ("rows that choose the expert", "rows"),
        "first_choices": ("rows whose first choice is the expert", "rows"),
        "share": ("share of choices", "1"),
        "frequency": ("selections per token", "1"),
        "entropy": ("entropy of the load / ln E", "1"),
        "label_share": ("share of choices by label", "1"),
    }

    selections, first, importance = Total("expert"), Total("expert"), Total("expert")
    gates, smooth, scores = Total("expert"), Total("expert"), Total("expert")
    z, rows, tokens_seen, k = Total(), Total(), Total(), Same()
    by_label = PerUnit("expert")

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, whole=False)
        check_draws(self.bootstrap)
        check_draws(self.permutations, "permutations")

    def update(self, batch: LayerBatch) -> None:
        scores, weights = batch.scores.double(), batch.weights.double()
        self.selections.add(batch, batch.selected.long().sum(0))
        self.first.add(batch, torch.bincount(batch.first_choice, minlength=batch.layer.num_experts))
        self.importance.add(batch, weights.sum(0))
        self.gates.add(batch, (weights / weights.sum(1, keepdim=True)).nan_to_num().sum(0))
        self.smooth.add(batch, smooth_load(batch).sum(0))
        self.scores.add(batch, (scores / scores.sum(-1, keepdim=True)).sum(0))
        self.z.add(batch, batch.router_logits.double().logsumexp(-1).square().sum())
        self.rows.add(batch, len(scores))
        self.tokens_seen.add(batch, len(batch.tokens))
        self.k.add(batch, batch.top_k_index.shape[1])
        add_by_label(self.by_label, batch)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        load, rows, first = self.selections.array, self.rows.array, self.first.array
        share, frequency = load / (rows * self.k.array), load / self.tokens_seen.array
        scores, importance, gates, smooth = (
            each.array for each in (self.scores, self.importance, self.gates, self.smooth)
        )
        mean_scores, experts = scores / rows, load.sizes["expert"]
        return {
            "selections": load.astype(np.int64),
            "first_choices": first.astype(np.int64),
            "gate_importance": gates,
            "smooth_load": smooth,
            "share": share,
            "frequency": frequency,
            "importance": importance,
            "cv2_load": cv2(load),
            "cv2_importance": cv2(importance),
            "cv2_gate_importance": cv2(gates),
            "cv2_smooth_load": cv2(smooth),
            "entropy": entropy(share),
            "max_violation": load.max("expert") / load.mean("expert") - 1,
            "activation_ratio": (frequency > self.threshold).mean("expert"),
            "gshard_loss": (first / rows * mean_scores).mean("expert"),
            "first_choice_loss": experts * (first / rows * mean_scores).sum("expert"),
            "switch_loss": experts * (share * mean_scores).sum("expert"),
            "z_loss": self.z.array / rows,
            **self._intervals(share),
            **self._label_shares(load),
        }

    def _intervals(self, share: xr.DataArray) -> dict[str, xr.DataArray]:
        """Intervals over documents of the shares and of the measures of balance."""
        if not self.bootstrap:
            return {}
        table = np.concatenate(list(PerUnit.tables(self.by_label).values()), axis=1)  # (layers, units, E)
        ends_of: dict[str, xr.DataArray] = {}
        for name, (statistic, limits) in BALANCE.items():
            drawn = [
                interval(
                    lambda total, of=statistic: of(total["load"]),
                    {"load": one},
                    self.bootstrap,
                    limits=limits,
                    debias=name != "share",
                )
                for one in table
            ]
            like = share if name == "share" else share.isel(expert=0, drop=True)
            for end, values in zip(("low", "high"), zip(*drawn, strict=True), strict=True):
                ends_of[f"{name}_{end}"] = like.copy(data=np.stack(values)).assign_attrs(undefined=FEW)
        return ends_of

    def _label_shares(self, like: xr.DataArray) -> dict[str, xr.DataArray]:
        """Shares among the tokens of each label, with intervals, chance level and p-values."""
        tables = labeled_tables(self.by_label) if any(self.by_label.keys) else {}
        if not tables:
            return {}
        coords = {"layer": like.layer, "label": list(tables), "expert": like.expert}
        counts = totals(tables)
        pooled = expert_shares(counts.sum(1))
        values = {"label_share": expert_shares(counts)}
        if self.bootstrap:
            ends = [
                [ratio_interval(one, one.sum(1), self.bootstrap, (0, 1)) for one in table] for table in tables.values()
            ]
            values["label_share_low"], values["label_share_high"] = np.moveaxis(np.array(ends), [0, 1, 2], [2, 1, 0])
        if self.permutations and len(tables) > 1:
            values["label_share_p"], values["label_share_q"] = share_tests(tables, self.permutations)
        variables = {name: xr.DataArray(v, coords, ("layer", "label", "expert")) for name, v in values.items()}
        if self.chance:
            variables["label_share_chance"] = like.copy(data=pooled)
        return variables

    def coords(self, source: Source) -> Mapping[str, Any]:
        return {"kind": ("expert", list(source.first_layer.expert_kinds))}


def _cv2(load: np.ndarray) -> np.ndarray:
    return load.var(-1) / load.mean(-1) ** 2


def _entropy(load: np.ndarray) -> np.ndarray:
    return scipy_entropy(load, axis=-1) / np.log(max(load.shape[-1], 2))


def _violation(load: np.ndarray) -> np.ndarray:
    return load.max(-1) / load.mean(-1) - 1


BALANCE = {  # by variable: of loads (..., E), and its limits
    "share": (expert_shares, (0, 1)),
    "cv2_load": (_cv2, (0, np.inf)),
    "entropy": (_entropy, (0, 1)),
    "max_violation": (_violation, (0, np.inf)),
}


def entropy(share: xr.DataArray) -> xr.DataArray:
    """Entropy of shares over experts / ln E; 1 if there is only one expert."""
    terms = share.where(share > 0, 1) * np.log(share.where(share > 0, 1))
    experts = share.sizes["expert"]
    return -terms.sum("expert") / np.log(experts) if experts > 1 else xr.ones_like(terms.sum("expert"))


def smooth_load(batch: LayerBatch) -> torch.Tensor:
    """P(s, e) = Phi(logit_e - the k-th largest logit of the other experts), (n, E), float64."""
    logits, k = batch.router_logits.double(), batch.top_k_index.shape[1]
    if k >= logits.shape[1]:
        return torch.ones_like(logits)
    top = logits.topk(k + 1, dim=1).values
    among = logits >= top[:, k - 1 : k]
    return torch.special.ndtr(logits - torch.where(among, top[:, k:], top[:, k - 1 : k]))


def cv2(values: xr.DataArray) -> xr.DataArray:
    """Population variance / mean^2 over experts."""
    return values.var("expert") / (values.mean("expert") ** 2 + 1e-10)
