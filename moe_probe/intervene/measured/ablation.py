"""Importance of each expert: the loss without it, one expert at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import xarray as xr

from moe_probe.forward.running import Running
from moe_probe.intervene.choosing import ALL
from moe_probe.intervene.mask import Mask
from moe_probe.intervene.mean import Mean
from moe_probe.intervene.measured.effects import (
    DEFINITION,
    DRAWS,
    experiment_source,
    lengths,
    told_of,
    variant_of,
)
from moe_probe.intervene.measured.intervals import check_draws, pooled, with_ends
from moe_probe.intervene.measured.measures import Measures
from moe_probe.intervene.measured.runs import BaseRun, measure
from moe_probe.intervene.zero import Zero
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import ABLATE_OPTIONS, RunOptions, completed
from moe_probe.results import dataset, provenance, variable
from moe_probe.routing import Intervention
from moe_probe.signatures import check_types
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts

How = Literal["zero", "mask", "mean"]
KINDS: Mapping[str, type[Zero | Mask | Mean]] = {"zero": Zero, "mask": Mask, "mean": Mean}
SUMS = ("loss_change", "kl", "changed")
BLOCKS = 1024  # of units that are kept apart: documents, or the clusters that they belong to


class PerBlock:
    """Measures of each variant, summed over the documents of each label and block of documents.

    Units are assigned to blocks by their number, which depends on their content, so that memory does not grow with the
    texts.

    Attributes:
        values: by name, (blocks, labels, variants).
    """

    def __init__(self, variants: int, corpus: Corpus):
        self.labels = sorted({document.label for document in corpus.documents})
        self.label = {document.number: self.labels.index(document.label) for document in corpus.documents}
        self.block = {document.number: document.unit % BLOCKS for document in corpus.documents}
        self.values = {name: np.zeros((BLOCKS, len(self.labels), variants)) for name in SUMS}

    def add(self, measures: Measures) -> None:
        """Adds the measures of some rows."""
        documents = measures.document.tolist()
        block, label = (np.array([of[number] for number in documents], int) for of in (self.block, self.label))
        for name in SUMS:
            np.add.at(self.values[name], (block, label, measures.variant), getattr(measures, name))

    def merge(self, other: PerBlock) -> None:
        """Adds the measures of other documents."""
        for name, values in other.values.items():
            at = [self.labels.index(label) for label in other.labels]
            self.values[name][:, at] += values

    def state(self) -> Mapping[str, np.ndarray]:
        return self.values

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.values = dict(state)


def ablate(
    model: Openable,
    texts: Texts,
    how: How = "zero",
    *,
    experts: Sequence[int] | int | None = None,
    direct: bool = False,
    by_unit: bool = False,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Measures the change of the loss without one expert, for each expert of each layer.

    Layers before the edited one never run again, and several experts run together. For `zero` and `mean`, documents in
    which no token chose the expert do not run, because the edit cannot change them. Layerwise, weights are read once
    for all edits (and once more for `mean`, to compute the means).

    Args:
        model: a checkpoint folder, a hub id or a model; interventions that it has are part of the unedited run.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        how: `zero` (weight 0), `mask` (the router chooses as if the expert were deleted) or `mean` (its mean output).
        experts: numbers of experts; all by default.
        direct: also measure the direct effect, with the routing of later layers replayed from the unedited run.
        by_unit: also return the sums behind the intervals, for statistics of several experts together.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline`; `layers` are the edited layers, and with `checkpoint_dir` an
            interrupted run resumes.

    Returns:
        Dataset, float64, nan for experts that a layer does not have, with

        - `loss_change` (path, layer, expert), the mean change over all predicted tokens, nats, positive for harm; path
          is `total` or `direct`; with `_low` and `_high`, the 95 % interval over documents;
        - `kl` (path, layer, expert), the mean of KL(unedited || edited) over all positions, nats, of float32
          log-probabilities, whose rounding is up to 1e-6 nats and may be below 0;
        - `top1` (path, layer, expert), the share of positions whose most likely next token stays;
        - `label_loss_change` (path, label, layer, expert), with its interval, if documents have labels;
        - `base_loss` (), nats;
        - `chosen` (layer, expert), choices in the unedited run, and `control_loss_change` (path, layer, expert), the
          change without the other expert of the layer with the nearest number of choices;
        - with `by_unit`, `unit_loss_change` (unit, path, layer, expert), nats, summed over the predicted tokens of each
          unit, and `unit_tokens` (unit), their number. A unit is a document or a cluster of documents, or several of
          them if there are more than 1024.

    Raises:
        InputError: a layer or expert does not exist, a mask leaves too few experts, or the texts are too short to
            predict anything.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import intervene
        >>> intervene.ablate("ckpt/tiny-mixtral", ["A short text."], layers=[1]).loss_change.sizes["expert"]
        8
    """
    check_types(ablate, {"how": how, "experts": experts, "direct": direct, "by_unit": by_unit})
    check_draws(bootstrap)
    asked = completed(options, ABLATE_OPTIONS, "ablate")
    opened = load(model)
    chosen = opened.select_layers(asked["layers"])
    cells = [(layer, expert) for layer in chosen for expert in experts_of(opened, layer, experts)]
    edits = [KINDS[how](layer, [expert]) for layer, expert in cells]
    for edit in edits:
        edit.check(opened)
    paths = ("total", "direct") if direct else ("total",)
    source = experiment_source(opened, texts, {**asked, "layers": None}, [])
    told = told_of_all(source, how, chosen, edits)
    variants = [variant_of(opened, [edit], path) for path in paths for edit in told]
    collected, unedited = measure(source, variants, partial(PerBlock, len(variants)), asked, "ablate")
    grid, corpus = Grid(cells, paths), source.corpus
    variables = _result(collected, unedited, grid, corpus, bootstrap)
    if by_unit:
        variables |= _of_units(collected, grid, corpus)
    about = provenance("ablate", source.model, how=how, bootstrap=bootstrap, paths=list(paths))
    about |= {"documents": len(corpus.documents), "tokens": corpus.num_tokens, "texts": corpus.fingerprint}
    about["definition"] = f"{HOW[how]} {DEFINITION}"
    experts_named = [str(expert) for expert in grid.experts]
    coords = {"path": list(paths), "label": collected.labels, "layer": grid.layers, "expert": experts_named}
    return dataset(variables, about, coords)


def experts_of(model: MoEModel, layer: int, experts: Sequence[int] | int | None) -> Sequence[int]:
    """Experts of a layer to ablate."""
    if experts is None:
        return range(model.layer(layer).num_experts)
    return [experts] if isinstance(experts, int) else list(experts)


def told_of_all(
    source: Running, how: str, layers: Sequence[int], edits: Sequence[Intervention]
) -> Sequence[Intervention]:
    """The edits; all of them take their means from one run."""
    if how != "mean":
        return edits
    told: Any = told_of(source, [Mean(layer, ALL) for layer in layers])
    of = {each.layer: each.of for each in told}
    return [edit.told(of[edit.layer]) for edit in edits if isinstance(edit, Mean)]


def alike(counts: np.ndarray) -> np.ndarray:
    """For each expert, the other expert with the nearest count, (E,); the one with the smaller number in a tie."""
    apart = np.abs(counts[:, None] - counts[None]).astype(float)
    np.fill_diagonal(apart, np.inf)
    return apart.argmin(1)


class Grid:
    """The order of an ablation's variants: all cells of the first path, then those of the next one."""

    def __init__(self, cells: Sequence[tuple[int, int]], paths: Sequence[str]):
        self.paths, self.cells = paths, len(cells)
        self.layers, self.experts = (sorted(set(each)) for each in zip(*cells, strict=True))
        self.row = [self.layers.index(layer) for layer, _ in cells]
        self.column = [self.experts.index(expert) for _, expert in cells]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Reshapes (..., variants) to (..., path, layer, expert); nan for missing experts."""
        by_path = values.reshape(*values.shape[:-1], len(self.paths), self.cells)
        grid = np.full((*by_path.shape[:-1], len(self.layers), len(self.experts)), np.nan)
        grid[..., self.row, self.column] = by_path
        return grid


def _result(collected: PerBlock, unedited: BaseRun, grid: Grid, corpus: Corpus, draws: int) -> dict[str, xr.DataArray]:
    predicted, tokens = _counts(corpus, collected)
    change, positions = collected.values["loss_change"], tokens.sum()
    same_choice = 1 - collected.values["changed"].sum((0, 1)) / positions
    over_all = [grid.of(values) for values in pooled(change.sum(1), predicted.sum(1), draws)]
    control = _control(over_all[0], unedited, grid.layers, grid.experts)
    variables = {
        "base_loss": variable((), unedited.total.sum() / predicted.sum(), "loss of the unedited run", "nats"),
        "kl": variable(
            DIMS, grid.of(collected.values["kl"].sum((0, 1)) / positions), "KL from the unedited run", "nats"
        ),
        "top1": variable(DIMS, grid.of(same_choice), "next token kept"),
        **with_ends("loss_change", DIMS, over_all, CHANGE),
        "chosen": variable(DIMS[1:], _counts_of(unedited, grid), "choices in the unedited run", "choices"),
        "control_loss_change": variable(DIMS, control, CONTROL, "nats"),
    }
    if not any(collected.labels):
        return variables
    of_labels = zip(np.moveaxis(change, 1, 0), predicted.T, strict=True)
    by_label = [[grid.of(values) for values in pooled(*each, draws)] for each in of_labels]
    ends = np.moveaxis(np.array(by_label), [0, 1], [2, 0])  # (ends, path, label, layer, expert)
    return variables | with_ends("label_loss_change", LABEL_DIMS, ends, f"{CHANGE} by label")


def _of_units(collected: PerBlock, grid: Grid, corpus: Corpus) -> dict[str, xr.DataArray]:
    predicted = _counts(corpus, collected)[0].sum(1)
    there = predicted > 0
    sums = grid.of(collected.values["loss_change"].sum(1)[there])
    return {
        "unit_loss_change": variable(("unit", *DIMS), sums, f"{CHANGE}, summed over a unit's tokens", "nats"),
        "unit_tokens": variable(("unit",), predicted[there], "predicted tokens of a unit", "tokens"),
    }


def _counts_of(unedited: BaseRun, at: Grid) -> np.ndarray:
    """Number of choices of each expert in the unedited run, (layers, experts); nan for missing experts."""
    grid = np.full((len(at.layers), len(at.experts)), np.nan)
    for row, layer in enumerate(at.layers):
        counts = unedited.chosen[layer]
        there = [expert for expert in at.experts if expert < len(counts)]
        grid[row, : len(there)] = counts[there]
    return grid


def _control(values: np.ndarray, unedited: BaseRun, layers: Sequence[int], experts: Sequence[int]) -> np.ndarray:
    """The change of the loss without the control, an expert chosen about as often; nan if it was not measured."""
    control = np.full_like(values, np.nan)
    for row, layer in enumerate(layers):
        other = alike(unedited.chosen[layer])
        for place, expert in enumerate(experts):
            if expert < len(other) and int(other[expert]) in experts:
                control[:, row, place] = values[:, row, experts.index(int(other[expert]))]
    return control


def _counts(corpus: Corpus, collected: PerBlock) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of predicted tokens and of all tokens, by block and label."""
    predicted, tokens = np.zeros((2, BLOCKS, len(collected.labels)))
    for document, length in zip(corpus.documents, lengths(corpus).tolist(), strict=True):
        place = collected.block[document.number], collected.label[document.number]
        predicted[place] += length - 1
        tokens[place] += length
    return predicted, tokens


DIMS = ("path", "layer", "expert")
LABEL_DIMS = ("path", "label", "layer", "expert")
CHANGE = "change of the loss"
CONTROL = "change of the loss without the expert that is chosen about as often"
HOW = {
    "zero": "One expert's applied weight is 0.",
    "mask": "One expert is as if deleted: the router chooses among the others.",
    "mean": "One expert's output is its mean over the tokens that chose it in the unedited run.",
}
