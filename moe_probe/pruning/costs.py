"""Costs of sets of interventions on held-out texts: loss, divergence and kept predictions, on a grid of sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.errors import NotComparable, NotFitting, WrongType
from moe_probe.intervene.measured.effects import effect
from moe_probe.model import MoEModel
from moe_probe.results import variable
from moe_probe.routing import Intervention
from moe_probe.signatures import value_shown
from moe_probe.texts.corpus import Corpus

CHANGE = "change of the loss"
ENDS = {"": "", "_low": ", lower end of the 95 % interval", "_high": ", upper end of the 95 % interval"}
DEFINITION = (
    "Losses are mean negative log-likelihoods of all tokens but the first of a document, kl and top1 over all "
    "positions; none of the documents is among those that the scores or groups were computed from."
)


def measured_costs(
    model: MoEModel,
    corpus: Corpus,
    sets: Sequence[Sequence[Intervention]],
    dims: Mapping[str, Sequence[Any]],
    bootstrap: int,
    options: Mapping[str, Any],
) -> tuple[dict[str, xr.DataArray], dict[str, Any]]:
    """Measures the costs of sets of interventions.

    Args:
        model: the model to edit.
        corpus: held-out documents.
        sets: one for each point of the grid, in its order; an empty one is the unedited run.
        dims: names of the grid's dimensions, with their coordinates.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `intervene.effect` that are not about reading texts.

    Returns:
        Variables by name: `loss_change` with `_low` and `_high`, `kl` and `top1` on the grid, `label_loss_change`
        (label, grid) if documents have labels, and `base_loss`; and attributes that describe the texts.
    """
    edits = {f"{place}": list(several) for place, several in enumerate(sets) if several}
    measured = effect(model, corpus, edits, control=False, bootstrap=bootstrap, **options).sel(path="total")
    grid = Grid(measured, len(sets), dims)
    tokens = np.array([len(document.ids) for document in corpus.documents])
    arrays = {"base_loss": variable((), weighted(measured.base_loss.values, tokens - 1), "loss of the model", "nats")}
    for end, text in ENDS.items():
        arrays[f"loss_change{end}"] = grid.array(measured[f"mean_loss_change{end}"].values, f"{CHANGE}{text}", "nats")
    arrays["kl"] = grid.array(weighted(measured.kl.values, tokens), "KL divergence from the model", "nats")
    arrays["top1"] = grid.array(weighted(measured.top1.values, tokens), "most likely next token kept", "1", 1.0)
    by_document = np.array([document.label for document in corpus.documents])
    if by_document.astype(bool).any():
        arrays["label_loss_change"] = xr.concat(
            [
                grid.array(
                    weighted(measured.loss_change.values[:, of], tokens[of] - 1), f"{CHANGE} by label", "nats"
                ).assign_coords(label=label)
                for label in np.unique(by_document)
                for of in [by_document == label]
            ],
            "label",
        )
    told = {name: measured.attrs[name] for name in ("documents", "tokens", "texts")}
    return arrays, {**told, "definition": DEFINITION}


class Grid:
    """Positions of edits on a grid of sets.

    Args:
        measured: result of `intervene.effect`, whose edits are numbered by their sets.
        count: number of sets.
        dims: dimensions of the grid.
    """

    def __init__(self, measured: xr.Dataset, count: int, dims: Mapping[str, Sequence[Any]]):
        self.places, self.count, self.dims = [int(name) for name in measured.edit.values], count, dims

    def array(self, values: np.ndarray, long_name: str, units: str, unedited: float = 0.0) -> xr.DataArray:
        """Values of the edits as an array of the grid's dimensions; an empty set is the unedited run."""
        flat = np.full(self.count, unedited)
        flat[self.places] = values
        shape = [len(labels) for labels in self.dims.values()]
        array = variable(list(self.dims), flat.reshape(shape), long_name, units)
        return array.assign_coords({name: list(labels) for name, labels in self.dims.items()})


def weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over documents (..., documents), weighted by counts; documents of count 0 are skipped."""
    used = counts > 0
    return np.asarray((values[..., used] * counts[used]).sum(-1) / max(counts[used].sum(), 1))


def check_of_model(model: MoEModel, result: object, analysis: str) -> None:
    """Raises an error if a result is not one of `pruning.<analysis>`, or is of another model."""
    if not isinstance(result, xr.Dataset) or result.attrs.get("analysis") != analysis:
        raise WrongType(f"{analysis} is {value_shown(result)}; pass the result of pruning.{analysis}.")
    if result.attrs["fingerprint"] != model.fingerprint:
        raise NotComparable(f"The {analysis} are of another model than {model.name}; compute them for this one.")


def check_held_out(digests: Iterable[int], corpus: Corpus) -> None:
    """Raises `NotFitting` if a document, by its digest, is among those from which scores or groups were computed."""
    calibration = set(digests)
    seen = [
        document.number
        for document, digest in zip(corpus.documents, corpus.digests, strict=True)
        if digest in calibration
    ]
    if seen:
        raise NotFitting(
            f"{len(seen)} of {len(corpus.documents)} documents, such as number {seen[0]}, are among those that the "
            "scores were computed from; pass other texts, so that scores are judged on held-out ones."
        )
