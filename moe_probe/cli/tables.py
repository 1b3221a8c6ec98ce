"""Tables for the terminal: what a model is made of, and what a result says in short."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from rich.table import Table

from moe_probe.facts import facts
from moe_probe.model import MoEModel

BALANCE = ("cv2_load", "entropy", "max_violation", "activation_ratio")


def info_table(model: MoEModel) -> Table:
    """What a model is made of."""
    table = Table(title=model.name, show_header=False, title_justify="left")
    for what, much in facts(model):
        table.add_row(what, much)
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
