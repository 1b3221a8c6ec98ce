"""The router's two highest scores with and without gating residuals (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from moe_probe.plotting._choices import pick_layer
from moe_probe.plotting._style import BLUE, ORANGE, PAGE, Figure, style

COLORS = {"highest": BLUE, "second": ORANGE}
DIMS = ("layer", "bin", "which", "residual")


def plot(ds: xr.Dataset, layer: int | None = None) -> Figure:
    """Histograms with the residual and with it removed, of all layers or of one.

    Args:
        ds: result of `comparisons.gating_residual`.
        layer: all together by default.

    Examples:
        >>> from moe_probe import comparisons, plotting
        >>> ds = comparisons.gating_residual("ckpt/tiny-moe-plus-plus", ["A short text."])
        >>> figure = plotting.plot(ds, layer=2)
    """
    prefix, own = ("pooled_", ds) if layer is None else ("", ds.sel(layer=pick_layer(ds, layer)))
    width = float(ds.bin[1] - ds.bin[0]) if ds.sizes["bin"] > 1 else 1.0
    with style():
        figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
        both = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, residual in zip(both, ds.residual.values, strict=True):
            one = own.sel(residual=residual)
            for which, color in COLORS.items():
                count = one[f"{prefix}histogram"].sel(which=which)
                moments = [float(one[f"{prefix}{name}"].sel(which=which)) for name in ("score_mean", "score_variance")]
                label = f"{which}: mean {moments[0]:.3f}, variance {moments[1]:.2g}"
                axes.bar(ds.bin, count / count.sum(), width, align="edge", color=color, alpha=0.6, label=label)
            axes.set(xlabel="routing score", title=f"gating residual: {residual}")
            axes.legend(frameon=False, loc="upper right")
        both[0].set_ylabel("share of tokens")
        both[0].set_ylim(top=both[0].get_ylim()[1] * 1.25)
        figure.suptitle(f"{ds.attrs['model']}, {'all layers' if layer is None else f'layer {layer}'}")
        return figure


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """Of all layers, and of each one: (file stem, figure)."""
    yield "gating_residual", plot(ds)
    for layer in ds.layer.values:
        yield f"gating_residual_layer{layer}", plot(ds, int(layer))
