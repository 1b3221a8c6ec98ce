"""DeepSeekMoE v1 in torch: Llama's attention, Mixtral's decoder, DeepSeek-V2's experts, and a router of its own.

The layer's formula is that of arXiv 2401.06066, equations 9 to 11.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2MLP
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM, MixtralModel, MixtralPreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from moe_probe.families.deepseek.configuration import DeepseekConfig


class DeepseekTopKRouter(nn.Module):
    """Softmax over all routed experts, then top-k; the weights sum to less than 1 unless `norm_topk_prob`."""

    gate_embedding = "weight"

    def __init__(self, config: DeepseekConfig):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        router_logits = nn.functional.linear(hidden_states, self.weight)  # (tokens, experts)
        top_k_weights, top_k_index = router_logits.softmax(dim=-1).topk(self.top_k, dim=-1)  # (tokens, k)
        if self.norm_topk_prob and self.top_k > 1:
            top_k_weights = top_k_weights / (top_k_weights.sum(dim=-1, keepdim=True) + 1e-20)
        return router_logits, top_k_weights, top_k_index


class DeepseekMoE(nn.Module):
    """A MoE block: routed experts, plus the shared experts as one FFN on every token."""

    def __init__(self, config: DeepseekConfig):
        super().__init__()
        self.gate = DeepseekTopKRouter(config)
        self.experts = DeepseekV2Experts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            neurons = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = DeepseekV2MLP(config, intermediate_size=neurons)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, top_k_weights, top_k_index = self.gate(tokens)
        output = self.experts(tokens, top_k_index, top_k_weights)
        if self.shared_experts is not None:
            output = output + self.shared_experts(tokens)
        return output.view_as(hidden_states)


class DeepseekDecoderLayer(LlamaDecoderLayer):
    """Attention, then a dense FFN or a MoE block."""

    def __init__(self, config: DeepseekConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mlp = DeepseekMoE(config) if config.is_moe_layer(layer_idx) else DeepseekV2MLP(config)


class DeepseekPreTrainedModel(MixtralPreTrainedModel):
    """Declarations that transformers requires: the configuration class, and the modules that it records and moves."""

    config_class = DeepseekConfig
    config: DeepseekConfig
    _no_split_modules: ClassVar[list[str]] = ["DeepseekDecoderLayer"]
    _can_set_experts_implementation_cached_value = True  # transformers looks for its decorator in this file's source
    _can_record_outputs: ClassVar[dict] = {
        "router_logits": OutputRecorder(DeepseekTopKRouter, index=0),
        "hidden_states": DeepseekDecoderLayer,
        "attentions": LlamaAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekV2Experts | DeepseekTopKRouter):
            for parameter in module.parameters():
                init.normal_(parameter, std=self.config.initializer_range)


class DeepseekModel(DeepseekPreTrainedModel, MixtralModel):
    """The decoder; its forward is Mixtral's."""

    def __init__(self, config: DeepseekConfig):
        PreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(DeepseekPreTrainedModel, MixtralForCausalLM):
    """The language model; its forward and `generate` are Mixtral's."""

    def __init__(self, config: DeepseekConfig):
        PreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.n_routed_experts, config.num_experts_per_tok
        self.post_init()
