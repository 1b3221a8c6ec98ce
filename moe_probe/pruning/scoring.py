"""Computes scores of every expert: from activations in one pass over texts, from weights, and from experiments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import observe
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import NotComparable, NotFitting, WrongType
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import SCORE_OPTIONS, TEXT_OPTIONS, RunOptions, completed
from moe_probe.progress import reporting
from moe_probe.pruning.score import Measured, OfWeights, OnePass, Score, Seen
from moe_probe.registry import Registry
from moe_probe.results import dataset, provenance, variable
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Most, Total
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts

UNDEFINED = "no row chose the expert, or the model does not give what the score needs"


def score_of(module: ModuleType, name: str) -> Score:
    """The score that a module defines."""
    defined = (each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__)
    return next(each for each in defined if issubclass(each, Score))()


SCORES: Registry[Score] = Registry("moe_probe.pruning.scores", "scores", "score", score_of)


def names() -> Mapping[str, Score]:
    """Every score by its name, including those of other packages (entry points `moe_probe.scores`).

    Examples:
        >>> "reap" in names()
        True
    """
    return SCORES


def scores(
    model: Openable,
    texts: Texts | None = None,
    names: Sequence[str] | str = "all",
    *,
    base: Openable | None = None,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Computes scores of every expert, all of them in one pass over the texts.

    Weights and choices are those of the model's own router of any kind: softmax, sigmoid, correction bias, groups.

    Args:
        model: a checkpoint folder, a hub id or a model; its interventions act, except on scores of weights.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`; None if all
            scores need only weights.
        names: names of scores (`pruning.names()`), one or several; `all` for those that texts and base allow, except
            those of experiments (`attribution`, `ablation`), which take separate passes and must be named.
        base: the earlier checkpoint, for scores of change.
        options: those of `dynamic.run` except `baseline`.

    Returns:
        Dataset with `value` (score, layer, expert), float64, nan for a mean over no rows, for experts that a layer does
        not have, and for scores of weights of experts without matrices; `keep_high` (score), bool, whether large values
        are kept; and, with texts, `chosen` (layer, expert), the number of rows that chose the expert. `formula` and
        `source` (score) are coordinates, and so is `calibration` (document), a digest of each document. `attrs` have
        formulas and sources too, as `formula_<score>` and `source_<score>`.

    Raises:
        InputError: there is no such score, or it needs texts or a base that were not passed.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", ["A short text."], ["reap", "frequency"])
        >>> scores.value.dims
        ('score', 'layer', 'expert')
    """
    asked = completed(options, SCORE_OPTIONS, "scores")
    chosen = chosen_scores(names, texts is not None, base is not None)
    opened = load(model)
    layers = opened.select_layers(asked["layers"])
    kinds = {name: SCORES[name] for name in chosen}
    values: dict[str, dict[int, np.ndarray]] = {}
    static = [name for name, score in kinds.items() if isinstance(score, OfWeights)]
    if static:
        values |= of_weights(opened, layers, static, base, asked["progress"])
    about = provenance("scores", opened, scores=chosen)
    if len(static) == len(chosen):
        return scores_result(opened, layers, chosen, values, {}, about)
    source = open_source(opened, texts, {"baseline": None, **asked})
    passing = tuple(name for name, score in kinds.items() if isinstance(score, OnePass))
    (analysis,) = observe(source, [ScorePass(passing)], asked)
    assert isinstance(analysis, ScorePass)
    values |= {name: analysis.values(name) for name in passing}
    values |= of_experiments(opened, kinds, source.corpus, {"layers": layers, **asked})
    counts = {layer: analysis.chosen[layer] for layer in layers}
    about = {**analysis.attrs(source), "analysis": "scores", "parameters": about["parameters"]}
    result = scores_result(opened, layers, chosen, values, counts, about)
    return result.assign_coords(calibration=("document", source.corpus.digests))


def of_experiments(
    model: MoEModel, scores: Mapping[str, Score], corpus: Corpus, asked: Mapping[str, Any]
) -> dict[str, dict[int, np.ndarray]]:
    """Scores that experiments measure, by name and layer."""
    options = {name: value for name, value in asked.items() if name not in TEXT_OPTIONS}
    measured = {
        name: score.measure(model, corpus, options | own_folder(options, name))
        for name, score in scores.items()
        if isinstance(score, Measured)
    }
    return {
        name: {int(layer): of.sel(layer=layer).values[: model.layer(int(layer)).num_experts] for layer in of.layer}
        for name, of in measured.items()
    }


def own_folder(options: Mapping[str, Any], name: str) -> dict[str, Path]:
    """Gives an experiment a separate folder for its progress, if progress is saved."""
    folder = options.get("checkpoint_dir")
    return {} if folder is None else {"checkpoint_dir": Path(folder) / name}


def chosen_scores(names: Sequence[str] | str, with_texts: bool, with_base: bool) -> list[str]:
    """Returns the requested scores.

    Raises:
        InputError: there is no such score, one is named twice, or one needs texts or a base that were not passed.
    """
    if names == "all":
        cheap = {name: score for name, score in SCORES.items() if not isinstance(score, Measured)}
        return [name for name, score in cheap.items() if _possible(score, with_texts, with_base)]
    several = [names] if isinstance(names, str) else list(names)
    if not several or not all(isinstance(name, str) for name in several):
        raise WrongType(f"names is {names!r}; pass names of scores, such as 'reap', or 'all'.")
    twice = next((name for name in several if several.count(name) > 1), None)
    if twice is not None:
        raise NotFitting(f"The score {twice} is named twice; name it once.")
    for name in several:
        score = SCORES[name]
        if not _possible(score, with_texts, with_base):
            weights = isinstance(score, OfWeights)
            lacks = "base=, a checkpoint to compare with" if weights else "texts to run the model on"
            raise NotFitting(f"The score {name} needs more than was passed; pass {lacks}.")
    return several


def _possible(score: Score, with_texts: bool, with_base: bool) -> bool:
    return with_base or not score.needs_base if isinstance(score, OfWeights) else with_texts


@dataclass
class ScorePass(Analysis):
    """The sums of several scores, in one pass; the analysis behind `scores`.

    Args:
        scores: names of scores of one pass.
    """

    scores: tuple[str, ...]

    name = "scores"

    sums, most = Total("expert"), Most("expert")
    chosen, rows = Total("expert"), Total()

    @classmethod
    def example(cls) -> ScorePass:
        return cls(("frequency",))

    def members(self) -> dict[str, OnePass]:
        """The scores by name."""
        by_name = {name: SCORES[name] for name in self.scores}
        return {name: score for name, score in by_name.items() if isinstance(score, OnePass)}

    def needed(self) -> frozenset[Need]:
        asked = frozenset({Need.CHOICES}).union(*(score.needs for score in self.members().values()))
        return asked - {Need.SELECTED} if Need.OUTPUTS in asked else asked

    def update(self, batch: LayerBatch) -> None:
        self.chosen.add(batch, batch.selected.double().sum(0))
        self.rows.add(batch, len(batch.top_k_index))
        whole = Seen(batch)
        for name, score in self.members().items():
            for label, seen in domains(whole) if score.mixed else [("", whole)]:
                if (added := score.add(seen)) is not None:
                    before = batch.layer_before if score.before else None
                    layer = batch.layer.index if before is None else before
                    (self.most if score.maximum else self.sums).put(layer, added, f"{name}/{label}")

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"chosen": self.chosen.array}

    def values(self, name: str) -> dict[int, np.ndarray]:
        """The score (E,) of each layer."""
        score, by_layer = self.members()[name], {}
        totals = self.most if score.maximum else self.sums
        for layer in self.chosen.layers:
            parts = [totals[place] for place in totals if place[0] == layer and place[1].startswith(f"{name}/")]
            count = self.chosen[layer]
            if not parts:
                by_layer[layer] = np.full(len(count), np.nan)
                continue
            if score.mixed:
                parts = [part / part.sum() for part in parts]
            with np.errstate(invalid="ignore", divide="ignore"):
                counted = np.where(count > 0, count, np.nan)
                values = score.value(np.sum(parts, axis=0), counted, int(self.rows[layer]))
                by_layer[layer] = values[: len(count)]
        return by_layer


def domains(seen: Seen) -> list[tuple[str, Seen]]:
    """The batch by document label."""
    labels = seen.batch.tokens.label.astype(str)
    distinct = np.unique(labels).tolist()
    if len(distinct) == 1:
        return [(distinct[0], seen)]
    return [(label, seen.part(labels == label)) for label in distinct]


def of_weights(
    model: MoEModel, layers: Sequence[int], several: Sequence[str], base: Openable | None, progress: bool
) -> dict[str, dict[int, np.ndarray]]:
    """Scores of the weights by name and layer.

    Raises:
        NotComparable: the base has other routers.
    """
    model.require_unchanged()
    other = None if base is None else load(base)
    if other is not None:
        check_base(model, other, layers)
    by_name: dict[str, dict[int, np.ndarray]] = {name: {} for name in several}
    with reporting("layers", len(layers), progress) as advance, torch.no_grad():
        for layer in layers:
            for name in several:
                score: Any = SCORES[name]
                by_name[name][layer] = score.of_layer(model, layer, other if score.needs_base else None)
            advance()
    return by_name


def check_base(model: MoEModel, base: MoEModel, layers: Sequence[int]) -> None:
    """Raises an error if the routers of the base have other shapes."""
    for layer in layers:
        here = tuple(model.router_tensor(layer).shape)
        there = tuple(base.router_tensor(layer).shape) if layer in base.moe_layers else None
        if here != there:
            raise NotComparable(
                f"Layer {layer}: the router of {model.name} is {here}, that of the base {base.name} {there}; pass the "
                "checkpoint that the model was tuned from."
            )


def scores_result(
    model: MoEModel,
    layers: Sequence[int],
    several: Sequence[str],
    values: Mapping[str, Mapping[int, np.ndarray]],
    counts: Mapping[int, np.ndarray],
    about: Mapping[str, Any],
) -> xr.Dataset:
    """Returns scores, by name and layer, as a result with their formulas and sources."""
    experts = max(model.layer(layer).num_experts for layer in layers)
    of = [SCORES[name] for name in several]
    coords = {"score": list(several), "layer": list(layers), "expert": [str(expert) for expert in range(experts)]}
    dims = ("layer", "expert")
    value = np.stack([filled(values[name], layers, experts) for name in several])
    arrays = {
        "value": variable(("score", *dims), value, "score", "that of the score", UNDEFINED),
        "keep_high": variable(("score",), [score.keep_high for score in of], "large values are kept"),
    }
    if counts:
        arrays["chosen"] = variable(dims, filled(counts, layers, experts), "rows that choose the expert", "rows")
    told = {f"formula_{name}": score.formula for name, score in zip(several, of, strict=True)}
    told |= {f"source_{name}": score.source for name, score in zip(several, of, strict=True)}
    result = dataset(arrays, {**about, **told}, coords)
    words = {key: ("score", [getattr(score, key) for score in of]) for key in ("formula", "source", "units")}
    return result.assign_coords(words)


def filled(by_layer: Mapping[int, np.ndarray], layers: Sequence[int], experts: int) -> np.ndarray:
    """Values of each layer, (layers, experts); nan for experts that a layer does not have."""
    grid = np.full((len(layers), experts), np.nan)
    for row, layer in enumerate(layers):
        grid[row, : len(by_layer[layer])] = by_layer[layer]
    return grid
