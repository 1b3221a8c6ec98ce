"""Several checkpoints on the same texts: what training settles, what tuning or quantization changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.comparisons.side_by_side import Choices, Routing, Sources, labelled, look, overlap, record_choices
from moe_probe.dynamic.analyses.expert_load import ExpertLoad
from moe_probe.dynamic.analyses.patch_divergence import PatchDivergence
from moe_probe.dynamic.analyses.subtoken_divergence import distinct
from moe_probe.errors import InputError
from moe_probe.facts import parameter_counts
from moe_probe.results import provenance, with_attrs
from moe_probe.statistics.bootstrap import check_draws, interval, per_document
from moe_probe.texts.corpus import Texts
from moe_probe.traces.reading import Trace

BINS = 10


def router_saturation(
    checkpoints: Sources, texts: Texts | None = None, *, bootstrap: int = 200, chance: bool = True, **options: Any
) -> xr.Dataset:
    """Share of the last checkpoint's choices that earlier ones made already (OLMoE, arXiv 2409.02060, section 5.1).

    Args:
        checkpoints: by label (training step) in their order, the final one last; folders, hub ids, models or traces.
        texts: what they run on; not needed for traces.
        bootstrap: draws of the intervals; 0 for none.
        chance: whether to give the chance level.
        options: those of `run`, such as `layers`, `execution` and `batch_tokens`.

    Returns:
        Dataset with `saturation` (checkpoint, layer), float64: the mean over tokens (or sub-tokens) of the share of the
        final top-k experts that the checkpoint chooses too; `first_saturation`, of the first choices alone (the
        largest score); with 95 % bootstrap intervals over documents, `_low` and `_high`;
        `chance`, k / E, and `first_chance`, 1 / E: of choices made at random.

    Raises:
        InputError: fewer than two checkpoints, or their tokenizers or layers differ.

    Examples:
        >>> from moe_probe import dynamic
        >>> steps = {"100": "ckpt/tiny-mixtral", "200": "ckpt/tiny-mixtral"}
        >>> dynamic.router_saturation(steps, ["A short text."]).saturation.values.min().item()
        1.0
    """
    check_draws(bootstrap)
    routings = record_choices(checkpoints, texts, **options)
    final = routings[-1]
    shares = np.stack([overlap(final.index, routing.index).mean(-1) for routing in routings])  # (c, layers, tokens)
    variables = _means("saturation", ("checkpoint", "layer"), shares, final, bootstrap)
    firsts = np.stack([(final.first == routing.first).mean(-1) for routing in routings])
    variables |= _means("first_saturation", ("checkpoint", "layer"), firsts, final, bootstrap)
    if chance:
        variables["chance"] = ((), final.index.shape[-1] / final.num_experts)
        variables["first_chance"] = ((), 1 / final.num_experts)
    return _dataset("router_saturation", variables, routings, {"layer": list(final.layers)})


def routing_drift(
    before: Any,
    after: Any,
    texts: Texts | None = None,
    *,
    bins: int = BINS,
    bootstrap: int = 200,
    chance: bool = True,
    **options: Any,
) -> xr.Dataset:
    """How many tokens choose otherwise after tuning or quantization, by how narrow their choice had been.

    The margin of a token is the smallest router score among its k chosen experts minus the largest among the others,
    in the first checkpoint (negative where a bias or groups decide). Tokens are dealt by it into `bins` of equal size,
    layer by layer.

    Args:
        before: folders, hub ids, models or traces; as {label: checkpoint} for labels of their own.
        after: folders, hub ids, models or traces; as {label: checkpoint} for labels of their own.
        texts: what they run on; not needed for traces.
        bins: of the margin.
        bootstrap: draws of the intervals; 0 for none.
        chance: whether to give the chance level.
        options: those of `run`.

    Returns:
        Dataset with `changed` (layer), float64, the share of tokens (or sub-tokens) whose set of k experts differs;
        `overlap` (layer), the mean share of their k choices that stay; both with 95 % bootstrap intervals over
        documents, `_low` and `_high`; by margin, `margin_changed`, `margin_overlap` (layer, bin), and `margin`
        (layer, bin), the bin's mean margin; `chance`, k / E, the overlap of choices made at random.

    Raises:
        InputError: the two differ in their tokenizers or layers.

    Examples:
        >>> from moe_probe import dynamic
        >>> drift = dynamic.routing_drift({"base": "ckpt/tiny-mixtral"}, {"same": "ckpt/tiny-mixtral"}, ["A text."])
        >>> float(drift.changed.max())
        0.0
    """
    check_draws(bootstrap)
    if bins < 1:
        raise InputError(f"bins is at least 1, not {bins}.")
    sides = [
        side if isinstance(side, Mapping) else {name: side} for name, side in (("before", before), ("after", after))
    ]
    both = {**sides[0], **sides[1]}
    if len(both) != 2:
        raise InputError("routing_drift compares two checkpoints under two labels.")
    routings = record_choices(both, texts, **options)
    first, second = routings
    stays = overlap(first.index, second.index)  # (layers, tokens, subtokens)
    changes = (stays < 1).astype(float)
    variables = _means("overlap", ("layer",), stays.mean(-1), first, bootstrap)
    variables |= _means("changed", ("layer",), changes.mean(-1), first, bootstrap)
    by_bin = [_by_margin(first.margin[at].flatten(), stays[at].flatten(), bins) for at in range(len(first.layers))]
    for name, values in zip(("margin", "margin_overlap", "margin_changed"), zip(*by_bin, strict=True), strict=True):
        variables[name] = (("layer", "bin"), np.stack(values))
    if chance:
        variables["chance"] = ((), first.index.shape[-1] / first.num_experts)
    return _dataset("routing_drift", variables, routings, {"layer": list(first.layers), "bin": np.arange(1, bins + 1)})


def expert_activation(
    checkpoints: Sources, texts: Texts | None = None, *, threshold: float = 0.0, **options: Any
) -> xr.Dataset:
    """How often every expert is used, models side by side (MH-MoE, arXiv 2404.15045, figures 1, 5 and 6).

    Models may differ in layers, experts and sub-tokens; cells that one lacks are nan.

    Args:
        checkpoints: by label; folders, hub ids, models or traces.
        texts: what they run on; not needed for traces.
        threshold: selections per token above which an expert of a layer counts as active; the paper gives none.
        options: those of `run`.

    Returns:
        Dataset with, float64: `frequency` (checkpoint, depth, expert), selections per token, depth counting MoE layers
        from 0, and `layer` (checkpoint, depth), their numbers, -1 where there is none; and by checkpoint:
        `activation_ratio`, the share of cells above the threshold; `dead_experts`, cells never chosen; `entropy`, the
        mean over layers of the load's entropy / ln E; `divergence`, the mean number of distinct experts of a token;
        `num_experts`, `subtokens`, `top_k`; and from the weights' shapes `expert_parameters` and `other_parameters`
        (everything else: attention, head and merge layers, routers), nan for traces.

    Raises:
        InputError: fewer than two checkpoints.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_activation(["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"], ["A short text."])
        >>> ds.frequency.dims
        ('checkpoint', 'depth', 'expert')
    """
    found, models = {}, labelled(checkpoints)
    for label, model in models.items():
        corpus, (load, choices) = look(model, texts, [ExpertLoad(threshold, bootstrap=0), Choices()], **options)
        found[label] = load.result(model, corpus)
        layer = model.layer(int(found[label].layer[0]))
        layers, values = choices.values(corpus)
        rows = values["index"].reshape(len(layers) * corpus.num_tokens, -1)
        expert, other = (np.nan, np.nan) if isinstance(model, Trace) else parameter_counts(model)
        found[label].attrs["facts"] = {
            "activation_ratio": float(found[label].activation_ratio.mean()),
            "dead_experts": int((found[label].selections == 0).sum()),
            "entropy": float(found[label].entropy.mean()),
            "divergence": float(distinct(rows).mean()),
            "num_experts": layer.num_experts,
            "subtokens": layer.subtokens,
            "top_k": layer.top_k,
            "expert_parameters": float(expert),
            "other_parameters": float(other),
        }
    depth = max(ds.sizes["layer"] for ds in found.values())
    experts = max(ds.sizes["expert"] for ds in found.values())
    frequency, numbers = np.full((len(found), depth, experts), np.nan), np.full((len(found), depth), -1)
    for at, ds in enumerate(found.values()):
        frequency[at, : ds.sizes["layer"], : ds.sizes["expert"]] = ds.frequency
        numbers[at, : ds.sizes["layer"]] = ds.layer
    variables: dict[str, Any] = {
        "frequency": (("checkpoint", "depth", "expert"), frequency),
        "layer": (("checkpoint", "depth"), numbers),
    }
    for name in next(iter(found.values())).attrs["facts"]:
        variables[name] = (("checkpoint",), [ds.attrs["facts"][name] for ds in found.values()])
    coords = {
        "checkpoint": list(found),
        "depth": np.arange(depth),
        "expert": [str(expert) for expert in range(experts)],
    }
    return with_attrs(variables, coords, _attrs("expert_activation", models, threshold=threshold))


def patch_divergence_over_steps(
    steps: Sources, texts: Texts | None, patches: PatchDivergence, **options: Any
) -> xr.Dataset:
    """`patch_divergence` of several checkpoints in order (MH-MoE, arXiv 2404.15045, figures 8 and 10).

    Args:
        steps: by label, in order.
        texts: token ids of the pictures, one document each.
        patches: the analysis with its grid and pictures.
        options: those of `run`.

    Returns:
        The Dataset of `patch_divergence` with a first dimension `step` where values differ between checkpoints.

    Raises:
        InputError: the checkpoints' tokenizers differ.

    Examples:
        >>> from moe_probe import dynamic
        >>> steps = {"1k": "ckpt/tiny-mh-moe", "2k": "ckpt/tiny-mh-moe"}
        >>> patches = dynamic.PatchDivergence(grid=(2, 2))
        >>> dynamic.patch_divergence_over_steps(steps, [[5, 6, 7, 8]], patches).divergence_mean.dims
        ('step', 'document', 'row', 'column')
    """
    found, models, ids = [], labelled(steps), None
    for label, model in models.items():
        corpus, (seen,) = look(model, texts, [patches], **options)
        own = [document.ids for document in corpus.documents]
        if ids is not None and own != ids:
            raise InputError(f"{label} did not see the same tokens as the steps before: their tokenizers differ.")
        ids = own
        found.append(seen.result(model, corpus))
    both = xr.concat(found, xr.Variable("step", list(models)), data_vars="different", coords="minimal", compat="equals")
    names = [name for name in found[0] if name.startswith(("divergence", "texture_mean"))]
    both = both.assign({n: xr.concat([ds[n] for ds in found], both.step) for n in names})
    return both.assign_attrs(_attrs("patch_divergence", models, **patches.parameters()))


def _means(
    name: str, dims: tuple[str, ...], values: np.ndarray, routing: Routing, bootstrap: int
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Means over tokens of values (..., tokens), and their interval."""
    found = {name: (dims, values.mean(-1))}
    if bootstrap:
        document = routing.corpus.tokens().document
        sums = {
            "total": per_document(np.moveaxis(values, -1, 0), document),
            "count": per_document(np.ones(len(document)), document),
        }

        def mean(total: dict[str, np.ndarray]) -> np.ndarray:
            return total["total"] / total["count"].reshape(-1, *[1] * (values.ndim - 1))

        for end, value in zip(("low", "high"), interval(mean, sums, bootstrap), strict=True):
            found[f"{name}_{end}"] = (dims, value)
    return found


def _by_margin(margin: np.ndarray, stays: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean margin, mean overlap and share of changed rows in bins of equally many rows, by margin."""
    parts = np.array_split(np.argsort(margin, kind="stable"), bins)
    values = [
        (margin[at].mean(), stays[at].mean(), (stays[at] < 1).mean()) if len(at) else (np.nan,) * 3 for at in parts
    ]
    return tuple(np.asarray(column, float) for column in zip(*values, strict=True))


def _attrs(analysis: str, models: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    last = list(models.values())[-1]
    fingerprints = {label: model.fingerprint for label, model in models.items()}
    return provenance(analysis, last, checkpoints=fingerprints, **parameters)


def _dataset(analysis: str, variables: dict, routings: list[Routing], coords: dict[str, Any]) -> xr.Dataset:
    models = {routing.label: routing.model for routing in routings}
    corpus = routings[0].corpus
    sizes = {"documents": len(corpus.documents), "tokens": corpus.num_tokens}
    labels = {"checkpoint": list(models)}
    return with_attrs(variables, {**labels, **coords}, {**_attrs(analysis, models), **sizes})
