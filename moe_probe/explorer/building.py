"""`explore`: a model, or a trace of it, as one page of HTML."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Unpack, get_args

import xarray as xr

from moe_probe import dynamic, static
from moe_probe.dynamic.sources import opened_source
from moe_probe.errors import NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.explorer.packing import STEPS, Packed, pack
from moe_probe.explorer.page import page_html
from moe_probe.explorer.recorded import recorded_layers
from moe_probe.files import whole_file
from moe_probe.model import MoEModel, Openable
from moe_probe.options import EXPLORE_OPTIONS, PAGE_BYTES, TEXT_OPTIONS, RunOptions, completed
from moe_probe.texts.reading import Texts
from moe_probe.traces.reading import Trace, read_trace

Similar = Literal["neuron_mean", "matrix", "gate"]
SIMILAR: tuple[str, ...] = get_args(Similar)


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
    source: Openable | Trace,
    texts: Texts | None = None,
    *,
    similar: Similar | xr.Dataset | None = "neuron_mean",
    max_bytes: int = PAGE_BYTES,
    **options: Unpack[RunOptions],
) -> Explorer:
    """A page with every token of the texts colored by its expert, and all that its routing is made of.

    The page holds router logits, choices and applied weights of all tokens, layers and experts, rounded as finely as
    `max_bytes` allows; it says to which step.

    Args:
        source: a checkpoint folder, a hub id, a model, or a routing trace (its folder, or opened).
        texts: a file of texts, or a list of texts or token ids; a trace has its own.
        similar: what the most similar experts are told by: `neuron_mean` or `matrix` (`static.similarity`, mean over
            the projections), `gate` (`static.gate_similarity`), a result of either, or None. A trace has no weights,
            so it takes a result or goes without.
        max_bytes: size limit of the page; numbers are rounded to fit.
        options: those of `dynamic.run`, without `baseline`.

    Raises:
        NoSuchName: there is no such `similar`.
        NotFitting: a model comes without texts, a trace with arguments for running a model, or the routing does not fit
            into the page.
        OutOfRange, WrongType: `max_bytes` is no size, `similar` no result.
        FamilyError: the model is dense, or its MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import explorer
        >>> page = explorer.explore("ckpt/tiny-mixtral", ["A short text."], progress=False)
        >>> page.save("page.html")  # doctest: +SKIP
    """
    _check(similar, max_bytes)
    asked = completed(options, EXPLORE_OPTIONS, "explore")
    opened = opened_source(source)
    if isinstance(opened, Trace):
        _refuse_for_trace({"texts": texts, **{name: asked[name] for name in ("layers", *TEXT_OPTIONS)}})
        return _explorer(opened, similar if isinstance(similar, xr.Dataset) else None, max_bytes)
    with tempfile.TemporaryDirectory() as folder:
        dynamic.run(opened, texts, [dynamic.RoutingTrace(folder)], **asked)
        chosen = opened.select_layers(asked["layers"])
        return _explorer(read_trace(folder), _similarity(opened, similar, chosen), max_bytes)


def _check(similar: object, max_bytes: object) -> None:
    if isinstance(similar, str) and similar not in SIMILAR:
        raise NoSuchName.among("measure of similar experts", similar, SIMILAR)
    if not isinstance(similar, str | xr.Dataset | None):
        raise WrongType(
            f"similar is a {type(similar).__name__}; pass one of {', '.join(SIMILAR)}, a result of static.similarity "
            "or static.gate_similarity, or None."
        )
    if isinstance(similar, xr.Dataset) and "cosine" not in similar:
        name = similar.attrs.get("analysis")
        raise NotFitting(f"similar is a result of {name} without cosines; pass one of similarity or gate_similarity.")
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool):
        raise WrongType(f"max_bytes={max_bytes!r} is not a whole number of bytes; the default is {PAGE_BYTES:,}.")
    if max_bytes < 1:
        raise OutOfRange(f"max_bytes={max_bytes} leaves no page; pass a size above 0, such as {PAGE_BYTES:,}.")


def _refuse_for_trace(given: Mapping[str, object]) -> None:
    """Refuse what a trace cannot take: it holds its texts and layers already."""
    for name, value in given.items():
        if value is not None:
            raise NotFitting(f"A routing trace holds its texts and layers already; omit {name}=, or pass a model.")


def _similarity(model: MoEModel, similar: str | xr.Dataset | None, layers: Sequence[int]) -> xr.Dataset | None:
    if not isinstance(similar, str):
        return similar
    if similar == "gate":
        return static.gate_similarity(model, layers=layers)
    return static.similarity(model, similar, layers=layers)


def _explorer(trace: Trace, near: xr.Dataset | None, max_bytes: int) -> Explorer:
    recorded = recorded_layers(trace)
    around = page_html(trace, recorded, near, Packed(STEPS[0], STEPS[0], {}))
    room = max_bytes - len(around.encode())
    if room <= 0:
        raise NotFitting(
            f"max_bytes={max_bytes:,} is less than the {max_bytes - room:,} bytes that the page takes without any "
            "routing; pass a larger one."
        )
    packed = pack(recorded, room)
    return Explorer(page_html(trace, recorded, near, packed), trace.name)
