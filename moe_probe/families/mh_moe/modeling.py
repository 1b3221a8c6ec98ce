"""MH-MoE in torch (arXiv 2404.15045, section 3): Mixtral's decoder, with sub-tokens, heads and merge layers.

X-MoE (arXiv 2204.09179) is the same decoder with one sub-token per token and a low-rank cosine router.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.mixtral.modeling_mixtral import (
    MixtralDecoderLayer,
    MixtralForCausalLM,
    MixtralModel,
    MixtralPreTrainedModel,
)
from transformers.utils.output_capturing import OutputRecorder

from moe_probe.families.mh_moe.configuration import MhMoeConfig


def capacity(config: MhMoeConfig, rows: int) -> int | None:
    """Returns the number of sub-tokens that an expert takes at evaluation; None for all."""
    fraction = config.eval_capacity_fraction
    if fraction is None:
        return None
    if fraction > 0:
        return math.ceil(fraction * rows)
    return config.num_experts_per_tok * math.ceil(rows / config.num_experts)


def arrival(top_k_index: torch.Tensor, experts: int) -> torch.Tensor:
    """Returns each choice's place in its expert's queue, (n, k), from 0: all first choices, then all second ones."""
    queue = nn.functional.one_hot(top_k_index.T.reshape(-1), experts)  # (k n, E), slot by slot
    places = (queue.cumsum(dim=0) - 1).gather(1, top_k_index.T.reshape(-1, 1))
    return places.view(top_k_index.shape[1], -1).T


def balance_loss(router_logits: torch.Tensor, experts: int) -> torch.Tensor:
    """Returns E * sum_e f_e P_e: share of first choices times mean score (arXiv 2404.15045, equation 10)."""
    scores = router_logits.float().softmax(dim=-1)
    first = nn.functional.one_hot(scores.argmax(dim=-1), experts).float().mean(dim=0)
    return experts * (first * scores.mean(dim=0)).sum()


class MhMoeRouter(nn.Module):
    """Softmax over all experts, then top-k; weights are not divided by their sum unless `norm_topk_prob`."""

    def __init__(self, config: MhMoeConfig):
        super().__init__()
        width = config.hidden_size // config.mhmoe_heads_number
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.config, self.cosine = config, config.router == "cosine"
        if self.cosine:
            self.wg_reduction = nn.Linear(width, config.router_rank, bias=False)
            self.wg = nn.Parameter(torch.empty(config.num_experts, config.router_rank))
        else:
            self.wg = nn.Linear(width, config.num_experts, bias=False)

    @property
    def gate_embedding(self) -> str:
        """The name of the parameter with one row per expert."""
        return "wg" if self.cosine else "wg.weight"

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns logits (n, E) from rows (n, w).

        The cosine router computes r . wg / |wg| for the reduced row r, which is not normalized, without a temperature.
        It replaces nan and inf by the smallest finite logit; -inf stays, because it masks an expert.
        """
        if not self.cosine:
            return self.wg(rows)
        directions = nn.functional.normalize(self.wg.float(), dim=-1)
        logits = nn.functional.linear(self.wg_reduction(rows).float(), directions).to(rows.dtype)
        finite = logits.isfinite() | logits.isneginf()
        return logits if finite.all() else logits.where(finite, logits[logits.isfinite()].min())

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        router_logits = self.logits(rows)
        scores = router_logits.softmax(dim=-1, dtype=torch.float32)
        top_k_weights, top_k_index = scores.topk(self.top_k, dim=-1)  # (n, k)
        if self.norm_topk_prob:
            top_k_weights = top_k_weights / top_k_weights.sum(dim=-1, keepdim=True)
        return router_logits, top_k_weights, top_k_index


class MhMoeExperts(nn.Module):
    """All experts in stacked tensors; the configuration decides whether they have biases and a gate projection."""

    is_concatenated, is_transposed = True, False

    def __init__(self, config: MhMoeConfig):
        super().__init__()
        experts, neurons = config.num_experts, config.moe_intermediate_size
        width = config.hidden_size // config.mhmoe_heads_number
        self.num_experts, self.has_gate, self.has_bias = experts, config.gated, config.mlp_bias
        name, rows = ("gate_up_proj", 2 * neurons) if config.gated else ("up_proj", neurons)
        self.first = name
        self.register_parameter(name, nn.Parameter(torch.empty(experts, rows, width)))
        self.down_proj = nn.Parameter(torch.empty(experts, width, neurons))
        if config.mlp_bias:
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(experts, rows)))
            self.down_proj_bias = nn.Parameter(torch.empty(experts, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def expert(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Returns one expert's output, (n, w)."""
        bias = getattr(self, f"{self.first}_bias")[number] if self.has_bias else None
        hidden = nn.functional.linear(rows, getattr(self, self.first)[number], bias)
        if self.has_gate:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.act_fn(gate) * up
        else:
            hidden = self.act_fn(hidden)
        return nn.functional.linear(
            hidden, self.down_proj[number], self.down_proj_bias[number] if self.has_bias else None
        )

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            rows, slots = torch.where(top_k_index == number)
            part = self.expert(number, hidden_states[rows]) * top_k_weights[rows, slots, None]
            output.index_add_(0, rows, part.to(output.dtype))
        return output


class MhMoeBlock(nn.Module):
    """A MoE block: head layer on tokens, router and experts on their sub-tokens, merge layer on tokens again."""

    def __init__(self, config: MhMoeConfig):
        super().__init__()
        self.config, self.subtokens = config, config.mhmoe_heads_number
        self.gate = MhMoeRouter(config)
        self.experts = MhMoeExperts(config)
        if self.subtokens > 1:
            self.multi_heads = nn.Linear(config.hidden_size, config.hidden_size)
            self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = self.multi_heads(hidden_states) if self.subtokens > 1 else hidden_states
        rows = tokens.reshape(-1, hidden_states.shape[-1] // self.subtokens)  # token by token
        _, top_k_weights, top_k_index = self.gate(rows)
        places = capacity(self.config, len(rows))
        if places is not None and not self.training:
            has_place = arrival(top_k_index, self.config.num_experts) < places
            top_k_weights = top_k_weights * has_place
        merged = self.experts(rows, top_k_index, top_k_weights).view_as(hidden_states)
        return self.out_proj(merged) if self.subtokens > 1 else merged


class MhMoeMLP(nn.Module):
    """A dense layer's FFN."""

    def __init__(self, config: MhMoeConfig):
        super().__init__()
        width, neurons, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(width, neurons, bias=bias)
        self.gate_proj = nn.Linear(width, neurons, bias=bias) if config.gated else None
        self.down_proj = nn.Linear(neurons, width, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class MhMoeAttention(LlamaAttention):
    """Llama's attention, but with n < heads key-value heads, query head i uses key-value head i mod n."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (batch, heads, places, head_dim)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.num_key_value_groups > 1:
            # transformers repeats each head: put the queries of one head beside each other
            heads = query.shape[1]
            order = torch.arange(heads, device=query.device).view(self.num_key_value_groups, -1).T.flatten()
            query = query[:, order]
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        if self.num_key_value_groups > 1:
            output = output[:, :, order.argsort()]
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


def norm(config: MhMoeConfig) -> nn.Module:
    """Returns an RMSNorm or a LayerNorm, as configured."""
    return (LlamaRMSNorm if config.rms_norm else nn.LayerNorm)(config.hidden_size, eps=config.rms_norm_eps)


class MhMoeDecoderLayer(MixtralDecoderLayer):
    """Attention, then a dense FFN or a MoE block."""

    def __init__(self, config: MhMoeConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.self_attn = MhMoeAttention(config, layer_idx)
        self.mlp = MhMoeBlock(config) if config.is_moe_layer(layer_idx) else MhMoeMLP(config)
        self.input_layernorm = norm(config)
        self.post_attention_layernorm = norm(config)


class MhMoePreTrainedModel(MixtralPreTrainedModel):
    """Declarations that transformers requires: the configuration class, and the modules that it records and moves."""

    config_class = MhMoeConfig
    config: MhMoeConfig
    _no_split_modules: ClassVar[list[str]] = ["MhMoeDecoderLayer"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq"]
    _can_record_outputs: ClassVar[dict] = {
        "router_logits": OutputRecorder(MhMoeRouter, index=0),
        "hidden_states": MhMoeDecoderLayer,
        "attentions": MhMoeAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MhMoeExperts | MhMoeRouter):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=self.config.initializer_range)


class MhMoeModel(MhMoePreTrainedModel, MixtralModel):
    """The decoder; its forward is Mixtral's, on scaled embeddings and with pad tokens masked if so configured."""

    def __init__(self, config: MhMoeConfig):
        PreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MhMoeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = norm(config)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Runs Mixtral's forward, after scaling the embeddings and masking pad tokens if so configured."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            if self.config.scale_embedding:
                inputs_embeds = inputs_embeds * math.sqrt(self.config.hidden_size)
        if self.config.mask_pad_tokens and attention_mask is None and input_ids is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        return super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


class MhMoeForCausalLM(MhMoePreTrainedModel, MixtralForCausalLM):
    """The language model; its forward and `generate` are Mixtral's."""

    def __init__(self, config: MhMoeConfig):
        PreTrainedModel.__init__(self, config)
        self.model = MhMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.num_experts, config.num_experts_per_tok
        self.post_init()
