"""Configuration of MH-MoE and X-MoE."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MhMoeConfig(PreTrainedConfig):
    """Configuration of a decoder with multi-head mixtures of experts; X-MoE has one head and the cosine router.

    Attributes:
        intermediate_size, moe_intermediate_size: neurons of a dense FFN and of an expert.
        moe_freq: layer l is a MoE layer if l + 1 is a multiple of it; 0 for a dense model.
        mhmoe_heads_number: sub-tokens per token; with 1, tokens are not split and head and merge layers are absent.
        router: `softmax`, or `cosine` (X-MoE: of rank `router_rank`, arXiv 2204.09179).
        norm_topk_prob: whether to divide the k weights by their sum (torchscale's own X-MoE with two experts).
        eval_capacity_fraction: sub-tokens that an expert takes: None for all (no dropping); above 0, that share of
            them; -1 for the capacity of training, k * ceil(rows / experts). Dropping makes outputs depend on the batch.
        gated: whether an FFN has a gate projection.
        rms_norm: RMSNorm, else LayerNorm.
        mask_pad_tokens: whether to mask keys whose token is `pad_token_id` if no attention mask is passed.
        scale_embedding: whether to multiply embeddings by the square root of the hidden size.
    """

    model_type = "mh_moe"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts"}
    default_theta = 10000.0

    vocab_size: int = 32002
    hidden_size: int = 768
    intermediate_size: int = 3072
    moe_intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    num_experts: int = 32
    num_experts_per_tok: int = 2
    moe_freq: int = 2
    mhmoe_heads_number: int = 4
    router: str = "softmax"
    router_rank: int = 16
    norm_topk_prob: bool = False
    eval_capacity_fraction: float | int | None = None
    hidden_act: str = "silu"
    gated: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm: bool = True
    mask_pad_tokens: bool = False
    scale_embedding: bool = False
    attention_dropout: float | int = 0.0
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    sliding_window: int | None = None
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.hidden_size % self.mhmoe_heads_number:
            raise ValueError(f"{self.mhmoe_heads_number} sub-tokens do not divide a width of {self.hidden_size}")
        if self.router not in ("softmax", "cosine"):
            raise ValueError(f"router is {self.router!r}; there are 'softmax' and 'cosine'")
        super().__post_init__(**kwargs)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer `layer` is a MoE layer."""
        return self.moe_freq > 0 and (layer + 1) % self.moe_freq == 0
