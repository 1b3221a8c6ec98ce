"""Theory and measurement of the FFN experts' share as a table (MoE++, arXiv 2410.07348, table 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import xarray as xr
from matplotlib.transforms import Bbox

from moe_probe.plotting._page import Drawn, Look, Page
from moe_probe.plotting._style import PAGE, Figure

COLUMNS = ["", "FFN experts", "zero-computation\nexperts", "share of choices\nto FFN experts", "FFN experts\nper token"]
NARROW = ["", "FFN\nexperts", "zero-cost\nexperts", "share\nto FFN", "FFN per\ntoken"]  # in narrow figures
WIDTHS = (0.3, 0.175, 0.175, 0.175, 0.175)
DIMS = ("tau",)
OVER_LAYERS = (
    "theory",
    "theory_ffn_per_token",
    "measured_mean",
    "measured_ffn_per_token_mean",
    "ffn_experts",
    "zero_computation_experts",
    "top_k",
)


def plot(ds: xr.Dataset, **look: Unpack[Look]) -> Drawn:
    """Draws a table with a row for MoE, for every tau, and for the measurement.

    Args:
        ds: result of `dynamic.complexity`.
        look: options of all plots: `ax=` or `axes=`, `figsize=` in inches, `labels=` and `title=`.

    Examples:
        >>> from moe_probe import dynamic, plotting
        >>> ds = dynamic.complexity("ckpt/tiny-moe-plus-plus", ["A short text."])
        >>> figure = plotting.plot(ds)
    """
    ffn, zero = int(ds.ffn_experts), int(ds.zero_computation_experts)
    rows = [["MoE, O(T)", str(ffn), "0", "1", str(int(ds.top_k))]]
    for tau in ds.tau.values:
        one = ds.sel(tau=tau)
        share, count = float(one.theory), float(one.theory_ffn_per_token)
        rows.append([f"MoE++, tau = {tau:g}", str(ffn), str(zero), f"{share:.4f}", f"{count:.4f}"])
    share, count = float(ds.measured_mean), float(ds.measured_ffn_per_token_mean)
    rows.append(["measured", str(ffn), str(zero), f"{share:.4f}", f"{count:.4f}"])
    with Page(ds, look) as page:
        axes = page.panel((PAGE, 0.55 + 0.24 * len(rows)))
        axes.axis("off")
        table = axes.table(
            rows,
            colLabels=NARROW if page.narrow else COLUMNS,
            colWidths=WIDTHS,
            cellLoc="center",
            bbox=Bbox.unit(),
            edges="horizontal",
        )
        table.auto_set_font_size(False)
        table.set_fontsize(7 if page.narrow else 8)
        for column in range(len(COLUMNS)):
            table[0, column].set_height(2 * table[1, column].get_height())
        return page.finish(page.ds.attrs["model"])


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """The table: (file stem, figure)."""
    yield "complexity", plot(ds)
