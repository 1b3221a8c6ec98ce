"""Agreement of the first-order estimate with the measured ablation of experts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from moe_probe.errors import NotComparable, WrongType
from moe_probe.results import dataset
from moe_probe.signatures import value_shown


def agreement(measured: xr.Dataset, estimate: xr.Dataset) -> xr.Dataset:
    """Compares an attribution with the ablation that it estimates.

    Args:
        measured: result of `ablate` on some texts.
        estimate: result of `attribution` of the same model on the same texts.

    Returns:
        Dataset, float64, with `measured` and `estimate` (layer, expert), nats, the total effects; and Spearman's
        `rank_correlation` () and `layer_rank_correlation` (layer), nan with fewer than three experts.

    Raises:
        NotComparable: the results are of different models or texts.
        WrongType: a result is not of `ablate` or `attribution`.

    Examples:
        >>> from moe_probe import intervene
        >>> texts = [[5, 6, 7, 8], [9, 10, 11]]
        >>> both = intervene.ablate("ckpt/tiny-mixtral", texts), intervene.attribution("ckpt/tiny-mixtral", texts)
        >>> abs(intervene.agreement(*both).rank_correlation.item()) <= 1
        True
    """
    for name, result in (("ablate", measured), ("attribution", estimate)):
        if not isinstance(result, xr.Dataset) or result.attrs.get("analysis") != name:
            raise WrongType(f"agreement takes the results of ablate and attribution, not {value_shown(result)}.")
    for what in ("fingerprint", "texts"):
        if measured.attrs[what] != estimate.attrs[what]:
            raise NotComparable(f"The results differ in their {what}; pass an ablation and an attribution of one run.")
    aligned = xr.Dataset(
        {"measured": measured.loss_change.sel(path="total", drop=True), "estimate": estimate.loss_change}
    )
    one, other = aligned.measured.transpose("layer", "expert"), aligned.estimate.transpose("layer", "expert")
    by_layer = [
        rank_correlation(one.sel(layer=layer).values, other.sel(layer=layer).values) for layer in one.layer.values
    ]
    texts = {"measured": "change of the loss, measured", "estimate": "change of the loss, estimated"}
    arrays = {name: aligned[name].assign_attrs(long_name=text, units="nats") for name, text in texts.items()}
    rank = {"long_name": "Spearman's rank correlation", "units": "1"}
    arrays["rank_correlation"] = xr.DataArray(rank_correlation(one.values, other.values), attrs=rank)
    arrays["layer_rank_correlation"] = xr.DataArray(by_layer, {"layer": one.layer.values}, ("layer",), attrs=rank)
    how = json.loads(measured.attrs["parameters"])["how"]
    about = {**measured.attrs, "analysis": "agreement", "parameters": json.dumps({"how": how})}
    return dataset(arrays, about)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of pairs without nan; nan with fewer than three pairs, or if one side is constant."""
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    test: Any = spearmanr(one, other)
    return float(test.statistic)
