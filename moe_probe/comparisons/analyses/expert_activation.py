"""Frequency of every expert in several models (MH-MoE, arXiv 2404.15045, figures 1 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack, cast

import numpy as np
import xarray as xr

from moe_probe.comparisons.side_by_side import Choices, Sources, compared_attrs, observe_each, open_sources
from moe_probe.dynamic.analyses.expert_load import ExpertLoad
from moe_probe.dynamic.analyses.subtoken_divergence import distinct
from moe_probe.dynamic.analysis import described, expert_labels, labeled
from moe_probe.facts import parameter_counts
from moe_probe.model import MoEModel
from moe_probe.options import RunOptions
from moe_probe.results import dataset
from moe_probe.routing import Source
from moe_probe.signatures import checked
from moe_probe.texts.reading import Texts
from moe_probe.traces.reading import Trace

SOURCES = (2, None)
UNASKED = True
LEGEND = {
    "frequency": ("selections per token", "1"),
    "layer": ("decoder layer", "layer index"),
    "activation_ratio": ("share of active experts", "1"),
    "dead_experts": ("experts never chosen", "experts"),
    "divergence": ("distinct experts of a token", "experts"),
    "expert_parameters": ("parameters of the experts", "parameters"),
    "other_parameters": ("other parameters", "parameters"),
}


@checked
def expert_activation(
    checkpoints: Sources, texts: Texts | None = None, *, threshold: float = 0.0, **options: Unpack[RunOptions]
) -> xr.Dataset:
    """Compares how often several models use each expert (MH-MoE, arXiv 2404.15045, figures 1 and 5).

    Models may differ in layers, experts and sub-tokens; cells that a model lacks are nan.

    Args:
        checkpoints: folders, hub ids, models or traces, as a list or by label.
        texts: the texts that models run on; not needed for traces.
        threshold: selections per token above which an expert of a layer counts as active; the paper gives none.
        options: those of `dynamic.run`.

    Returns:
        Dataset, float64 unless said otherwise, with `frequency` (checkpoint, depth, expert), selections per token,
        where depth counts MoE layers from 0; `layer` (checkpoint, depth), their numbers, -1 for missing layers; and
        (checkpoint): `activation_ratio`, the share of cells above the threshold; `dead_experts`, the number of cells
        never chosen; `entropy`, the mean over layers of the load's entropy / ln E; `divergence`, the mean number of
        distinct experts of a token; `num_experts`, `subtokens`, `top_k`; and from the weights' shapes
        `expert_parameters` and `other_parameters` (everything else: attention, head and merge layers, routers), nan for
        traces.

    Raises:
        InputError: fewer than two checkpoints.

    Examples:
        >>> from moe_probe import comparisons
        >>> ds = comparisons.expert_activation(["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"], ["A short text."])
        >>> ds.frequency.dims
        ('checkpoint', 'depth', 'expert')
    """
    opened = open_sources(checkpoints)
    loads: dict[str, xr.Dataset] = {}
    of_all: dict[str, dict[str, float]] = {}
    for label, (source, seen) in observe_each(
        opened, texts, [ExpertLoad(threshold, bootstrap=0), Choices()], options
    ).items():
        load, choices = seen
        loads[label] = load.result(source)
        of_all[label] = _facts(opened[label], source, loads[label], cast(Choices, choices))
    values_of: dict[str, tuple[tuple[str, ...], Any]] = _frequencies(loads)
    for name in next(iter(of_all.values())):
        values_of[name] = (("checkpoint",), [values[name] for values in of_all.values()])
    depth, experts = values_of["frequency"][1].shape[1:]
    coords = {"checkpoint": list(loads), "depth": np.arange(depth), "expert": expert_labels(experts)}
    variables = {n: array.assign_attrs(described(LEGEND, n)) for n, array in labeled(values_of, coords).items()}
    return dataset(variables, compared_attrs("expert_activation", opened, threshold=threshold))


def _facts(model: MoEModel | Trace, source: Source, load: xr.Dataset, choices: Choices) -> dict[str, float]:
    """The variables of one checkpoint that are single numbers."""
    layer, index = source.first_layer, choices.index.array.values
    rows = index.reshape(index.shape[0] * index.shape[1], -1)
    expert, other = (np.nan, np.nan) if isinstance(model, Trace) else parameter_counts(model)
    return {
        "activation_ratio": float(load.activation_ratio.mean()),
        "dead_experts": int((load.selections == 0).sum()),
        "entropy": float(load.entropy.mean()),
        "divergence": float(distinct(rows).mean()),
        "num_experts": layer.num_experts,
        "subtokens": layer.subtokens,
        "top_k": layer.top_k,
        "expert_parameters": float(expert),
        "other_parameters": float(other),
    }


def _frequencies(loads: Mapping[str, xr.Dataset]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Selections per token (checkpoint, depth, expert), and the layers' numbers."""
    depth = max(ds.sizes["layer"] for ds in loads.values())
    experts = max(ds.sizes["expert"] for ds in loads.values())
    frequency, numbers = np.full((len(loads), depth, experts), np.nan), np.full((len(loads), depth), -1)
    for at, ds in enumerate(loads.values()):
        frequency[at, : ds.sizes["layer"], : ds.sizes["expert"]] = ds.frequency
        numbers[at, : ds.sizes["layer"]] = ds.layer
    return {"frequency": (("checkpoint", "depth", "expert"), frequency), "layer": (("checkpoint", "depth"), numbers)}
