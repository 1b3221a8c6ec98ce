"""The smallest set of experts that one label needs and the other labels do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.intervene.chance import check_seed
from moe_probe.intervene.measured.attributing import attribution
from moe_probe.intervene.measured.effects import DRAWS, effect
from moe_probe.intervene.measured.intervals import check_draws, pooled, with_ends
from moe_probe.intervene.zero import Zero
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import ATTRIBUTION_OPTIONS, TEXT_OPTIONS, RunOptions, completed
from moe_probe.results import dataset, provenance, variable
from moe_probe.signatures import check_number, check_types
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import make_corpus

AT_ONCE = 8  # sizes that are measured together
Cell = tuple[int, int]


def search(
    model: Openable,
    texts: Texts,
    label: str,
    raised_by: float,
    *,
    spared: float = 0.05,
    most: int = 64,
    controls: int = 4,
    seed: int = 0,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Finds the smallest set of experts whose removal raises the loss of one label, but not that of others.

    `attribution` ranks experts by the estimated rise of the label's loss without them, minus the estimated change of
    the other documents' loss. The search then measures sets of the first 1, 2, 4, ... experts with `Zero`, and sizes in
    between, until it knows the smallest set that meets the conditions. It also measures random sets with the same
    number of experts in each layer.

    Args:
        model: a checkpoint folder, a hub id or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`; with labels.
        label: the label whose loss is to rise.
        raised_by: smallest rise of its loss, nats per token.
        spared: largest change of the loss of the other documents, nats per token.
        most: largest number of experts in a set.
        controls: number of random sets.
        seed: of the random sets.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run`: `layers`, how to read texts, `batch_tokens`, `execution`, `progress`.

    Returns:
        Dataset with `removed_layer` and `removed_expert` (rank), the ranked experts; `loss_change` (size, side), nats,
        the measured change, where side is `label` or `others`, with `_low` and `_high`, the 95 % interval; and
        `control_loss_change` (control, side), nats, for random sets as large as the one found. `attrs["found"]` is the
        size of the smallest set that meets the conditions, 0 if no measured set does.

    Raises:
        InputError: no text has the label, or all texts have it.

    Examples:
        >>> from moe_probe import intervene
        >>> texts = {"a": ["A short text."], "b": ["12 * 3 = 36"]}
        >>> intervene.search("ckpt/tiny-mixtral", texts, "a", 0.01, most=4).attrs["found"] <= 4
        True
    """
    check_types(search, {"label": label})
    check_number("raised_by", raised_by, 0, 1e6, whole=False)
    check_number("spared", spared, 0, 1e6, whole=False)
    check_number("most", most, 1, 1 << 20)
    check_number("controls", controls, 0, 1 << 10)
    check_seed(seed)
    check_draws(bootstrap)
    asked = completed(options, ATTRIBUTION_OPTIONS, "search")
    opened = load(model)
    corpus = make_corpus(opened, texts, **{name: asked[name] for name in TEXT_OPTIONS})
    of_label = label_flags(corpus, label)
    running = {name: asked[name] for name in ("batch_tokens", "execution", "progress")}
    ranked = rank(opened, corpus, of_label, asked["layers"], running)[:most]
    trial = Trial(opened, corpus, of_label, running, bootstrap)
    size = trial.smallest(ranked, raised_by, spared)
    sets = [random_set(opened, ranked[: size or len(ranked)], seed + number) for number in range(controls)]
    control = trial.measure(sets) if sets else np.zeros((3, 0, 2))
    about = provenance("search", opened, label=label, raised_by=raised_by, spared=spared, most=most, seed=seed)
    about |= {"found": size, "documents": len(corpus.documents), "texts": corpus.fingerprint}
    return _result(ranked, trial, control, about)


def label_flags(corpus: Corpus, label: str) -> np.ndarray:
    """Whether each document has the label.

    Raises:
        NoSuchName: no document has it.
        NotFitting: all documents have it.
    """
    labels = [document.label for document in corpus.documents]
    if label not in labels:
        raise NoSuchName.among("label of the texts", label, sorted(set(labels) - {""}))
    if len(set(labels)) < 2:
        raise NotFitting(f"All texts have the label {label!r}; pass others too, whose loss should not change.")
    return np.array([each == label for each in labels])


def rank(model: MoEModel, corpus: Corpus, of_label: np.ndarray, layers: Any, options: Mapping[str, Any]) -> list[Cell]:
    """Experts that would raise the label's loss, in descending order of need by the label minus need by others."""
    estimate = attribution(model, corpus, layers=layers, bootstrap=0, **options)
    by_document, predicted = estimate.document_loss_change.values, predicted_tokens(corpus)

    def mean(documents: np.ndarray) -> np.ndarray:
        used = documents & (predicted > 0)
        return np.tensordot(predicted[used], by_document[used], 1) / max(predicted[used].sum(), 1)

    of_set, others = mean(of_label), mean(~of_label)
    gain = np.where(np.isfinite(of_set), of_set - np.abs(others), -np.inf)
    order = np.argsort(-gain, axis=None, kind="stable")
    cells = [np.unravel_index(place, gain.shape) for place in order if of_set.flat[place] > 0]
    if not cells:
        raise NotFitting("No expert's removal is estimated to raise the loss of that label; choose another label.")
    names = estimate.layer.values
    return [(int(names[row]), int(column)) for row, column in cells]


def predicted_tokens(corpus: Corpus) -> np.ndarray:
    """Number of tokens without the first of each document."""
    return np.array([len(document.ids) - 1 for document in corpus.documents], float)


class Trial:
    """Sets of removed experts, and the effect on both sides.

    Attributes:
        tried: by size, (value, low, high) x (label, others), nats.
    """

    def __init__(self, model: MoEModel, corpus: Corpus, of_label: np.ndarray, options: Mapping[str, Any], draws: int):
        self.model, self.corpus, self.of_label, self.options, self.draws = model, corpus, of_label, options, draws
        self.tried: dict[int, np.ndarray] = {}

    def measure(self, sets: Sequence[Sequence[Cell]]) -> np.ndarray:
        """Change of the loss without each of some sets: (value, low, high), (set), (label, others)."""
        edits = {str(number): removal(cells) for number, cells in enumerate(sets)}
        measured = effect(self.model, self.corpus, edits, control=False, bootstrap=0, **self.options)
        predicted = predicted_tokens(self.corpus)
        sums = np.nan_to_num(measured.loss_change.sel(path="total").values) * predicted
        sides = [pooled(sums[:, side].T, predicted[side], self.draws) for side in (self.of_label, ~self.of_label)]
        return np.stack([np.stack(each) for each in sides], -1)

    def smallest(self, ranked: Sequence[Cell], raised_by: float, spared: float) -> int:
        """Size of the smallest set of first experts that raises one side's loss but not the other's; 0 for none."""
        doubled = 2 ** np.arange(int(np.log2(len(ranked))) + 1)
        waiting = sorted({*doubled.tolist(), len(ranked)})
        smallest = 0
        while waiting:
            values = self.measure([ranked[:size] for size in waiting])
            self.tried |= {size: values[:, place] for place, size in enumerate(waiting)}
            smallest = min((size for size in self.tried if self._does(size, raised_by, spared)), default=0)
            below = max((size for size in self.tried if size < smallest), default=0)
            between = (
                np.unique(np.linspace(below + 1, smallest - 1, AT_ONCE).astype(int)) if smallest - below > 1 else []
            )
            waiting = [int(size) for size in between if size not in self.tried]
        return smallest

    def _does(self, size: int, raised_by: float, spared: float) -> bool:
        raised, others = self.tried[size][0]
        return raised >= raised_by and abs(others) <= spared


def removal(cells: Sequence[Cell]) -> list[Zero]:
    """Interventions that remove these experts."""
    layers = sorted({layer for layer, _ in cells})
    return [Zero(layer, [expert for at, expert in cells if at == layer]) for layer in layers]


def random_set(model: MoEModel, cells: Sequence[Cell], seed: int) -> list[Cell]:
    """A random set with the same number of experts in each layer."""
    generator, removed = np.random.default_rng(seed), []
    for layer in sorted({layer for layer, _ in cells}):
        count = sum(at == layer for at, _ in cells)
        drawn = generator.choice(model.layer(layer).num_experts, count, replace=False)
        removed += [(layer, int(expert)) for expert in drawn]
    return removed


def _result(ranked: Sequence[Cell], trial: Trial, control: np.ndarray, about: Mapping[str, Any]) -> xr.Dataset:
    sizes = sorted(trial.tried)
    tried = np.stack([trial.tried[size] for size in sizes], 1)
    coords = {"rank": range(len(ranked)), "size": sizes, "control": range(control.shape[1])}
    coords |= {"side": ["label", "others"]}
    text = "change of the loss"
    variables = {
        "removed_layer": variable(("rank",), [layer for layer, _ in ranked], "layer of the expert", "layer index"),
        "removed_expert": variable(("rank",), [expert for _, expert in ranked], "expert", "expert index"),
        **with_ends("loss_change", ("size", "side"), tried, text),
        **with_ends("control_loss_change", ("control", "side"), control, f"{text} without a random set"),
    }
    return dataset(variables, about, coords)
