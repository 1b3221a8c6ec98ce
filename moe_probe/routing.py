"""The words of all that follows: what can be seen of a MoE layer at work, and where it is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moe_probe.families import Layer
from moe_probe.texts.corpus import Tokens

OUTPUTS, SELECTED, ACTIVATIONS, BASELINE, LOGITS = "outputs", "selected outputs", "activations", "baseline", "logits"
TOKEN_FIELDS = ("document", "position", "token_id", "label")


@dataclass(frozen=True)
class LayerBatch:
    """What some tokens do in one MoE layer: n rows, a row per token, or per sub-token, token by token (MH-MoE).

    Attributes:
        layer: what the layer is made of.
        tokens: the n / `layer.subtokens` tokens.
        router_logits: raw, (n, E), float32.
        scores: the router's score over all experts, before bias, groups and top-k, (n, E), float32.
        top_k_index: chosen experts, (n, k), int64.
        top_k_weights: what multiplies their outputs, (n, k), float32.
        expert_input: (n, w), w the width of an expert's input, in the compute dtype.
        routed_output: the weighted sum, (n, w).
        block_output: of the whole MoE block, with the shared experts' part, (tokens, d).
        selected_outputs: unweighted outputs of the chosen experts, (n, k, w); None unless needed.
        outputs: unweighted outputs of all experts, (E, n, w); None unless needed.
        activations: act(gate projection) of all experts with weights, (E_ffn, n, ff); None unless needed.
        shared_output: of the shared block, (tokens, d); None unless needed and there.
        selection: what top-k ranks, correction bias added and excluded groups -inf, (n, E), float32; None where it is
            not known.
        score_kind: the function that makes `scores` of the logits, such as "softmax"; "" where it is not known.
        baseline_output, baseline_activation: of the dense model's FFN, (tokens, d) and (tokens, ff); likewise.
    """

    layer: Layer
    tokens: Tokens
    router_logits: torch.Tensor
    scores: torch.Tensor
    top_k_index: torch.Tensor
    top_k_weights: torch.Tensor
    expert_input: torch.Tensor
    routed_output: torch.Tensor
    block_output: torch.Tensor
    selected_outputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    activations: torch.Tensor | None = None
    shared_output: torch.Tensor | None = None
    baseline_output: torch.Tensor | None = None
    baseline_activation: torch.Tensor | None = None
    selection: torch.Tensor | None = None
    score_kind: str = ""

    @property
    def selected(self) -> torch.Tensor:
        """Whether an expert was chosen, (n, E), float32."""
        return torch.zeros_like(self.router_logits).scatter_(1, self.top_k_index, 1.0)

    @property
    def weights(self) -> torch.Tensor:
        """The applied weight of every expert, 0 where it was not chosen, (n, E), float32."""
        return torch.zeros_like(self.router_logits).scatter_add_(1, self.top_k_index, self.top_k_weights)

    @property
    def first_choice(self) -> torch.Tensor:
        """The chosen expert with the largest score, (n,), int64."""
        best = self.scores.gather(1, self.top_k_index).argmax(1, keepdim=True)
        return self.top_k_index.gather(1, best)[:, 0]

    @property
    def labels(self) -> np.ndarray:
        """The document label of each row, (n,)."""
        return np.repeat(self.tokens.label, self.layer.subtokens)
