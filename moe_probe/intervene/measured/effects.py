"""Effects of edits on a model's output, for each edit and document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.dynamic.sources import open_source
from moe_probe.errors import NotFitting, WrongType
from moe_probe.forward.reference import record_reference
from moe_probe.forward.running import Running
from moe_probe.forward.sharing import Variant
from moe_probe.intervene.measured.controls import Interventions, controls_of
from moe_probe.intervene.measured.intervals import check_draws, pooled, with_ends
from moe_probe.intervene.measured.measures import Measures
from moe_probe.intervene.measured.runs import BaseRun, check_predictable, direct_variant, measure
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import EFFECT_OPTIONS, RunOptions, completed
from moe_probe.results import dataset, provenance, variable
from moe_probe.routing import Intervention
from moe_probe.signatures import check_types, value_shown
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts

Edits = Mapping[str, Intervention | Sequence[Intervention]]
DRAWS = 1000


class PerDocument:
    """Measures of each variant in each document.

    Attributes:
        values: by name, (variants, documents); `rerouted` (variants, layers, documents).
    """

    def __init__(self, variants: int, corpus: Corpus, layers: Sequence[int]):
        shape = variants, len(corpus.documents)
        self.values: dict[str, np.ndarray] = {name: np.zeros(shape) for name in ("loss_change", "kl", "changed")}
        self.values["rerouted"] = np.zeros((variants, len(layers), shape[1]))
        self.layers = {layer: place for place, layer in enumerate(layers)}
        self.place = {document.number: place for place, document in enumerate(corpus.documents)}

    def add(self, measures: Measures) -> None:
        """Adds the measures of some rows."""
        at = measures.variant, np.array([self.place[number] for number in measures.document.tolist()])
        for name in ("loss_change", "kl", "changed"):
            self.values[name][at] = getattr(measures, name)
        for layer, values in measures.rerouted.items():
            self.values["rerouted"][at[0], self.layers[layer], at[1]] = values

    def merge(self, other: PerDocument) -> None:
        """Adds the measures of other documents."""
        at = [self.place[number] for number in other.place]
        for name, values in other.values.items():
            self.values[name][..., at] = values

    def state(self) -> Mapping[str, np.ndarray]:
        return self.values

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.values = dict(state)


def effect(
    model: Openable,
    texts: Texts,
    edits: Edits,
    *,
    direct: bool = False,
    control: bool = True,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Measures the effect of interventions on the model's output, paired with the unedited run of the same documents.

    For the total effect, later layers route on the edited hidden states. For the direct effect, all MoE layers after
    the first edited one replay choices and weights of the unedited run. The difference of the two is due to rerouting.

    Args:
        model: a checkpoint folder, a hub id or a model; interventions that it has are part of the unedited run.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        edits: interventions by the name of the edit; those of one edit act together.
        direct: also measure the direct effect.
        control: also measure each edit on other experts that are chosen about as often.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline` and `layers`.

    Returns:
        Dataset, float64, whose `path` is `total` or `direct`, with

        - `base_loss` (document), the mean negative log-likelihood of a document's tokens after the first, nats, nan for
          a document of one token;
        - `loss` and `loss_change` (edit, path, document), nats;
        - `kl` (edit, path, document), the mean of KL(unedited || edited) over all positions, nats, of float32
          log-probabilities, whose rounding is up to 1e-6 nats and may be below 0;
        - `top1` (edit, path, document), the share of positions whose most likely next token stays;
        - `rerouted` (edit, path, layer, document), the share of the unedited run's choices that change;
        - `mean_loss_change` (edit, path), the mean over all predicted tokens, nats, with `_low` and `_high`, the 95 %
          interval over documents;
        - with `control`, `control_loss_change` (edit, path), nats, that of the edit named in `control` (edit), in which
          each expert is exchanged for the one of its kind with the nearest number of choices in the unedited run; nan
          and "" if an edit names no experts, or there are no others.

    Raises:
        InputError: there is no edit, one does not fit the model, or the texts are too short to predict anything.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import intervene
        >>> ds = intervene.effect("ckpt/tiny-mixtral", ["A short text."], {"zero": intervene.Zero(1, [3])}, direct=True)
        >>> ds.loss_change.sizes["path"]
        2
    """
    check_types(effect, {"direct": direct, "control": control, "edits": edits})
    check_draws(bootstrap)
    asked = completed(options, EFFECT_OPTIONS, "effect")
    opened = load(model)
    several = as_edits(opened, edits)
    paths = ("total", "direct") if direct else ("total",)
    source = experiment_source(
        opened, texts, asked, [each for interventions in several.values() for each in interventions]
    )
    controls = controls_of(source, several) if control else {}
    measured = [*several.values(), *(each for each in controls.values() if each is not None)]
    told = [told_of(source, interventions) for interventions in measured]
    variants = [variant_of(opened, interventions, path) for interventions in told for path in paths]
    collecting = partial(PerDocument, len(variants), layers=opened.moe_layers)
    collected, unedited = measure(source, variants, collecting, asked, "effect")
    names = {name: repr(interventions) for name, interventions in several.items()}
    result = _result(source, collected, unedited, paths, bootstrap, names)
    return result if not control else result.assign(_of_controls(controls, collected, source.corpus, paths, bootstrap))


def as_edits(model: MoEModel, edits: Edits) -> dict[str, tuple[Intervention, ...]]:
    """Returns interventions by the name of their edit, after checking them.

    Raises:
        InputError: there is no edit, or one does not fit the model.
    """
    if not edits:
        raise NotFitting("edits is empty; pass interventions by name, such as {'without 3': [intervene.Zero(0, [3])]}.")
    by_name = {}
    for name, given in edits.items():
        several = (given,) if isinstance(given, Intervention) else tuple(given)
        wrong = next((each for each in several if not isinstance(each, Intervention)), None)
        if wrong is not None or not several:
            raise WrongType(f"The edit {name!r} holds {value_shown(wrong)}; pass interventions, at least one.")
        model.under(*several)
        elsewhere = next((each for each in several if not each.acts_in(model.moe_layers)), None)
        if elsewhere is not None:
            raise NotFitting(
                f"{elsewhere!r} acts on no MoE layer; compare the model with model.under({elsewhere!r}) instead."
            )
        by_name[str(name)] = several
    return by_name


def experiment_source(
    model: MoEModel, texts: Texts, options: Mapping[str, Any], edits: Sequence[Intervention]
) -> Running:
    """Returns the source that runs the unedited model on its texts.

    Raises:
        InputError: the texts are too short to predict anything, or lack tokens that an edit names.
    """
    source = open_source(model, texts, {"baseline": None, "layers": None, **options})
    if not isinstance(source, Running):
        raise NotFitting(f"{source.name} is {source.kind}; edits need a model and texts.")
    check_predictable(source.corpus)
    for edit in edits:
        if (where := getattr(edit, "where", None)) is not None:
            where.check(source.corpus)
    return source.told()


def told_of(source: Running, edits: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """The edits, with the knowledge of the unedited run that they need."""
    waiting = [each for each in edits if each.needs]
    if not waiting:
        return tuple(edits)
    layers = {layer for each in waiting for layer in each.acts_in(source.model.moe_layers)}
    of_layers = {index: source.model.layer(index) for index in sorted(layers)}
    unedited = Running(
        source.model, source.corpus, of_layers, batch_tokens=source.batch_tokens, layerwise=source.layerwise
    )
    reference = record_reference(unedited, {need for each in waiting for need in each.needs})
    return tuple(each.told(reference) for each in edits)


def variant_of(model: MoEModel, edits: Sequence[Intervention], path: str) -> Variant:
    """The edits on one path."""
    return direct_variant(model, edits) if path == "direct" else Variant(tuple(edits))


def lengths(corpus: Corpus) -> np.ndarray:
    """Tokens of each document."""
    return np.array([len(document.ids) for document in corpus.documents])


def _result(
    source: Running,
    collected: PerDocument,
    unedited: BaseRun,
    paths: Sequence[str],
    draws: int,
    edits: Mapping[str, str],
) -> xr.Dataset:
    corpus, model, names = source.corpus, source.model, list(edits)
    tokens, shape = lengths(corpus), (len(names), len(paths))
    values = {
        name: array[: len(names) * len(paths)].reshape(*shape, *array.shape[1:])
        for name, array in collected.values.items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        base = unedited.total / (tokens - 1)
        change = values["loss_change"] / (tokens - 1)
    over_all = pooled(np.moveaxis(values["loss_change"], -1, 0), tokens - 1, draws)
    each = ("edit", "path", "document")
    variables = {
        "base_loss": variable(("document",), base, "loss of the unedited run", "nats"),
        "loss": variable(each, base + change, "loss", "nats"),
        "loss_change": variable(each, change, "change of the loss", "nats"),
        "kl": variable(each, values["kl"] / tokens, "KL divergence from the unedited run", "nats"),
        "top1": variable(each, 1 - values["changed"] / tokens, "most likely next token kept", "1"),
        "rerouted": variable(("edit", "path", "layer", "document"), values["rerouted"], "changed choices", "1"),
        **with_ends("mean_loss_change", ("edit", "path"), over_all, "change of the loss over all tokens"),
    }
    coords = {
        "edit": list(names),
        "path": list(paths),
        "document": [document.number for document in corpus.documents],
        "layer": list(model.moe_layers),
    }
    about = provenance("effect", model, edits=dict(edits), bootstrap=draws)
    about |= {"documents": len(corpus.documents), "tokens": corpus.num_tokens, "texts": corpus.fingerprint}
    about["definition"] = DEFINITION
    result = dataset(variables, about, coords)
    labels = [document.label for document in corpus.documents]
    return result.assign_coords(label=("document", labels)) if any(labels) else result


def _of_controls(
    controls: Mapping[str, Interventions | None],
    collected: PerDocument,
    corpus: Corpus,
    paths: Sequence[str],
    draws: int,
) -> dict[str, xr.DataArray]:
    """The change of the loss by each edit's control, nan if it has none, and the control's name."""
    there = [place for place, each in enumerate(controls.values()) if each is not None]
    sums = np.full((len(corpus.documents), len(controls), len(paths)), np.nan)
    if there:
        measured = collected.values["loss_change"][len(controls) * len(paths) :].reshape(len(there), len(paths), -1)
        sums[:, there] = np.moveaxis(measured, -1, 0)
    over_all = pooled(sums, lengths(corpus) - 1, draws)
    shown = np.array(["" if each is None else repr(each) for each in controls.values()], dtype=object)
    return {
        **with_ends("control_loss_change", ("edit", "path"), over_all, CONTROL),
        "control": variable(("edit",), shown, "the same edit of other experts that are chosen about as often", ""),
    }


CONTROL = "change of the loss by the same edit of other experts that are chosen about as often"
DEFINITION = (
    "Losses are mean negative log-likelihoods of all tokens but the first of a document; kl and top1 are over all "
    "positions; direct: choices and weights of the unedited run in all MoE layers after the first edited one."
)
