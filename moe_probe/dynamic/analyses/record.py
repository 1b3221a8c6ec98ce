"""Everything that a short text does in every MoE layer, kept: what a notebook reaches for first."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Rows, expert_labels
from moe_probe.errors import InputError
from moe_probe.routing import LOGITS, OUTPUTS, SELECTED, LayerBatch
from moe_probe.texts.corpus import Corpus, Tokens

KEPT = {"none": frozenset(), "selected": frozenset({SELECTED}), "all": frozenset({OUTPUTS})}


class Record(Rows):
    """Router logits, scores, choices, inputs and outputs of every MoE layer, token by token.

    The result has, float32 unless said otherwise: `router_logits` (raw) and `score` (layer, token[, subtoken],
    expert); `topk_expert` (int64) and `topk_weight` (layer, token[, subtoken], rank), in the router's order;
    `expert_input` and `routed_output` (layer, token[, subtoken], width); `block_output` (layer, token, hidden); with
    `outputs="selected"` `selected_output` (..., rank, width), with `"all"` `output` (..., expert, width) and `norm`
    (..., expert), its L2 norm: both unweighted; with `logits=True` `logits` (token, vocabulary), the model's output.

    Args:
        outputs: `none`, `selected` (of the chosen experts) or `all`.
        logits: keep the model's output too; the whole model is run then.
        max_bytes: what the result may hold.

    Raises:
        InputError: the result would be larger.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.record("ckpt/tiny-mixtral", ["A short text."], outputs="all")
        >>> ds.output.dims
        ('layer', 'token', 'expert', 'hidden')
    """

    name = "record"

    def __init__(self, outputs: str = "none", logits: bool = False, max_bytes: int = 1 << 31):
        if outputs not in KEPT:
            raise InputError(f"outputs is none, selected or all, not {outputs!r}.")
        super().__init__()
        self.outputs, self.logits, self.max_bytes = outputs, logits, max_bytes
        self.needs = KEPT[outputs] | ({LOGITS} if logits else set())
        self._logits: list[tuple[Tokens, np.ndarray]] = []

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        size = self.size(model, corpus, layers)
        if size > self.max_bytes:
            raise InputError(
                f"record would hold {size / 1e9:,.1f} GB of {corpus.num_tokens:,} tokens in {len(layers)} layers, more "
                f"than max_bytes={self.max_bytes:,}; use RoutingTrace for routing, NormScoreRanks or OutputSimilarity "
                "for outputs, or fewer layers."
            )

    def size(self, model: Any, corpus: Corpus, layers: list[int]) -> int:
        """Bytes that the result holds."""
        values = 0
        for index in layers:
            layer = model.layer(index)
            width, experts, k = layer.expert_hidden_size, layer.num_experts, layer.top_k
            kept = {"none": 0, "selected": k * width, "all": experts * (width + 1)}[self.outputs]
            values += layer.subtokens * (2 * experts + 3 * k + 2 * width + kept) + layer.hidden_size
        vocabulary = model.config.get_text_config(decoder=True).vocab_size if self.logits else 0
        return 4 * corpus.num_tokens * (values + vocabulary)

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        values = {
            "router_logits": batch.router_logits,
            "score": batch.scores,
            "topk_expert": batch.top_k_index,
            "topk_weight": batch.top_k_weights,
            "expert_input": batch.expert_input,
            "routed_output": batch.routed_output,
            "block_output": batch.block_output,
        }
        if self.outputs == "selected":
            values["selected_output"] = batch.selected_outputs
        elif self.outputs == "all":
            values["output"] = batch.outputs.transpose(0, 1)
            values["norm"] = values["output"].float().norm(dim=-1)
        return values

    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        layer = model.layer(layers[0])
        width = "width" if layer.subtokens > 1 else "hidden"
        named = dict.fromkeys(("router_logits", "score", "norm"), ("expert",))
        named |= dict.fromkeys(("topk_expert", "topk_weight"), ("rank",))
        named |= dict.fromkeys(("expert_input", "routed_output"), (width,))
        named |= {"selected_output": ("rank", width), "output": ("expert", width), "block_output": ("hidden",)}
        return named, {"expert": expert_labels(model, layers[0]), "kind": ("expert", list(layer.expert_kinds))}

    def update_logits(self, tokens: Tokens, logits: torch.Tensor) -> None:
        self._logits.append((tokens, logits.float().cpu().numpy()))

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._logits += other._logits

    def state(self) -> dict[str, np.ndarray]:
        kept = {}
        for number, (tokens, logits) in enumerate(self._logits):
            places = np.stack([tokens.document, tokens.position])
            kept |= {f"logits{number}": logits, f"places{number}": places}
        return {**super().state(), **kept}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        count = sum(key.startswith("places") for key in state)
        kept = [(state.pop(f"places{n}"), state.pop(f"logits{n}")) for n in range(count)]
        none = np.zeros(0)
        self._logits = [(Tokens(document, position, none, none), logits) for (document, position), logits in kept]
        super().restore(state)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        dataset = super().result(model, corpus)
        if not self._logits:
            return dataset
        document, position = (
            np.concatenate([getattr(tokens, name) for tokens, _ in self._logits]) for name in ("document", "position")
        )
        logits = np.concatenate([logits for _, logits in self._logits])
        return dataset.assign(logits=(("token", "vocabulary"), logits[np.lexsort((position, document))]))
