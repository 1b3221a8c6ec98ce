"""A first-order estimate of every expert's ablation, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.errors import NotFinite
from moe_probe.forward.differentiating import Derivatives, Differentiating
from moe_probe.intervene.measured.effects import DRAWS, experiment_source, lengths
from moe_probe.intervene.measured.intervals import check_draws, pooled, with_ends
from moe_probe.intervene.measured.runs import LOGIT_VALUES
from moe_probe.model import Openable, load
from moe_probe.options import ATTRIBUTION_OPTIONS, RunOptions, completed
from moe_probe.progress import reporting
from moe_probe.results import dataset, provenance, variable
from moe_probe.texts.corpus import Batch, Corpus
from moe_probe.texts.reading import Texts


class PerExpert:
    """Attributions by document: the negative sum of the derivatives of the document's loss.

    Attributes:
        values: by layer, (documents, E), nats.
    """

    def __init__(self, corpus: Corpus, experts: Mapping[int, int]):
        self.place = {document.number: place for place, document in enumerate(corpus.documents)}
        self.values = {layer: np.zeros((len(corpus.documents), count)) for layer, count in experts.items()}

    def add(self, batch: Batch, layer: int, derivatives: Derivatives) -> None:
        """Adds the derivatives of a batch in one layer."""
        if layer not in self.values:
            return
        index, slopes = derivatives.index.cpu().numpy(), derivatives.slopes.double().cpu().numpy()
        tokens, parts = batch.places(), len(index) // (batch.shape[0] * batch.shape[1])
        if not np.isfinite(slopes).all():
            raise NotFinite(f"Layer {layer}: derivatives of the loss are not finite; try load(dtype=torch.float32).")
        place = np.repeat([self.place[number] for number in tokens.document.tolist()], parts)
        np.add.at(self.values[layer], (place[:, None], index), -slopes)


def attribution(
    model: Openable,
    texts: Texts,
    *,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """First-order estimate of `ablate(how="zero")` for all experts at once.

    The estimate is the negative derivative of the loss with respect to a factor on the expert's weighted output, at 1.
    It passes through everything that follows, including the weights of later routers, but not their choices. It is
    exact if the loss is linear in that factor.

    Args:
        model: a checkpoint folder, a hub id or a model, with its interventions.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline`, `checkpoint_dir` and `n_jobs`; `layers` are those of the
            result.

    Returns:
        Dataset, float64, nan for experts that a layer does not have, with `loss_change` (layer, expert), the mean over
        all predicted tokens, nats, positive for harm, with `_low` and `_high`, the 95 % interval over documents;
        `document_loss_change` (document, layer, expert), nats, for each document's loss, nan for a document of one
        token; and `base_loss` (), nats.

    Raises:
        InputError: a layer does not exist, or the texts are too short to predict anything.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import intervene
        >>> intervene.attribution("ckpt/tiny-mixtral", ["A short text."]).loss_change.shape
        (4, 8)
    """
    check_draws(bootstrap)
    asked = completed(options, ATTRIBUTION_OPTIONS, "attribution")
    opened = load(model)
    chosen = opened.select_layers(asked["layers"])
    source = experiment_source(opened, texts, {**asked, "layers": None}, [])
    row_tokens = max(1, min(source.batch_tokens, LOGIT_VALUES // source.vocab_size))
    batches = list(source.corpus.batches(row_tokens))
    collected = PerExpert(source.corpus, {layer: opened.layer(layer).num_experts for layer in chosen})
    total, steps = 0.0, len(batches) * (1 + opened.num_layers if source.layerwise else 1)
    with reporting("batches", steps, asked["progress"]) as advance:
        for batch, by_layer, loss in Differentiating(source, batches).run():
            for layer, derivatives in by_layer.items():
                collected.add(batch, layer, derivatives)
            total += 0.0 if loss is None else float(loss)
            advance()
    if not np.isfinite(total):
        raise NotFinite("The model's loss is not finite; the weights are damaged or overflow in their dtype.")
    return _result(opened, source.corpus, collected, total, bootstrap)


def _result(model: Any, corpus: Corpus, collected: PerExpert, total: float, draws: int) -> xr.Dataset:
    layers, predicted = list(collected.values), lengths(corpus) - 1
    width = max(values.shape[1] for values in collected.values.values())
    by_layer = [np.pad(v, ((0, 0), (0, width - v.shape[1])), constant_values=np.nan) for v in collected.values.values()]
    sums = np.stack(by_layer, 1)  # (documents, layers, experts)
    coords = {
        "document": [document.number for document in corpus.documents],
        "layer": layers,
        "expert": [str(expert) for expert in range(width)],
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        by_document = sums / predicted[:, None, None]
    over_all = ("layer", "expert")
    text = "estimated change of the loss"
    variables = {
        "base_loss": variable((), total / predicted.sum(), "loss of the unedited run", "nats"),
        **with_ends("loss_change", over_all, pooled(sums, predicted, draws), text),
        "document_loss_change": variable(("document", *over_all), by_document, f"{text} of a document", "nats"),
    }
    about = provenance("attribution", model, bootstrap=draws)
    about |= {"documents": len(corpus.documents), "tokens": corpus.num_tokens, "texts": corpus.fingerprint}
    about["definition"] = "Negative derivative of the loss in a factor on each expert's weighted output, at 1."
    return dataset(variables, about, coords)
