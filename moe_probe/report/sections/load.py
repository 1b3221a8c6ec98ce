"""Balance of the experts' load, and dead, cold and hot experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moe_probe import plotting
from moe_probe.report.section import Measure, Section, Subject

PLACE, NEEDS = 20, ("expert_load",)
COLD, HOT = 0.1, 2.0  # times the mean load
DEAD_READING = (
    "No token of these texts chooses them. More or other texts may; an expert that none chooses can be removed."
)
COLD_READING = f"Their load is below {COLD} of the mean of their layer (a threshold of this report)."
HOT_READING = (
    f"Their load is above {HOT:g} times the mean of their layer: more than the capacity that GShard gives an expert "
    "(arXiv 2006.16668, section 2.2), so a system with such a capacity drops tokens."
)
ENTROPY_READING = "Entropy of the load over ln E: 1 is an even load, 0 a single expert. The lowest layer is given."
VIOLATION_READING = (
    "MaxVio, the largest load over the mean, minus 1 (arXiv 2408.15664): 0 is an even load. The largest layer is given."
)


def section(subject: Subject) -> Section | None:
    """Loads by layer; None without texts."""
    ds = subject.results.get("expert_load")
    if ds is None:
        return None
    groups = {
        "dead experts": (_named(ds, ds.selections == 0), DEAD_READING),
        "cold experts": (_named(ds, (ds.selections > 0) & (relative(ds) < COLD)), COLD_READING),
        "hot experts": (_named(ds, relative(ds) > HOT), HOT_READING),
    }
    measures = [Measure(name, experts, _listed(experts), reading) for name, (experts, reading) in groups.items()]
    entropy, violation = ds.entropy, ds.max_violation
    measures += [
        Measure("lowest entropy", float(entropy.min()), _at(entropy, entropy.values.argmin()), ENTROPY_READING),
        Measure(
            "largest violation", float(violation.max()), _at(violation, violation.values.argmax()), VIOLATION_READING
        ),
    ]
    figure = plotting.plot(ds)
    return Section("Load of the experts", measures, _table(ds), [("expert_load", "Load by layer and expert.", figure)])


def relative(ds: xr.Dataset) -> xr.DataArray:
    """Loads, (layer, expert), over the mean of their layer."""
    return ds.selections / ds.selections.mean("expert")


def _named(ds: xr.Dataset, where: xr.DataArray) -> list[str]:
    """`layer.expert` of the marked experts."""
    layers, experts = np.nonzero(where.transpose("layer", "expert").values)
    return [f"{ds.layer.values[i]}.{ds.expert.values[j]}" for i, j in zip(layers, experts, strict=True)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    return f"{len(names)}: {shown} (layer.expert)" if names else "none"


def _at(values: xr.DataArray, where: xr.DataArray) -> str:
    value = values.isel(layer=int(where))
    return f"{float(value):.3f} in layer {int(value.layer)}"


def _table(ds: xr.Dataset) -> pd.DataFrame:
    load = relative(ds)
    return pd.DataFrame(
        {
            "entropy": ds.entropy.values,
            "MaxVio": ds.max_violation.values,
            "least load / mean": load.min("expert").values,
            "largest load / mean": load.max("expert").values,
            "dead": (ds.selections == 0).sum("expert").values,
        },
        index=pd.Index(ds.layer.values, name="layer"),
    )
