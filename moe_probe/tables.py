"""Tables for the terminal: what a model is made of, and what a result says in short."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from rich.table import Table

from moe_probe.checkpoint.quantized import grouped_int8
from moe_probe.model import MoEModel, ranges
from moe_probe.parameters import parameters

BALANCE = ("cv2_load", "entropy", "max_violation", "activation_ratio")


def info_table(model: MoEModel) -> Table:
    """Family, layers, experts, parameters and size of a model on disk."""
    table = Table(title=model.name, show_header=False, title_justify="left")
    table.add_row("family", model.family)
    table.add_row("layers", f"{model.num_layers}, hidden size {model.hidden_size}")
    total = sum(tensor.numel() for tensor in parameters(model))
    active, at_most = total, ""
    if model.moe_layers:
        first = model.layer(model.moe_layers[0])
        table.add_row("MoE layers", f"{len(model.moe_layers)}: {ranges(model.moe_layers)}")
        kinds = ", ".join(f"{first.expert_kinds.count(k)} {k}" for k in dict.fromkeys(first.expert_kinds))
        shared = f" + {first.num_shared} shared" if first.num_shared else ""
        table.add_row("experts", f"{kinds}{shared}; {first.intermediate_size} neurons each")
        table.add_row("top-k", f"{first.top_k} per {'sub-token' if first.subtokens > 1 else 'token'}")
        for layer in map(model.layer, model.moe_layers):
            expert = len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
            active -= expert * max(0, layer.expert_kinds.count("ffn") - layer.top_k)
        if len(first.weighted_experts) < first.num_experts:
            without = [k for k in dict.fromkeys(first.expert_kinds) if k != "ffn"]
            table.add_row("", f"{', '.join(without)} have no matrices: static analyses of experts leave them out")
            at_most = "at most "
    table.add_row("parameters", f"{total:,} in all, {at_most}{active:,} active per token")
    dtypes = {"int8 with scales" if grouped_int8(t) else str(t.dtype).removeprefix("torch.") for t in parameters(model)}
    table.add_row("stored as", ", ".join(sorted(dtypes)))
    table.add_row("on disk", f"{model.checkpoint.nbytes / 1e9:.3g} GB in {len(model.checkpoint.files)} files")
    return table


def summary(dataset: xr.Dataset) -> Table | None:
    """A short table of a result: layers by projection, or by measure."""
    makers: dict[str, Callable[[xr.Dataset], tuple[str, xr.DataArray]]] = {
        "similarity": _mean_similarity,
        "gate_regression": lambda ds: ("R² of gate similarity on expert similarity", ds.r_squared),
        "expert_load": lambda ds: ("Balance of load", ds[list(BALANCE)].to_array("measure").transpose("layer", ...)),
        "token_specialization": lambda ds: ("Next token, same expert", ds.repetition),
        "subtoken_divergence": lambda ds: (f"Distinct experts, {ds.attrs['unit']}", ds.layer_mean),
        "task_load": lambda ds: ("FFN experts per token", ds.ffn_per_token.transpose("layer", "task")),
        "router_saturation": lambda ds: ("Share of final choices", ds.saturation.transpose("layer", "checkpoint")),
        "routing_drift": lambda ds: (
            "Routing drift",
            ds[["changed", "overlap"]].to_array("of").transpose("layer", "of"),
        ),
    }
    if dataset.attrs["analysis"] not in makers:
        return None
    title, values = makers[dataset.attrs["analysis"]](dataset)
    table = Table("layer", *map(str, values[values.dims[1]].values), title=title, title_justify="left")
    for layer in values.layer.values:
        table.add_row(str(layer), *(f"{value:.3f}" for value in values.sel(layer=layer).values))
    return table


def _mean_similarity(dataset: xr.Dataset) -> tuple[str, xr.DataArray]:
    routed = [label for label in dataset.expert.values if label not in ("S", "F")]
    pairs = dataset[dataset.attrs["metric"]].sel(expert=routed, other=routed)
    off_diagonal = pairs.where(pairs.expert != pairs.other).mean(("expert", "other"))
    return f"Mean {dataset.attrs['metric']} of two experts ({dataset.attrs['level']})", off_diagonal
