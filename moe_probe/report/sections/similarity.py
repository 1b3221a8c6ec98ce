"""Experts that are unusually similar, or dissimilar, to the others of their layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import median_abs_deviation, norm

from moe_probe import plotting, static
from moe_probe.report.section import Measure, Section, Subject

PLACE, NEEDS = 30, ()
SCALE = float(norm.ppf(0.75))  # of a median absolute deviation, to a normal distribution's standard deviation
OUTLYING = 3.5  # scaled median absolute deviations
OUTLIER_READING = (
    f"Their mean cosine with the other experts of their layer is more than {OUTLYING} scaled median absolute "
    "deviations from the layer's median (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."
)
CLOSEST_READING = (
    "The largest cosine of two experts' mean neurons (arXiv 2406.18219, section 4.1), mean over the projections. "
    "Experts copied from one dense FFN start at 1."
)


def section(subject: Subject) -> Section | None:
    """Cosines of mean neurons; None if fewer than three experts of a layer have matrices."""
    ds = static.similarity(subject.model, level="neuron_mean", layers=list(subject.layers))
    cosine = ds.cosine.mean("projection")
    if cosine.sizes["expert"] < 3:
        return None
    others = cosine.where(cosine.expert != cosine.other)
    closest = others.max(("expert", "other"))
    outliers = _outliers(others.mean("other"))
    top = closest.values.argmax()
    measures = [
        Measure("outlying experts", outliers, ", ".join(outliers) or "none", OUTLIER_READING),
        Measure(
            "closest pair",
            float(closest.max()),
            f"{float(closest.max()):.3f} in layer {int(closest.layer[int(top)])}",
            CLOSEST_READING,
        ),
    ]
    table = pd.DataFrame(
        {
            "mean cosine": others.mean(("expert", "other")).values,
            "least": others.min(("expert", "other")).values,
            "largest": closest.values,
        },
        index=pd.Index(ds.layer.values, name="layer"),
    )
    figure = plotting.plot(ds, layer=int(subject.layers[-1]))
    caption = f"Similarity of the experts' mean neurons in layer {int(subject.layers[-1])}."
    return Section("Similarity of the experts", measures, table, [("similarity", caption, figure)])


def _outliers(means: xr.DataArray) -> list[str]:
    values = means.transpose("layer", "expert").values
    spread = median_abs_deviation(values, axis=1, scale=SCALE, nan_policy="omit")[:, None]
    distance = np.abs(values - np.nanmedian(values, axis=1, keepdims=True))
    layers, experts = np.nonzero((distance > OUTLYING * spread) & (spread > 0))
    return [f"{means.layer.values[i]}.{means.expert.values[j]}" for i, j in zip(layers, experts, strict=True)]
