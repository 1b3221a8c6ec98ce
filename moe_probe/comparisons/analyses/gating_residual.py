"""Effect of the gating residual on the router's scores (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import xarray as xr

from moe_probe.comparisons.side_by_side import Opened, compared_attrs, observe_each
from moe_probe.dynamic.analyses.router_scores import RouterScores
from moe_probe.errors import NotComparable, NotFitting
from moe_probe.intervene.config import Config
from moe_probe.model import Openable, load
from moe_probe.options import RunOptions
from moe_probe.signatures import checked
from moe_probe.texts.reading import Texts

SOURCES = (1, 1)
UNASKED = True
RESIDUALS = ["with", "without (intervention)"]


@checked
def gating_residual(
    model: Openable | list[Openable] | Mapping[str, Openable],
    texts: Texts,
    *,
    bins: int = 100,
    limits: tuple[float, float] = (0.0, 1.0),
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Distributions of the router's two highest scores, with the model's gating residual and without it.

    The paper (MoE++, arXiv 2410.07348, figure 6) compares two models, trained with and without the residual. Here an
    intervention removes it from one checkpoint, `model.under(Config(moe_gate_residual=False))`: each layer's logits no
    longer contain those of the previous layer, and the hidden states of later layers change too.

    Args:
        model: a MoE++ model; alone, in a list, or under a label.
        texts: the texts that it runs on.
        bins: number of bins of the histograms.
        limits: ends of the histograms; scores outside count in the first and last bin.
        options: those of `dynamic.run`.

    Returns:
        The Dataset of `router_scores` with a first dimension `residual`: `with`, and `without (intervention)`.

    Raises:
        InputError: the model has no gating residual.

    Examples:
        >>> from moe_probe import comparisons
        >>> comparisons.gating_residual("ckpt/tiny-moe-plus-plus", ["A short text."]).histogram.dims
        ('residual', 'layer', 'which', 'bin')
    """
    whole = load(_single(model))
    if not getattr(whole.config, "moe_gate_residual", False):
        raise NotFitting(f"{whole.name} has no gating residual to remove; pass a MoE++ model.")
    removed = whole.under(Config(moe_gate_residual=False))
    sides: Opened = dict(zip(RESIDUALS, (whole, removed), strict=True))
    scores = RouterScores(bins, limits)
    results = [seen.result(source) for source, (seen,) in observe_each(sides, texts, [scores], options).values()]
    joined = xr.concat(results, xr.Variable("residual", RESIDUALS), data_vars="all", coords="minimal", join="exact")
    about = compared_attrs("gating_residual", {"with": whole}, **scores.parameters())
    return joined.assign_attrs({**results[0].attrs, **about})


def _single(model: Openable | list[Openable] | Mapping[str, Openable]) -> Openable:
    several = list(model.values()) if isinstance(model, Mapping) else model if isinstance(model, list) else [model]
    if len(several) != 1:
        raise NotComparable(f"gating_residual takes one model, but there are {len(several)}; pass one.")
    return several[0]
