"""MoE++ in torch: Mixtral's attention and decoder, and a router and experts of its own.

This module follows the code that was published with the weights where it differs from arXiv 2410.07348: the zero
expert's weight is dropped, the other weights are then divided by their sum, logits may be normalized, and the experts'
input may be doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralExperts,
    MixtralForCausalLM,
    MixtralModel,
    MixtralPreTrainedModel,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)
from transformers.utils.output_capturing import OutputRecorder

from moe_probe.families.moe_plus_plus.configuration import MoePlusPlusConfig


@dataclass
class GateResidual:
    """Carries router logits from layer to layer through one forward pass, as a KV cache carries keys between passes.

    Attributes:
        logits: (tokens, E), float32, of the previous layer; None before the first layer.
    """

    logits: torch.Tensor | None = None


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever dtype the module has been cast to."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden_states.float(), self.weight.float())


class MoePlusPlusRouter(nn.Module):
    """The router: its own logits plus a linear map of the previous layer's logits, then top-k.

    The submodule `wg` returns the router's own logits, (tokens, E), float32, without the residual and not normalized.
    """

    def __init__(self, config: MoePlusPlusConfig):
        super().__init__()
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts[0]
        self.mixtral_gating = config.moe_use_mixtral_gating
        self.norm_std = config.moe_gate_norm_std if config.moe_use_logits_norm else None
        if config.moe_2layer_gate:
            self.gate_embedding = "wg.2.weight"
            self.wg = nn.Sequential(
                Float32Linear(config.hidden_size, 8 * self.num_experts, bias=False),
                nn.Tanh(),
                Float32Linear(8 * self.num_experts, self.num_experts, bias=False),
            )
        else:
            self.gate_embedding = "wg.weight"
            self.wg = Float32Linear(config.hidden_size, self.num_experts, bias=False)
        self.gate_map = nn.Linear(self.num_experts, self.num_experts, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, previous_logits: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Routes each token.

        Args:
            hidden_states: (tokens, d).
            previous_logits: (tokens, E), of the previous layer; None in the first layer. Experts that are masked there
                with -inf contribute 0.

        Returns:
            Logits (tokens, E) with the residual, before normalization; applied weights (tokens, k) in descending order,
            so that a zero expert of weight 0 comes last; their experts (tokens, k). Logits and weights are float32.
        """
        router_logits = self.wg(hidden_states)
        if previous_logits is not None:
            present = previous_logits.masked_fill(previous_logits == -torch.inf, 0)
            router_logits = router_logits + self.gate_map(present.to(hidden_states))
        return router_logits, *self.select(router_logits)

    def select(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns applied weights in descending order and their experts, (tokens, k), from logits (tokens, E)."""
        weights, index = self.selection_scores(router_logits).topk(self.top_k, dim=-1)  # (tokens, k)
        if self.mixtral_gating:
            return weights.softmax(dim=-1), index
        weights = weights.masked_fill(index == self.num_experts - 1, 0.0)
        weights, order = (weights / weights.sum(dim=-1, keepdim=True)).sort(descending=True, stable=True)
        return weights, index.gather(-1, order)

    def selection_scores(self, router_logits: torch.Tensor) -> torch.Tensor:
        """Returns the scores (tokens, E) that top-k ranks: softmax over all experts, or logits in Mixtral gating."""
        if self.norm_std is not None:
            router_logits = router_logits / (deviation(router_logits) / self.norm_std)
        return router_logits if self.mixtral_gating else router_logits.softmax(dim=-1)


def deviation(logits: torch.Tensor) -> torch.Tensor:
    """Returns the standard deviation of each row's logits, (tokens, 1), without experts masked with -inf."""
    masked = logits == -torch.inf
    if not masked.any():
        return logits.std(dim=-1, keepdim=True)
    count = (~masked).sum(dim=-1, keepdim=True)
    mean = logits.masked_fill(masked, 0).sum(dim=-1, keepdim=True) / count
    squares = (logits - mean).masked_fill(masked, 0).square().sum(dim=-1, keepdim=True)
    return (squares / (count - 1)).sqrt()


class MoePlusPlusExperts(MixtralExperts):
    """FFN experts like Mixtral's, constant experts, a copy expert and a zero expert.

    A constant expert mixes its input x with its vector c: a x + b c, where (a, b) = softmax(wg x).

    Attributes:
        constants: (constant experts, d).
        constants_wg: (constant experts, 2, d).
    """

    def __init__(self, config: MoePlusPlusConfig):
        super().__init__(config)
        self.act_fn = nn.SiLU()
        self.expert_kinds = config.expert_kinds
        count, width = config.num_constant_experts, config.hidden_size
        self.constants = nn.Parameter(torch.empty(count, width)) if count else None
        self.constants_wg = nn.Parameter(torch.empty(count, 2, width)) if count else None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden_states)
        token, rank = torch.where(top_k_index < self.num_experts)
        index, weights = top_k_index[token, rank, None], top_k_weights[token, rank, None]
        output.index_add_(0, token, super().forward(hidden_states[token], index, weights))
        for expert, kind in enumerate(self.expert_kinds):
            if kind in ("constant", "copy"):
                token, rank = torch.where(top_k_index == expert)
                rows = hidden_states[token]
                if kind == "constant":
                    rows = self._mix_constant(rows, expert - self.num_experts)
                weighted = rows * top_k_weights[token, rank, None]
                output.index_add_(0, token, weighted.to(output.dtype))
        return output

    def _mix_constant(self, hidden_states: torch.Tensor, number: int) -> torch.Tensor:
        shares = nn.functional.linear(hidden_states, self.constants_wg[number]).softmax(dim=-1)
        return shares[:, :1] * hidden_states + shares[:, 1:] * self.constants[number]


class MoePlusPlusMoE(nn.Module):
    """A MoE block: router and experts, whose input is multiplied by k unless the configuration disables it."""

    def __init__(self, config: MoePlusPlusConfig):
        super().__init__()
        self.gate = MoePlusPlusRouter(config)
        self.experts = MoePlusPlusExperts(config)
        multiplied = not (config.moe_use_mixtral_gating or config.moe_feature_no_mul_topk)
        self.input_scale = config.num_experts_per_tok if multiplied else 1

    def forward(self, hidden_states: torch.Tensor, gate_residual: GateResidual | None = None) -> torch.Tensor:
        gate_residual = gate_residual or GateResidual()
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        gate_residual.logits, top_k_weights, top_k_index = self.gate(tokens, gate_residual.logits)
        return self.experts(self.input_scale * tokens, top_k_index, top_k_weights).view_as(hidden_states)


class MoePlusPlusDecoderLayer(nn.Module):
    """Attention, then a MoE block that reads the previous layer's logits from the gating residual and replaces them."""

    def __init__(self, config: MoePlusPlusConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MixtralAttention(config, layer_idx)
        self.mlp = MoePlusPlusMoE(config)
        self.input_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, gate_residual: GateResidual | None = None, **kwargs: Any
    ) -> torch.Tensor:
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), gate_residual)


class MoePlusPlusPreTrainedModel(MixtralPreTrainedModel):
    """Declarations that transformers requires: the configuration class, and the modules that it records and moves."""

    config_class = MoePlusPlusConfig
    config: MoePlusPlusConfig
    supports_gradient_checkpointing = False  # a layer that runs twice would take its own logits for the residual
    _no_split_modules: ClassVar[list[str]] = ["MoePlusPlusDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "gate_residual"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["gate.wg"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]
    _can_compile_fullgraph = False
    _can_set_experts_implementation_cached_value = True  # transformers looks for its decorator in this file's source
    _can_record_outputs: ClassVar[dict] = {
        "router_logits": OutputRecorder(MoePlusPlusRouter, index=0),
        "hidden_states": MoePlusPlusDecoderLayer,
        "attentions": MixtralAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MoePlusPlusExperts) and module.constants is not None:
            init.normal_(module.constants)
            init.normal_(module.constants_wg, std=self.config.initializer_range)


class MoePlusPlusModel(MoePlusPlusPreTrainedModel, MixtralModel):
    """The decoder; its forward is Mixtral's, with a gating residual through the layers."""

    def __init__(self, config: MoePlusPlusConfig):
        PreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MoePlusPlusDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MixtralRotaryEmbedding(config)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
        gate_residual = GateResidual() if self.config.moe_gate_residual else None
        return super().forward(*args, gate_residual=gate_residual, **kwargs)


class MoePlusPlusForCausalLM(MoePlusPlusPreTrainedModel, MixtralForCausalLM):
    """The language model; its forward and `generate` are Mixtral's."""

    def __init__(self, config: MoePlusPlusConfig):
        PreTrainedModel.__init__(self, config)
        self.model = MoePlusPlusModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.num_experts[0], config.num_experts_per_tok
        self.post_init()
