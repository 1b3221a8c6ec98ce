"""Configuration of MoE++."""

from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from moe_probe.errors import UnknownModel


@strict
class MoePlusPlusConfig(PreTrainedConfig):
    """The published fields of a `MoE++` model, with the defaults of the original's configuration class.

    The gate of Chat-UniVi/MoE-Plus-Plus-7B differs from the defaults; its `config.json` sets every field. Two constants
    of the original code are fields here: `num_experts_per_tok` and `num_constant_experts`. The published fields
    `hidden_act` and `sliding_window` have no effect, as in the original: experts use silu, attention has no window.

    Attributes:
        num_experts: list with one number, E: the experts of a layer, of all kinds.
        num_constant_experts: constant experts among them; one copy and one zero expert follow, all others are FFNs.
        intermediate_size: neurons of one FFN expert.
        moe_use_mixtral_gating: softmax over the chosen k, including the zero expert, instead of softmax over all.
        moe_2layer_gate: the gate is linear, tanh, linear, with 8 E hidden units, instead of one matrix.
        moe_use_logits_norm, moe_gate_norm_std: scale each token's logits to this standard deviation.
        moe_feature_no_mul_topk: do not multiply the experts' input by k; Mixtral gating never does.
        moe_gate_residual: False removes every gating residual from a trained model. This is an intervention: the model
            was trained with it, and the original has no such field. Every forward pass reads the field.
        moe_expert_interval: must be 1; the original fails on models with dense layers.

    Examples:
        >>> MoePlusPlusConfig(num_experts=[20]).num_ffn_experts
        16
    """

    model_type = "MoE++"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_ffn_experts"}  # what MixtralExperts stacks
    default_theta = 10000.0

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    num_experts: list[int] = field(default_factory=lambda: [32])
    num_constant_experts: int = 2
    num_experts_per_tok: int = 2
    moe_expert_interval: int = 1
    moe_use_mixtral_gating: bool = False
    moe_2layer_gate: bool = True
    moe_use_logits_norm: bool = False
    moe_gate_norm_std: float | int = 1.0
    moe_feature_no_mul_topk: bool = False
    moe_gate_residual: bool = True
    hidden_act: str = "silu"
    sliding_window: int | None = None
    attention_dropout: float | int = 0.0
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.moe_expert_interval != 1:
            raise UnknownModel(
                f"The configuration has moe_expert_interval {self.moe_expert_interval}, expected 1: what a dense layer "
                "does to the gating residual of MoE++ is undefined, and the original fails on such models as well."
            )
        if not self.num_experts or self.num_ffn_experts < 1:
            raise ValueError(
                f"num_experts is {self.num_experts}; {self.num_constant_experts} constant experts, a copy and a zero "
                "expert leave no FFN expert"
            )
        least = 1 if self.moe_use_mixtral_gating else 2  # the zero expert alone would be weighted 0 / 0
        if not least <= self.num_experts_per_tok <= self.num_experts[0]:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; expected {least} to {self.num_experts[0]}"
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.sliding_window = None
        scaling = kwargs.get("rope_scaling")
        if scaling and scaling.get("type") == "ntk":
            theta = kwargs.get("rope_theta", self.default_theta) * scaling["factor"]
            kwargs |= {"rope_theta": theta, "rope_scaling": None}
        super().__post_init__(**kwargs)
        rope_type = (self.rope_parameters or {})["rope_type"]
        if rope_type not in ("default", "linear", "dynamic"):
            raise ValueError(f"the rope type is {rope_type!r}; MoE++ supports linear, dynamic and ntk")

    @property
    def num_ffn_experts(self) -> int:
        """Experts with an FFN: all but the constant experts, the copy and the zero expert."""
        return self.num_experts[0] - self.num_constant_experts - 2

    @property
    def expert_kinds(self) -> tuple[str, ...]:
        """Kind of each expert, in router order."""
        return ("ffn",) * self.num_ffn_experts + ("constant",) * self.num_constant_experts + ("copy", "zero")
