"""Grok-1 in torch: Gemma 2's attention and decoder layer, Mixtral's experts and model, and a router of its own.

The arithmetic is that of xai-org/grok-1 (model.py) or of hpcai-tech's port, depending on the configuration.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralForCausalLM,
    MixtralModel,
    MixtralPreTrainedModel,
)
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.utils.output_capturing import OutputRecorder

from moe_probe.families.grok1.configuration import Grok1Config


class Grok1TopKRouter(nn.Module):
    """Softmax over all experts, then top-k; the weights are not divided by their sum."""

    gate_embedding = "weight"

    def __init__(self, config: Grok1Config):
        super().__init__()
        self.top_k, self.float32 = config.num_experts_per_tok, config.float32_router
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = torch.float32 if self.float32 else hidden_states.dtype
        router_logits = nn.functional.linear(hidden_states.to(dtype), self.weight.to(dtype))  # (tokens, experts)
        probabilities = router_logits.softmax(dim=-1, dtype=torch.float32)
        top_k_weights, top_k_index = probabilities.topk(self.top_k, dim=-1)  # (tokens, k)
        return router_logits, top_k_weights.to(hidden_states.dtype), top_k_index


class Grok1MoE(nn.Module):
    """A MoE block of routed experts, all of them gated FFNs."""

    def __init__(self, config: Grok1Config):
        super().__init__()
        self.gate = Grok1TopKRouter(config)
        self.experts = MixtralExperts(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, top_k_weights, top_k_index = self.gate(tokens)
        return self.experts(tokens, top_k_index, top_k_weights).view_as(hidden_states)


class Grok1Attention(Gemma2Attention):
    """Attention with capped logits, scaled by `attn_output_multiplier` alone."""

    def __init__(self, config: Grok1Config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.scaling = config.attn_output_multiplier


class Grok1DecoderLayer(Gemma2DecoderLayer):
    """A decoder layer with norms before and after both attention and MoE block."""

    def __init__(self, config: Grok1Config, layer_idx: int):
        GradientCheckpointingLayer.__init__(self)
        self.self_attn = Grok1Attention(config, layer_idx)
        self.mlp = Grok1MoE(config)
        self.input_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_feedforward_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class ScaledOutput(nn.Linear):
    """The language model's head: logits times `output_multiplier_scale`."""

    def __init__(self, config: Grok1Config):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.scale = config.output_multiplier_scale

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * self.scale


class Grok1PreTrainedModel(MixtralPreTrainedModel):
    """Declarations that transformers requires: the configuration class, and the modules that it records and moves."""

    config_class = Grok1Config
    config: Grok1Config
    _no_split_modules: ClassVar[list[str]] = ["Grok1DecoderLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False  # torch's fused attention knows no cap
    _can_set_experts_implementation_cached_value = True  # transformers looks for its decorator in this file's source
    _can_record_outputs: ClassVar[dict] = {
        "router_logits": OutputRecorder(Grok1TopKRouter, index=0),
        "hidden_states": Grok1DecoderLayer,
        "attentions": Grok1Attention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Grok1TopKRouter):
            init.normal_(module.weight, std=self.config.initializer_range)


class Grok1Model(Grok1PreTrainedModel, MixtralModel):
    """The decoder; its forward is Mixtral's."""

    def __init__(self, config: Grok1Config):
        PreTrainedModel.__init__(self, config)
        if config.float32_router:
            self._keep_in_fp32_modules_strict = {r"mlp\.gate\."}
        self.embed_tokens = BartScaledWordEmbedding(
            config.vocab_size, config.hidden_size, None, embed_scale=config.embedding_multiplier_scale
        )
        self.layers = nn.ModuleList(Grok1DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Olmo2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Returns the outputs of Mixtral's forward, with pad tokens masked if the configuration requires it.

        With `mask_pad_tokens`, pad tokens among `input_ids` are masked. The attention mask must mask those that are in
        the cache already (`generate` takes care of this).
        """
        if self.config.mask_pad_tokens and input_ids is not None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            attention_mask = without_pad(self.config, input_ids, attention_mask, past)
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )


class Grok1ForCausalLM(Grok1PreTrainedModel, MixtralForCausalLM):
    """The language model; its forward is Mixtral's."""

    def __init__(self, config: Grok1Config):
        PreTrainedModel.__init__(self, config)
        self.model = Grok1Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = ScaledOutput(config)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.num_experts, config.num_experts_per_tok
        self.post_init()

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepares inputs as for every model, but keeps pad tokens masked once they are in the cache."""
        if self.config.mask_pad_tokens:
            attention_mask = without_pad(self.config, input_ids, attention_mask, 0)
        return super().prepare_inputs_for_generation(input_ids, *args, attention_mask=attention_mask, **kwargs)


def without_pad(
    config: Grok1Config, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int
) -> torch.Tensor:
    """Returns the mask (batch, past + tokens) without pad tokens of `input_ids` (batch, tokens); keeps 4-D masks."""
    if attention_mask is not None and attention_mask.ndim != 2:
        return attention_mask
    not_pad = nn.functional.pad(input_ids != config.pad_token_id, (past, 0), value=True)
    return not_pad if attention_mask is None else not_pad & attention_mask.bool()
