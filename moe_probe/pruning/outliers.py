"""Super experts: experts with extreme output values."""

from __future__ import annotations

import numpy as np
import xarray as xr

from moe_probe.errors import NotFitting
from moe_probe.model import Openable, load
from moe_probe.pruning.costs import check_of_model
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import check_number, checked

QUANTILE = 0.995
PUBLISHED_LAYERS = 0.75  # of the decoder's, that the published code looks at
RULE = "max_activation above the quantile of all experts of all layers"
PUBLISHED = "; above a tenth of the largest, rounded down; in the first 75 % of the decoder layers"


@checked
def super_experts(
    model: Openable, scores: xr.Dataset, *, quantile: float = QUANTILE, as_published: bool = False
) -> xr.Dataset:
    """Finds experts with extreme output values.

    Args:
        model: the model of the scores.
        scores: result of `pruning.scores` with `max_activation`, of all layers.
        quantile: quantile over all experts of all layers that an expert's largest absolute output must exceed.
        as_published: also require, as the published code does, more than a tenth of the largest value of all, rounded
            down (below 10, that is 0), and a layer among the first 75 % of the decoder. The published code uses one
            routed row of each batch; here all rows count.

    Returns:
        Dataset with `super_expert` (layer, expert), bool, False if no row chose the expert; `max_activation` (layer,
        expert), float64, in units of the residual stream; and `threshold` (), in the same units.

    Raises:
        NotFitting: the scores lack `max_activation`.

    Source:
        Su et al., arXiv 2507.23279, section 3.1.

    Examples:
        >>> from moe_probe import pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", [[5, 6, 7, 8]], "max_activation")
        >>> int(pruning.super_experts("ckpt/tiny-mixtral", scores, quantile=0.9).super_expert.sum()) > 0
        True
    """
    check_number("quantile", quantile, 0, 1, whole=False)
    opened = load(model)
    check_of_model(opened, scores, "scores")
    if "max_activation" not in scores.score.values:
        raise NotFitting("super_experts needs the score max_activation; compute it with pruning.scores.")
    largest = scores.value.sel(score="max_activation").transpose("layer", "expert").values
    threshold = float(np.nanquantile(largest, quantile))
    above = largest > threshold
    if as_published:
        early = scores.layer.values < PUBLISHED_LAYERS * opened.num_layers
        above &= (largest > np.nanmax(largest) // 10) & early[:, None]
    dims = ("layer", "expert")
    arrays = {
        "super_expert": variable(dims, above, "super expert"),
        "max_activation": variable(dims, largest, "largest absolute output", "residual stream", "no row chose it"),
        "threshold": variable((), threshold, "threshold", "residual stream"),
    }
    about = provenance("super_experts", opened, quantile=quantile, as_published=as_published)
    about["definition"] = RULE + (PUBLISHED if as_published else "")
    return dataset(arrays, about, {name: scores[name].values for name in dims})
