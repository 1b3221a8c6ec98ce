"""MH-MoE (arXiv 2404.15045) and X-MoE (arXiv 2204.09179): checkpoints that fairseq writes, `model_type` "mh_moe".

A MoE layer of MH-MoE splits every token into `mhmoe_heads_number` sub-tokens and routes each separately. X-MoE is the
model with one sub-token and the low-rank cosine router; its `router_weight` is the router's last matrix, (E, rank).

moe_probe ignores fairseq's option for capacity at evaluation, because dropping makes outputs depend on the batch. To
apply it, pass `load(..., config={"eval_capacity_fraction": -1})` (the capacity of training), or a share of the
sub-tokens.
"""

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from moe_probe.families.mh_moe.modeling import MhMoeForCausalLM
from moe_probe.families.mh_moe.published import published, recognised
from moe_probe.families.registered import Registered

_EXPERT = ".mlp.experts.*"
CONVERSION = [
    WeightConverter(
        [f"{_EXPERT}.gate_proj.{kind}", f"{_EXPERT}.up_proj.{kind}"],
        f".mlp.experts.gate_up_proj{suffix}",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    )
    for kind, suffix in (("weight", ""), ("bias", "_bias"))
] + [
    WeightConverter(f"{_EXPERT}.{name}.{kind}", f".mlp.experts.{ours}{suffix}", operations=[MergeModulelist(dim=0)])
    for name, ours in (("fc1", "up_proj"), ("down_proj", "down_proj"))
    for kind, suffix in (("weight", ""), ("bias", "_bias"))
]

FAMILY = Registered(
    name="mh_moe",
    model_class=MhMoeForCausalLM,
    conversion=CONVERSION,
    published=published,
    recognised=recognised,
)
