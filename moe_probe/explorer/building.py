"""`explore` shows the routing of models or traces on one page of HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import xarray as xr

from moe_probe import static
from moe_probe.comparisons.side_by_side import Opened, Sources, observe_each, open_sources
from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.sources import opened_source
from moe_probe.errors import NotComparable, NotFitting, OutOfRange
from moe_probe.explorer.packing import MOST_DIGITS, pack
from moe_probe.explorer.page import Subject, page_html
from moe_probe.explorer.recorded import Routing
from moe_probe.explorer.written import Written
from moe_probe.files import whole_file
from moe_probe.model import MoEModel, Openable
from moe_probe.options import DIGITS, EXPLORE_OPTIONS, PAGE_BYTES, TEXT_OPTIONS, RunOptions, completed
from moe_probe.routing import Source
from moe_probe.signatures import check_number, checked
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import token_strings
from moe_probe.traces.reading import Trace

Similar = Literal["neuron_mean", "matrix", "gate"]
MODELS = 2  # side by side


class Explorer:
    """A page that shows every token's routing; it needs no network and no server.

    A notebook shows it if it is the last expression of a cell.

    Attributes:
        html: the page.
    """

    def __init__(self, html: str, name: str):
        self.html, self.name = html, name

    def save(self, path: str | Path) -> Path:
        """Writes the page; the file appears under its name only when it is complete."""
        with whole_file(path) as partial:
            partial.write_text(self.html, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return f"Explorer({self.name!r}, {len(self.html.encode()) / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        escaped = html.escape(self.html, quote=True)
        style = "width:100%;height:820px;border:1px solid #ccc"
        return f'<iframe title="explorer of {html.escape(self.name)}" srcdoc="{escaped}" style="{style}"></iframe>'


@checked
def explore(
    source: Openable | Trace | Sources,
    texts: Texts | None = None,
    *,
    similar: Similar | xr.Dataset | None = "neuron_mean",
    vocabulary: bool = False,
    digits: int = DIGITS,
    runners_up: int | None = None,
    max_bytes: int = PAGE_BYTES,
    **options: Unpack[RunOptions],
) -> Explorer:
    """Makes a page that shows the routing of every token, and the tokens that choose each expert.

    For all tokens and layers, the page holds the chosen experts with their applied weights and router logits, and the
    logits of the runners-up. Numbers have `digits` significant digits, or fewer to fit into `max_bytes`; the page then
    says so.

    Args:
        source: a checkpoint folder, a hub id, a model, or a routing trace (its folder, or a `Trace`); two of them, as a
            list or by label, are shown side by side on the same texts.
        texts: a file of texts, or a list of texts or token ids; None for a trace, which has its own.
        similar: how to rank similar experts: `neuron_mean` or `matrix` (`static.similarity`, mean over the
            projections), `gate` (`static.gate_similarity`), a result of either, or None. For a trace, which has no
            weights, a result or None.
        vocabulary: whether to compute the tokens that each expert promotes: its mean weighted output, passed through
            the model's last norm and head. Not for traces.
        digits: significant digits of logits and weights, 1 to 6.
        runners_up: number of experts listed for each token besides the chosen ones; by default 1, and all in layers of
            up to 16 experts.
        max_bytes: size limit of the page in bytes; numbers are rounded to fit.
        options: those of `dynamic.run`, without `baseline`.

    Returns:
        The page; `save(path)` writes it.

    Raises:
        NoSuchName: there is no such `similar`.
        NotFitting: there are no texts for a model, an argument for running a model was passed with a trace, or the
            routing does not fit into the page.
        NotComparable: the two sources saw different texts, or `similar` is of another model.
        OutOfRange: a number is outside its range.
        WrongType: `similar` is not a result.
        FamilyError: the model is dense, or its MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import explorer
        >>> page = explorer.explore("ckpt/tiny-mixtral", ["A short text."], progress=False)
        >>> page.save("page.html")  # doctest: +SKIP
    """
    _check(similar, max_bytes)
    check_number("digits", digits, 1, MOST_DIGITS)
    if runners_up is not None:
        check_number("runners_up", runners_up, 0)
    asked = completed(options, EXPLORE_OPTIONS, "explore")
    opened = _opened(source)
    if all(isinstance(each, Trace) for each in opened.values()):
        _refuse_for_trace({"texts": texts, **{name: asked[name] for name in ("layers", *TEXT_OPTIONS)}})
        if vocabulary:
            raise NotFitting("A routing trace holds no outputs of experts; omit vocabulary=, or pass a model.")
    if isinstance(similar, xr.Dataset) and len(opened) > 1:
        raise NotFitting("similar is a result of one model, but the page shows two; pass a measure's name, or None.")
    analyses = [Routing(runners_up), *([Written()] if vocabulary else [])]
    subjects = [
        _subject(opened[label], label, source, analyses, similar, asked)
        for label, (source, analyses) in observe_each(opened, texts, analyses, asked).items()
    ]
    _require_common_texts(subjects)
    return _explorer(subjects, digits, max_bytes)


def _check(similar: object, max_bytes: int) -> None:
    if isinstance(similar, xr.Dataset) and "cosine" not in similar:
        name = similar.attrs.get("analysis")
        raise NotFitting(
            f"similar is a result of {name} without cosines; pass one of static.similarity or static.gate_similarity."
        )
    if max_bytes < 1:
        raise OutOfRange(f"max_bytes={max_bytes} has no room for a page; pass a size above 0, such as {PAGE_BYTES:,}.")


def _opened(source: Openable | Trace | Sources) -> Opened:
    """The models and traces of a page by label."""
    if isinstance(source, Mapping) or (isinstance(source, Sequence) and not isinstance(source, str)):
        return open_sources(source, least=1, most=MODELS)
    opened = opened_source(source)
    return {opened.name: opened}


def _refuse_for_trace(given: Mapping[str, object]) -> None:
    """Raises an error if an argument does not apply to a trace, which has its own texts and layers."""
    for name, value in given.items():
        if value is not None:
            raise NotFitting(f"A routing trace has its own texts and layers; omit {name}=, or pass a model.")


def _subject(
    opened: MoEModel | Trace,
    label: str,
    source: Source,
    analyses: Sequence[Analysis],
    similar: str | xr.Dataset | None,
    asked: Mapping[str, Any],
) -> Subject:
    """Observes a model or trace, and computes the similarity of its experts."""
    routing = next(each for each in analyses if isinstance(each, Routing))
    written = next((each for each in analyses if isinstance(each, Written)), None)
    recorded = routing.layers(source)
    if isinstance(opened, Trace):
        return Subject(label, source, recorded, similar if isinstance(similar, xr.Dataset) else None)
    near = _similarity(opened, similar, list(source.layers))
    if written is None:
        return Subject(label, source, recorded, near)
    words = written.words(opened, asked["execution"])
    ids = {int(token) for each in words.values() for token in each.ids.ravel() if token >= 0}
    return Subject(label, source, recorded, near, words, token_strings(ids, opened)[0])


def _similarity(model: MoEModel, similar: str | xr.Dataset | None, layers: Sequence[int]) -> xr.Dataset | None:
    if not isinstance(similar, str):
        return similar
    if similar == "gate":
        return static.gate_similarity(model, layers=layers)
    return static.similarity(model, similar, layers=layers)


def _require_common_texts(subjects: Sequence[Subject]) -> None:
    """Raises `NotComparable` if two models saw different texts."""
    seen = [[(d.number, d.label, d.text) for d in subject.source.corpus.documents] for subject in subjects]
    if any(each != seen[0] for each in seen):
        names = " and ".join(subject.label for subject in subjects)
        raise NotComparable(f"{names} saw different texts or labels; pass traces of the same texts.")


def _explorer(subjects: Sequence[Subject], digits: int, max_bytes: int) -> Explorer:
    around = page_html(subjects, [{} for _ in subjects], digits)
    room = max_bytes - len(around.encode())
    if room <= 0:
        raise NotFitting(
            f"max_bytes={max_bytes:,} is less than the {max_bytes - room:,} bytes that the page takes without any "
            "routing; pass a larger one."
        )
    digits, packed = pack([subject.recorded for subject in subjects], room, digits)
    return Explorer(page_html(subjects, packed, digits), " and ".join(subject.label for subject in subjects))
