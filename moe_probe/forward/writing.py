"""What experts do while the model writes: prompt and generated tokens apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import FamilyError, InputError
from moe_probe.forward.capture import Event, Watch, capture
from moe_probe.forward.running import Runner, compute, per_row
from moe_probe.forward.sites import Site, find_sites
from moe_probe.model import MoEModel, Source, load
from moe_probe.routing import BASELINE, LOGITS, LayerBatch
from moe_probe.texts.corpus import Corpus, Document, Texts, Tokens, make_corpus, of_ids, token_strings

PROMPT, GENERATED = "prompt", "generated"


def generate(
    model: Source,
    texts: Texts,
    analyses: Sequence[Analysis],
    *,
    max_new_tokens: int = 32,
    layers: Sequence[int] | int | None = None,
    **options: Any,
) -> dict[str, xr.Dataset]:
    """Analyses of a model that continues texts, one text at a time, with the model's own `generate`.

    Every token bears the label `prompt` or `generated`, so that results tell them apart: `GateChoices` and `Record` by
    the coordinate `label`, `ExpertLoad` by `label_share`. The last generated token is not seen: nothing follows it.

    Args:
        model: whatever `moe_probe.load` accepts; it is loaded whole.
        texts: as for `run`.
        analyses: any that need no dense baseline.
        max_new_tokens: per text.
        layers: MoE layers; all by default.
        options: of transformers' `generate`, such as `do_sample`; greedy by default.

    Returns:
        A Dataset by the analysis's name.

    Raises:
        InputError: several beams or sequences are asked for, or an analysis that needs a baseline.
        FamilyError: the model's MoE layers cannot be watched, or it generates without a cache.

    Examples:
        >>> from moe_probe import dynamic
        >>> found = dynamic.generate("ckpt/tiny-mixtral", ["def f(x):"], [dynamic.GateChoices()], max_new_tokens=4)
        >>> found["gate_choices"].label.values.tolist()[-3:]
        ['generated', 'generated', 'generated']
    """
    if options.get("num_beams", 1) > 1 or options.get("num_return_sequences", 1) > 1:
        raise InputError("Generation is watched one sequence at a time; leave num_beams and num_return_sequences at 1.")
    model = load(model)
    chosen = model.select_layers(layers)
    prompts = make_corpus(model, texts)
    fresh = [analysis.fresh() for analysis in analyses]
    needs = frozenset().union(*(analysis.needs for analysis in fresh))
    unknown = next((analysis for analysis in fresh if analysis.needs & {BASELINE, LOGITS}), None)
    if unknown is not None:
        raise InputError(f"{unknown.name} as asked for needs what generation does not give; use run.")
    changing = next((analysis for analysis in fresh if analysis.changes), None)
    if changing is not None:
        raise InputError(f"{changing.name} takes a second pass over the corpus; use run.")
    sites = find_sites(model.module, chosen)
    written: list[list[int]] = []
    for prompt in prompts.documents:
        ids, seen = _continue(model, prompt, sites, needs, {"max_new_tokens": max_new_tokens, **options})
        written.append(ids)
        for index, values in seen.items():
            if len(values["router_logits"]) != len(ids) * sites[index].layer.subtokens:
                raise FamilyError(f"{model.family} generates without a cache, so its tokens cannot be told apart.")
            label = np.where(np.arange(len(ids)) < len(prompt.ids), PROMPT, GENERATED).astype(object)
            tokens = Tokens(np.full(len(ids), prompt.number), np.arange(len(ids)), np.asarray(ids), label)
            batch = LayerBatch(sites[index].layer, tokens, **values)
            for analysis in fresh:
                analysis.update(batch)
    strings, special = token_strings({token for ids in written for token in ids}, model)
    documents = [
        of_ids(prompt.number, ids, prompt.label, strings, special)
        for prompt, ids in zip(prompts.documents, written, strict=True)
    ]
    corpus = Corpus(tuple(documents), strings, special)
    return {analysis.name: analysis.result(model, corpus) for analysis in fresh}


@torch.no_grad()
def _continue(
    model: MoEModel, prompt: Document, sites: dict[int, Site], needs: frozenset[str], options: dict[str, Any]
) -> tuple[list[int], dict[int, dict[str, torch.Tensor]]]:
    """Ids of all tokens that went through the model, and what each layer did with them."""
    seen: dict[int, list[dict[str, torch.Tensor]]] = {index: [] for index in sites}

    def on_event(event: Event, watch: Watch) -> None:
        places = len(event.router_logits) // event.site.layer.subtokens
        values = per_row(event, watch, torch.ones(places, dtype=torch.bool, device=event.expert_input.device))
        values["block_output"] = event.block_output
        if event.shared_output is not None:
            values["shared_output"] = event.shared_output
        seen[event.site.layer.index].append(values | compute(event.site, values, needs))

    ids = torch.tensor([prompt.ids], device=Runner(model, layerwise=False).device)
    with capture(sites.values(), on_event):
        written = model.module.generate(ids, attention_mask=torch.ones_like(ids), **{"do_sample": False, **options})
    return written[0, :-1].tolist(), {index: _concatenated(parts) for index, parts in seen.items()}


def _concatenated(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of all calls; outputs and activations of all experts have the experts before the rows."""
    dims = {"outputs": 1, "activations": 1}
    return {name: torch.cat([part[name] for part in parts], dim=dims.get(name, 0)) for name in parts[0]}
