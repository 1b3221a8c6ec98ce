"""Configuration of DeepSeekMoE v1."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DeepseekConfig(PreTrainedConfig):
    """The published fields of a `deepseek` model; defaults are those of deepseek-ai/deepseek-moe-16b-base.

    Attributes:
        intermediate_size: neurons of a dense layer's FFN.
        moe_intermediate_size: neurons of one expert.
        n_routed_experts: routed experts of a MoE layer; None for a dense model.
        n_shared_experts: experts that every token uses, stored as one FFN; None if there are none.
        first_k_dense_replace, moe_layer_freq: layer l is a MoE layer if l >= the former and l is a multiple of the
            latter.
        norm_topk_prob: whether to divide the k weights by their sum.

    Examples:
        >>> DeepseekConfig(num_hidden_layers=2).is_moe_layer(0)
        False
    """

    model_type = "deepseek"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "n_routed_experts"}
    default_theta = 10000.0

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    n_routed_experts: int | None = 64
    n_shared_experts: int | None = 2
    num_experts_per_tok: int | None = 6
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    attention_dropout: float | int = 0.0
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    tie_word_embeddings: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.n_routed_experts and not self.num_experts_per_tok:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok} with {self.n_routed_experts} experts")
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func is {self.scoring_func!r}; DeepSeekMoE v1 knows 'softmax' only")
        super().__post_init__(**kwargs)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer `layer` is a MoE layer."""
        return bool(self.n_routed_experts) and layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0
