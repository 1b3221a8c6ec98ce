"""Grok-1, `model_type` "grok-1": xai-org/grok-1 as released, and its PyTorch ports.

The release (numbered pickles, see `checkpoint/formats/grok.py`) opens with the hyperparameters of its `run.py`, of a
`model_config.json`, or of options of `load`. It computes the tanh approximation of gelu, masks pad tokens by itself and
keeps its router in float32. The ports hpcai-tech/grok-1 and keyfan/grok-1-hf compute the exact gelu unless their
`config.json` states another, and do not mask pad tokens. Remote code that a port's `config.json` names never runs.
"""

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from moe_probe.families.grok1.modeling import Grok1ForCausalLM
from moe_probe.families.grok1.published import published, recognised
from moe_probe.families.registered import Registered

CONVERSION = [
    WeightRenaming(r"model\.norm\.scale", r"model\.norm\.weight"),
    WeightRenaming(r"\.attn\.", r"\.self_attn\."),
    WeightRenaming(r"\.moe_block\.", r"\.mlp\."),
    WeightRenaming(r"\.pre_attn_norm\.scale", r"\.input_layernorm\.weight"),
    WeightRenaming(r"\.post_attn_norm\.scale", r"\.post_attention_layernorm\.weight"),
    WeightRenaming(r"\.pre_moe_norm\.scale", r"\.pre_feedforward_layernorm\.weight"),
    WeightRenaming(r"\.post_moe_norm\.scale", r"\.post_feedforward_layernorm\.weight"),
    WeightConverter(
        [".experts.*.linear.weight", ".experts.*.linear_v.weight"],
        ".experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    WeightConverter(".experts.*.linear_1.weight", ".experts.down_proj", operations=[MergeModulelist(dim=0)]),
]

FAMILY = Registered(
    name="grok1",
    model_class=Grok1ForCausalLM,
    conversion=CONVERSION,
    published=published,
    recognised=recognised,
)
