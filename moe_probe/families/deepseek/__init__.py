"""DeepSeekMoE v1 (arXiv 2401.06066): deepseek-ai/deepseek-moe-16b-base, `model_type` "deepseek".

The shared experts are published as one FFN of `n_shared_experts * moe_intermediate_size` neurons. The first
`first_k_dense_replace` layers are dense. Remote code that `config.json` names never runs.
"""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from moe_probe.families.deepseek.modeling import DeepseekForCausalLM
from moe_probe.families.registered import Registered

FAMILY = Registered(
    name="deepseek",
    model_class=DeepseekForCausalLM,
    conversion=get_checkpoint_conversion_mapping("deepseek_v2") or [],  # the same keys below `mlp.experts`
)
