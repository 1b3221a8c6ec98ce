"""Do scores foretell what removing an expert costs?"""

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
TOO_FEW = "fewer than three experts or five documents, or values that are all the same"
SHARED = "share of the experts with the lowest scores that cost least"


@checked
def agreement(
    scores: xr.Dataset, ablation: xr.Dataset, *, lowest: int | None = None, bootstrap: int = DRAWS
) -> xr.Dataset:
    """Scores beside the ablation that they are to foretell.

    Scores that keep small values are turned round, so that a good score always correlates positively. Experts that have
    no value since no row chose them count as the least important; those without a value otherwise are left out. A rank
    correlation within layers says whether a score finds the layer's experts, one over the model whether its values can
    be compared between layers. Noise of the ablation draws correlations towards 0, and intervals with them: they are of
    what so many documents show, not of what infinitely many would.

    Args:
        scores: result of `pruning.scores`.
        ablation: result of `intervene.ablate` of the same model: on other texts, to say that scores foretell. With
            `by_unit=True`, it has what intervals over its documents need.
        lowest: experts of each layer that would be pruned; a quarter by default, at least one.
        bootstrap: resamples of the ablation's documents for the intervals, scores held fixed; 0 for none.

    Returns:
        `rank_correlation` (score, layer) and `model_rank_correlation` (score), Spearman's, of the total effects;
        `mean_rank_correlation` (score), the mean over layers; nan with fewer than three experts, or where one side is
        constant. `overlap` (score, layer) and `model_overlap` (score), the share of the `lowest` experts (of a layer,
        or as many of the whole model) that are among those that cost least; `overlap_chance` (layer). `importance`
        (score, layer, expert), the scores turned so that high ones are kept, -inf where no row chose the expert, and
        `loss_change` (layer, expert), nats, are what was compared. Correlations
        have `_low` and `_high` where the ablation has its sums by unit, nan with fewer than five of them. `attrs` say
        whether both are of the same texts (`same_texts`), and `lowest`.

    Raises:
        NotComparable: the results are of different models, or have no layer in common.
        WrongType: they are other results.

    Examples:
        >>> from moe_probe import intervene, pruning
        >>> found = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8]], ["reap", "ean"])
        >>> truth = intervene.ablate("ckpt/tiny-mixtral", [[9, 10, 11], [12, 13]], by_unit=True)
        >>> pruning.agreement(found, truth).rank_correlation.dims
        ('score', 'layer')
    """
    check_results(scores, ablation)
    check_draws(bootstrap)
    layers = [layer for layer in scores.layer.values if layer in ablation.layer.values]
    experts = [expert for expert in scores.expert.values if expert in ablation.expert.values]
    if not layers or not experts:
        raise NotComparable("The scores and the ablation have no layer and expert in common; run both on the same.")
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
    """Refuse other results, and those of different models."""
    for name, result in (("scores", scores), ("ablate", ablation)):
        if not isinstance(result, xr.Dataset) or result.attrs.get("analysis") != name:
            raise WrongType(
                f"agreement takes the results of pruning.scores and intervene.ablate, not {value_shown(result)}."
            )
    if scores.attrs["fingerprint"] != ablation.attrs["fingerprint"]:
        raise NotComparable("The scores and the ablation are of different models; run both on the same one.")


def importance(scores: xr.Dataset) -> np.ndarray:
    """Values that are high for experts to keep, (score, layer, expert).

    -inf for experts that no row chose, nan where there is no value otherwise.
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
        lowest: experts of a layer that are pruned; None for a quarter.
    """

    importance: np.ndarray
    cost: np.ndarray
    lowest: int | None

    def pruned(self, layer: int) -> int:
        """How many of a layer's experts are pruned."""
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
        """Shares of the experts with the lowest scores that cost least, and the chance level."""
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
    """Spearman's correlation of values (E,), of which -inf is the lowest, with several others (n, E), (n,).

    nan with fewer than three known pairs, and where a side is constant.
    """
    known = ~np.isnan(one) & np.isfinite(others).all(0)
    if known.sum() < LEAST:
        return np.full(len(others), np.nan)
    ranks, columns = rankdata(one[known]), rankdata(others[:, known], axis=1)
    ranks, columns = ranks - ranks.mean(), columns - columns.mean(1, keepdims=True)
    scale = np.sqrt((ranks**2).sum() * (columns**2).sum(1))
    return (columns @ ranks) / np.where(scale > 0, scale, np.nan)


def overlap(one: np.ndarray, cost: np.ndarray, count: int) -> float:
    """Share of the `count` lowest of one that are among those of the other; ties count in part, by their chance."""
    known = ~np.isnan(one) & np.isfinite(cost)
    if not 0 < count <= known.sum():
        return float("nan")
    return float((taken(one[known], count) * taken(cost[known], count)).sum() / count)


def taken(values: np.ndarray, count: int) -> np.ndarray:
    """How likely each value is among the `count` lowest, where ties are broken by chance."""
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

        ends[f"{name}_low"], ends[f"{name}_high"] = interval(statistic, sums, draws, limits=(-1, 1))
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
        ("score", "layer", "expert"), compared.importance, "score, high for experts to keep", "that of the score"
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
