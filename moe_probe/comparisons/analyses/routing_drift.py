"""Changes of each token's routing after tuning or quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.comparisons.side_by_side import chosen_alike, means, overlap, record_choices, routing_attrs
from moe_probe.dynamic.analysis import described, labeled
from moe_probe.errors import NotComparable
from moe_probe.model import Openable
from moe_probe.options import RunOptions
from moe_probe.results import dataset
from moe_probe.signatures import check_number, checked
from moe_probe.statistics.bootstrap import DRAWS, check_draws
from moe_probe.texts.reading import Texts
from moe_probe.traces.reading import Trace

SOURCES = (2, 2)
UNASKED = True
BINS = 10
LEGEND = {
    "changed": ("share of tokens with other choices", "1"),
    "overlap": ("share of choices that stay", "1"),
    "margin": ("margin of the selection score", "1"),
}
One = Openable | Trace | Mapping[str, Openable | Trace]


@checked
def routing_drift(
    before: One,
    after: One,
    texts: Texts | None = None,
    *,
    bins: int = BINS,
    bootstrap: int = DRAWS,
    chance: bool = True,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Share of tokens that choose other experts after tuning or quantization, also by the margin of their choice.

    The margin of a token is the smallest selection score of its k chosen experts minus the largest of the others, in
    the first checkpoint. The selection score is the one that top-k ranks, with the correction bias and without excluded
    groups. In each layer, tokens are sorted by margin into `bins` of equal size.

    Args:
        before: a folder, hub id, model or trace, or {label: checkpoint}.
        after: a folder, hub id, model or trace, or {label: checkpoint}.
        texts: the texts that models run on; not needed for traces.
        bins: number of bins of the margin.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        chance: whether to compute the chance level.
        options: those of `dynamic.run`.

    Returns:
        Dataset, float64, with `changed` (layer), the share of tokens (or sub-tokens) whose set of k experts differs;
        `overlap` (layer), the mean share of their k choices that stay; both with 95 % bootstrap intervals over
        documents, `_low` and `_high`; by margin, `margin_changed`, `margin_overlap` (layer, bin), and `margin`
        (layer, bin), the bin's mean margin; and `chance` (layer), the overlap of independent choices with each expert
        chosen as often as it is.

    Raises:
        InputError: the checkpoints differ in their tokenizers or layers.

    Examples:
        >>> from moe_probe import comparisons
        >>> drift = comparisons.routing_drift({"base": "ckpt/tiny-mixtral"}, {"same": "ckpt/tiny-mixtral"}, ["A text."])
        >>> float(drift.changed.max())
        0.0
    """
    check_draws(bootstrap)
    check_number("bins", bins, 1, 1_000_000)
    sides = [one if isinstance(one, Mapping) else {name: one} for name, one in (("before", before), ("after", after))]
    labels = {**sides[0], **sides[1]}
    if len(labels) != 2:
        raise NotComparable(
            f"routing_drift compares two checkpoints, not {', '.join(labels)}; pass one as each argument."
        )
    first, second = routings = record_choices(labels, texts, options, most=2)
    stays = overlap(first.index, second.index)  # (layers, tokens, subtokens)
    values_of = means("overlap", ("layer",), stays.mean(-1), first, bootstrap)
    values_of |= means("changed", ("layer",), (stays < 1).astype(float).mean(-1), first, bootstrap)
    by_bin = [
        _by_margin(margin.flatten(), stay.flatten(), bins) for margin, stay in zip(first.margin, stays, strict=True)
    ]
    for name, values in zip(("margin", "margin_overlap", "margin_changed"), zip(*by_bin, strict=True), strict=True):
        values_of[name] = (("layer", "bin"), np.stack(values))
    if chance:
        values_of["chance"] = (("layer",), chosen_alike(first.index, second.index, first.num_experts))
    coords = {"checkpoint": [r.label for r in routings], "layer": list(first.layers), "bin": np.arange(1, bins + 1)}
    variables = {n: array.assign_attrs(described(LEGEND, n)) for n, array in labeled(values_of, coords).items()}
    about = routing_attrs("routing_drift", routings, bins=bins)
    return dataset(variables, about).assign_coords(checkpoint=coords["checkpoint"])


def _by_margin(margin: np.ndarray, stays: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Mean margin, mean overlap and share of changed rows in bins of the margin with equal numbers of rows."""
    parts = np.array_split(np.argsort(margin, kind="stable"), bins)
    values = [
        (margin[at].mean(), stays[at].mean(), (stays[at] < 1).mean()) if len(at) else (np.nan,) * 3 for at in parts
    ]
    return tuple(np.asarray(column, float) for column in zip(*values, strict=True))
