"""Changes since the checkpoint from which this one was made."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moe_probe import plotting, static
from moe_probe.report.section import Measure, Section, Subject

PLACE, NEEDS = 50, ("expert_load",)
MOVED_READING = "|after - before| / |before| of its matrices, mean over the projections. 0 is an unchanged expert."
ROUTER_READING = "The same of the gate embeddings, mean over all of them."
CHANGED_READING = (
    "The share of tokens whose set of experts is another one than in the base, with the 95 % interval over documents. "
    "The largest layer is given."
)
DIED_READING = "The base chooses them on these texts, but this checkpoint does not."


def section(subject: Subject) -> Section | None:
    """Weights, routing and dead experts against the base; None without one."""
    if subject.base is None:
        return None
    weights = static.weight_drift(subject.base, subject.model, layers=list(subject.layers))
    moved = weights.relative_change.mean("projection")
    measures = [
        Measure("expert that moved most", float(moved.max()), _place(moved), MOVED_READING),
        Measure(
            "gate embeddings",
            _mean(weights.router_relative_change),
            f"{_mean(weights.router_relative_change):.4f}",
            ROUTER_READING,
        ),
    ]
    table = {"change of experts": moved.mean("expert").values}
    figures = [("weight_drift", "Relative change of every expert.", plotting.plot(weights))]
    if subject.drift is not None:
        changed = subject.drift.changed
        measures.append(
            Measure("tokens routed otherwise", float(changed.max()), _interval(subject.drift), CHANGED_READING)
        )
        table["tokens routed otherwise"] = changed.values
        figures.append(("routing_drift", "Tokens that choose other experts.", plotting.plot(subject.drift)))
        died = _died(subject)
        measures.append(Measure("experts that died", died, ", ".join(died) or "none", DIED_READING))
    index = pd.Index(weights.layer.values, name="layer")
    return Section(f"Against {subject.base.name}", measures, pd.DataFrame(table, index=index), figures)


def _mean(values: xr.DataArray) -> float:
    return float(values.mean())


def _place(moved: xr.DataArray) -> str:
    layer, expert = np.unravel_index(int(np.nanargmax(moved.values)), moved.shape)
    return f"{moved.layer.values[layer]}.{moved.expert.values[expert]} ({float(moved.max()):.4f})"


def _interval(drift: xr.Dataset) -> str:
    one = drift.isel(layer=int(drift.changed.values.argmax()))
    interval = f" [{float(one.changed_low):.3f}, {float(one.changed_high):.3f}]" if "changed_low" in one else ""
    return f"{float(one.changed):.3f}{interval} in layer {int(one.layer)}"


def _died(subject: Subject) -> list[str]:
    after, before = (results["expert_load"].selections for results in (subject.results, subject.base_results))
    layers, experts = np.nonzero(((after == 0) & (before > 0)).transpose("layer", "expert").values)
    return [f"{after.layer.values[i]}.{after.expert.values[j]}" for i, j in zip(layers, experts, strict=True)]
