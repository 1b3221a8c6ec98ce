"""`explore`: a model, or a trace of it, as one page of HTML."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from moe_probe import dynamic, static
from moe_probe.errors import InputError
from moe_probe.explorer.packing import STEPS, Packed, pack
from moe_probe.explorer.page import page_html
from moe_probe.explorer.recorded import recorded_layers
from moe_probe.files import whole_file
from moe_probe.model import Source, load
from moe_probe.texts.corpus import Texts
from moe_probe.traces.reading import Trace, is_trace, read_trace

SIMILAR = ("neuron_mean", "matrix", "gate")
MAX_BYTES = 30_000_000


class Explorer:
    """A page that shows every token's routing; it needs no network and no server.

    In a notebook, the last expression of a cell shows it in place.

    Attributes:
        html: the page.
    """

    def __init__(self, html: str, name: str):
        self.html, self.name = html, name

    def save(self, path: str | Path) -> Path:
        """Write the page; it appears under its name only when it is complete."""
        with whole_file(path) as partial:
            partial.write_text(self.html, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return f"Explorer({self.name!r}, {len(self.html) / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        escaped = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{escaped}" style="width:100%;height:820px;border:1px solid #ccc"></iframe>'


def explore(
    source: Source | Trace,
    texts: Texts | None = None,
    *,
    similar: str | xr.Dataset | None = "neuron_mean",
    max_bytes: int = MAX_BYTES,
    layers: Sequence[int] | int | None = None,
    labels: Sequence[str] | str | None = None,
    column: str | None = None,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    execution: str = "auto",
    progress: bool = True,
) -> Explorer:
    """A page with every token of the texts coloured by its expert, and all that its routing is made of.

    The page holds router logits, choices and applied weights of all tokens, layers and experts, rounded as finely as
    `max_bytes` allows; it says to which step.

    Args:
        source: whatever `moe_probe.load` accepts, or a routing trace (its folder, or opened).
        texts: as for `dynamic.run`; not for a trace.
        similar: what the most similar experts are told by: `neuron_mean` or `matrix` (`static.similarity`, mean over
            the projections), `gate` (`static.gate_similarity`), a result of either, or None. A trace has no weights,
            so it takes a result or goes without.
        max_bytes: of the page.
        layers: as for `dynamic.run`.
        labels: as for `dynamic.run`.
        column: as for `dynamic.run`.
        max_length: as for `dynamic.run`.
        batch_tokens: as for `dynamic.run`.
        execution: as for `dynamic.run`.
        progress: as for `dynamic.run`.

    Raises:
        InputError: a model comes without texts, the routing does not fit into the page, or there is no such `similar`.
        FamilyError: the model is dense, or its MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import explorer
        >>> page = explorer.explore("ckpt/tiny-mixtral", ["A short text."], progress=False)
        >>> page.save("page.html")  # doctest: +SKIP
    """
    if isinstance(source, Trace) or (isinstance(source, str | Path) and is_trace(source)):
        trace = source if isinstance(source, Trace) else read_trace(source)
        near = similar if isinstance(similar, xr.Dataset) else None
        return _explorer(trace, near, max_bytes)
    model = load(source)
    if texts is None:
        raise InputError(f"{model.name} is no routing trace, so it needs texts to run on.")
    if isinstance(similar, str) and similar not in SIMILAR:
        raise InputError(f"similar is one of {', '.join(SIMILAR)}, a result, or None; not {similar!r}.")
    chosen = model.select_layers(layers)
    corpus = dynamic.make_corpus(model, texts, labels=labels, column=column, max_length=max_length)
    with tempfile.TemporaryDirectory() as folder:
        running = {"batch_tokens": batch_tokens, "execution": execution, "progress": progress}
        dynamic.run(model, corpus, [dynamic.RoutingTrace(folder)], layers=chosen, **running)
        near = similar
        if similar == "gate":
            near = static.gate_similarity(model, layers=chosen)
        elif isinstance(similar, str):
            near = static.similarity(model, similar, layers=chosen)
        return _explorer(read_trace(folder), near, max_bytes)


def _explorer(trace: Trace, near: xr.Dataset | None, max_bytes: int) -> Explorer:
    recorded = recorded_layers(trace)
    around = page_html(trace, recorded, near, Packed(STEPS[0], STEPS[0], {}))
    packed = pack(recorded, max_bytes - len(around.encode()))
    return Explorer(page_html(trace, recorded, near, packed), trace.name)
