"""Recorded runs from which interventions take choices and outputs."""

from __future__ import annotations

from typing import Any, Unpack

from moe_probe.dynamic.sources import open_source
from moe_probe.errors import NotFitting
from moe_probe.forward.reference import Reference, record_reference
from moe_probe.forward.running import Running
from moe_probe.model import Openable
from moe_probe.options import RunOptions, completed
from moe_probe.routing import Need
from moe_probe.texts.reading import Texts


def reference(model: Openable, texts: Texts, *, inputs: bool = False, **options: Unpack[RunOptions]) -> Reference:
    """Records choices, weights and mean outputs of a model on some texts, for `Replay`, `Mean` and `Patch`.

    Args:
        model: a checkpoint folder, a hub id or a model, also one under interventions.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        inputs: also keep the inputs of the experts, (tokens, w) per layer, which `Patch` needs.
        options: those of `dynamic.run`: `layers`, and how to read and run texts.

    Returns:
        The recorded run; choices and weights take 12 k bytes per token and layer, inputs 4 w bytes.

    Examples:
        >>> from moe_probe import intervene
        >>> run = intervene.reference("ckpt/tiny-mixtral", [[1, 2, 3]], layers=[0])
        >>> run.layers[0].means.shape
        torch.Size([8, 64])
    """

    asked: dict[str, Any] = completed(options)
    source = open_source(model, texts, asked)
    if not isinstance(source, Running):
        raise NotFitting(f"{source.name} is {source.kind}; reference needs a model and texts.")
    return record_reference(source, {Need.SELECTED, Need.SHARED, *([Need.INPUT] if inputs else [])})
