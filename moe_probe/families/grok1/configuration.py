"""Configuration of Grok-1, for the original release and its PyTorch ports."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class Grok1Config(PreTrainedConfig):
    """The published fields of a `grok-1` model; defaults are those of hpcai-tech/grok-1.

    The release and its ports differ in the last three attributes below; the defaults are the values of the ports.

    Attributes:
        head_dim: width of a head; `hidden_size / num_attention_heads` by default.
        intermediate_size: neurons of one expert.
        embedding_multiplier_scale, output_multiplier_scale: factors on the embeddings and on the logits.
        attn_output_multiplier: factor on the attention logits, instead of `head_dim ** -0.5`.
        max_attn_value: c of `c * tanh(attention logit / c)`.
        hidden_act: `gelu`, the exact form, or `gelu_pytorch_tanh`, which the release computes.
        mask_pad_tokens: no token attends to a pad token, whatever the attention mask, as in the release.
        float32_router: the router computes in float32, whatever the model's dtype, as in the release.

    Examples:
        >>> Grok1Config().head_dim
        128
    """

    model_type = "grok-1"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # names of these fields in transformers' Mixtral and Gemma2 code
    attribute_map: ClassVar[dict[str, str]] = {
        "num_local_experts": "num_experts",
        "attn_logit_softcapping": "max_attn_value",
        "query_pre_attn_scalar": "head_dim",
    }
    default_theta = 10000.0

    vocab_size: int = 131072
    hidden_size: int = 6144
    intermediate_size: int = 32768
    num_hidden_layers: int = 64
    num_attention_heads: int = 48
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2
    embedding_multiplier_scale: float | int = 78.38367176906169
    output_multiplier_scale: float | int = 0.5773502691896257
    attn_output_multiplier: float | int = 0.08838834764831845
    max_attn_value: float | int = 30.0
    hidden_act: str = "gelu"
    mask_pad_tokens: bool = False
    float32_router: bool = False
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    sliding_window: int | None = None
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if not self.num_key_value_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"{self.num_attention_heads} query heads for {self.num_key_value_heads} key-value heads")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"{self.num_experts_per_tok} of {self.num_experts} experts per token")
        if self.mask_pad_tokens and self.pad_token_id is None:
            raise ValueError("mask_pad_tokens without a pad_token_id")
        super().__post_init__(**kwargs)
