"""Do scores predict the cost of removing an expert?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from moe_probe.errors import NotComparable, WrongType
from moe_probe.results import dataset, variable
from moe_probe.signatures import check_number, checked, value_shown
from moe_probe.statistics.bootstrap import DRAWS, check_draws, interval

LEAST = 3  # experts that a rank correlation is of
RANK = "Spearman's rank correlation with the change of the loss"
TOO_FEW = "fewer than three experts or five documents, or equal values"
SHARED = "share of the lowest-scored experts among those of least cost"


@checked
def agreement(
    scores: xr.Dataset, ablation: xr.Dataset, *, lowest: int | None = None, bootstrap: int = DRAWS
) -> xr.Dataset:
    """Compares scores with the measured ablation that they should predict.

    Scores that keep small values change their sign, so that a good score always correlates positively. Experts that no
    row chose have no value and count as the least important; others without a value are skipped. A rank correlation
    within layers says whether a score ranks the experts of a layer correctly; one over the model, whether its values
    are comparable between layers. Noise of the ablation pulls correlations and their intervals towards 0: they describe
    the given number of documents, not infinitely many.

    Args:
        scores: result of `pruning.scores`.
        ablation: result of `intervene.ablate` of the same model; use other texts, to test a prediction. Intervals need
            `by_unit=True`.
        lowest: number of experts of each layer that would be pruned; a quarter by default, at least one.
        bootstrap: resamples of the ablation's documents for the intervals, with fixed scores; 0 for none.

    Returns:
        Dataset, float64, with

        - `rank_correlation` (score, layer), Spearman's, of the total effects, `mean_rank_correlation` (score), its mean
          over layers, and `model_rank_correlation` (score), over all experts of the model; nan with fewer than three
          experts, or if one side is constant; with `_low` and `_high`, their 95 % intervals, if the ablation has sums
          by unit, nan with fewer than five units;
        - `overlap` (score, layer) and `model_overlap` (score), the share of the `lowest` experts (of a layer, or as
          many of the whole model) that are among those of least cost, and `overlap_chance` (layer);
        - the compared values: `importance` (score, layer, expert), scores with a sign such that high ones are kept,
          -inf if no row chose the expert, and `loss_change` (layer, expert), nats.

        `attrs` say whether both are of the same texts (`same_texts`), and give `lowest`.

    Raises:
        NotComparable: the results are of different models, or have no layer in common.
        WrongType: a result is not of `scores` or `ablate`.

    Examples:
        >>> from moe_probe import intervene, pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8]], ["reap", "ean"])
        >>> ablation = intervene.ablate("ckpt/tiny-mixtral", [[9, 10, 11], [12, 13]], by_unit=True)
        >>> pruning.agreement(scores, ablation).rank_correlation.dims
        ('score', 'layer')
    """
    check_results(scores, ablation)
    check_draws(bootstrap)
    layers = [layer for layer in scores.layer.values if layer in ablation.layer.values]
    experts = [expert for expert in scores.expert.values if expert in ablation.expert.values]
    if not layers or not experts:
        raise NotComparable(
            "The scores and the ablation have no layer and expert in common; run both on the same layers."
        )
    shared = scores.sel(layer=layers, expert=experts)
    cost = ablation.sel(path="total", layer=layers, expert=experts)
    if lowest is not None:
        check_number("lowest", lowest, 1, len(experts))
    compared = Compared(importance(shared), cost.loss_change.transpose("layer", "expert").values, lowest)
    values = compared.correlations(compared.cost[None])
    statistics = {name: value[0] for name, value in values.items()} | compared.overlaps()
    if bootstrap and "unit_loss_change" in ablation:
        statistics |= intervals(compared, cost, bootstrap)
    return _result(shared, scores, ablation, compared, statistics)


def check_results(scores: xr.Dataset, ablation: xr.Dataset) -> None:
    """Raises an error if the results are of other functions, or of different models."""
    for name, result in (("scores", scores), ("ablate", ablation)):
        if not isinstance(result, xr.Dataset) or result.attrs.get("analysis") != name:
            raise WrongType(
                f"agreement takes the results of pruning.scores and intervene.ablate, not {value_shown(result)}."
            )
    if scores.attrs["fingerprint"] != ablation.attrs["fingerprint"]:
        raise NotComparable("The scores and the ablation are of different models; run both on the same one.")


def importance(scores: xr.Dataset) -> np.ndarray:
    """Scores with a sign such that high values are kept, (score, layer, expert).

    Experts that no row chose have -inf, others without a value nan.
    """
    value = scores.value.transpose("score", "layer", "expert").values
    turned = np.where(scores.keep_high.values[:, None, None], value, -value)
    if "chosen" not in scores:
        return turned
    never = (scores.chosen.transpose("layer", "expert").values == 0) & np.isnan(turned)
    return np.where(never, -np.inf, turned)


@dataclass
class Compared:
    """Scores and costs of the same experts.

    Attributes:
        importance: (scores, layers, experts).
        cost: change of the loss, (layers, experts).
        lowest: number of pruned experts of a layer; None for a quarter.
    """

    importance: np.ndarray
    cost: np.ndarray
    lowest: int | None

    def pruned(self, layer: int) -> int:
        """Number of a layer's experts that are pruned."""
        there = int(np.isfinite(self.cost[layer]).sum())
        return min(self.lowest or max(1, there // 4), there)

    def correlations(self, costs: np.ndarray) -> dict[str, np.ndarray]:
        """Rank correlations with each of several costs (n, layers, experts): (n, scores[, layers])."""
        layers = range(costs.shape[1])
        by_layer = np.stack(
            [np.stack([spearman(one[layer], costs[:, layer]) for layer in layers], axis=-1) for one in self.importance],
            axis=1,
        )
        flat = costs.reshape(len(costs), -1)
        whole = np.stack([spearman(one.ravel(), flat) for one in self.importance], axis=1)
        known = np.isfinite(by_layer)
        total = np.where(known, by_layer, 0).sum(-1)
        with np.errstate(invalid="ignore"):
            mean = total / np.where(known.any(-1), known.sum(-1), np.nan)
        return {"rank_correlation": by_layer, "mean_rank_correlation": mean, "model_rank_correlation": whole}

    def overlaps(self) -> dict[str, np.ndarray]:
        """Shares of the lowest-scored experts among those of least cost, and the chance level."""
        counts = [self.pruned(layer) for layer in range(len(self.cost))]
        by_layer = [
            [overlap(one[layer], self.cost[layer], count) for layer, count in enumerate(counts)]
            for one in self.importance
        ]
        whole = [overlap(one.ravel(), self.cost.ravel(), sum(counts)) for one in self.importance]
        there = np.isfinite(self.cost).sum(1)
        chance = np.array(counts) / np.where(there > 0, there, np.nan)
        return {"overlap": np.array(by_layer), "model_overlap": np.array(whole), "overlap_chance": chance}


def spearman(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's correlation (n,) of values (E,), which may be -inf, with n others (n, E).

    The correlation is nan with fewer than three pairs without nan, and if a side is constant.
    """
    known = ~np.isnan(one) & np.isfinite(others).all(0)
    if known.sum() < LEAST:
        return np.full(len(others), np.nan)
    ranks, columns = rankdata(one[known]), rankdata(others[:, known], axis=1)
    ranks, columns = ranks - ranks.mean(), columns - columns.mean(1, keepdims=True)
    scale = np.sqrt((ranks**2).sum() * (columns**2).sum(1))
    return (columns @ ranks) / np.where(scale > 0, scale, np.nan)


def overlap(one: np.ndarray, cost: np.ndarray, count: int) -> float:
    """Share of the `count` lowest values of one among those of the other; ties count by their probability."""
    known = ~np.isnan(one) & np.isfinite(cost)
    if not 0 < count <= known.sum():
        return float("nan")
    return float((taken(one[known], count) * taken(cost[known], count)).sum() / count)


def taken(values: np.ndarray, count: int) -> np.ndarray:
    """Probability that each value is among the `count` lowest if ties are broken at random."""
    edge = np.sort(values)[count - 1]
    below, ties = values < edge, values == edge
    return below + ties * (count - below.sum()) / ties.sum()


def intervals(compared: Compared, cost: xr.Dataset, draws: int) -> dict[str, np.ndarray]:
    """Ends of the 95 % intervals over the ablation's units."""
    sums = {
        "change": cost.unit_loss_change.transpose("unit", "layer", "expert").values,
        "tokens": cost.unit_tokens.values[:, None, None],
    }
    ends = {}
    for name in ("rank_correlation", "mean_rank_correlation", "model_rank_correlation"):

        def statistic(total: Mapping[str, np.ndarray], name: str = name) -> np.ndarray:
            return compared.correlations(total["change"] / total["tokens"])[name]

        ends[f"{name}_low"], ends[f"{name}_high"] = interval(statistic, sums, draws, limits=(-1, 1), in_steps=True)
    return ends


def _result(
    shared: xr.Dataset,
    scores: xr.Dataset,
    ablation: xr.Dataset,
    compared: Compared,
    statistics: Mapping[str, np.ndarray],
) -> xr.Dataset:
    coords: dict[str, Any] = {name: shared[name].values for name in ("score", "layer", "expert")}
    arrays = {}
    for name, values in statistics.items():
        dims = ("layer",) if name == "overlap_chance" else ("score", "layer")[: values.ndim]
        arrays[name] = variable(dims, values, " ".join(_words(name)), undefined=TOO_FEW)
    arrays["importance"] = variable(
        ("score", "layer", "expert"), compared.importance, "score, high for important experts", "that of the score"
    )
    arrays["loss_change"] = variable(
        ("layer", "expert"), compared.cost, "change of the loss without the expert", "nats"
    )
    texts = scores.attrs.get("texts")
    same = "no texts" if texts is None else "yes" if texts == ablation.attrs["texts"] else "no"
    about = {**ablation.attrs, "analysis": "score_agreement", "same_texts": same}
    about |= {"lowest": [compared.pruned(layer) for layer in range(len(compared.cost))]}
    about["score_texts"] = texts or ""
    return dataset(arrays, about, coords)


def _words(name: str) -> Iterator[str]:
    yield RANK if "correlation" in name else SHARED
    yield {"mean": "mean over layers", "model": "over the model"}.get(name.split("_")[0], "by layer")
    yield from (text for end, text in ENDS.items() if name.endswith(end))


ENDS = {"_low": "lower end of the 95 % interval", "_high": "upper end of the 95 % interval", "_chance": "by chance"}
