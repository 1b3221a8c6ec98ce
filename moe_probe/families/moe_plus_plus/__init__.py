"""MoE++ (arXiv 2410.07348): Chat-UniVi/MoE-Plus-Plus-7B, `model_type` "MoE++".

Experts without an FFN (kinds `constant`, `copy`, `zero`) are routed to like the others. A layer's router adds to its
own logits a linear map of the previous layer's: the gating residual. Router logits, here as in the original, include
it; what a layer's router says by itself is the output of its submodule `wg`. `config.moe_gate_residual = False` removes
it from a model (also as `load(..., config={"moe_gate_residual": False})`): an intervention.

`router_weight` is (E, d), or (E, 8 E) where the gate has two layers (`moe_2layer_gate`): its last one. Models with
`moe_expert_interval` above 1 are refused. The remote code that `config.json` names is never followed.
"""

from moe_probe.families.moe_plus_plus.conversion import CONVERSION, published
from moe_probe.families.moe_plus_plus.modeling import MoePlusPlusForCausalLM
from moe_probe.families.registered import Registered

FAMILY = Registered(
    name="moe_plus_plus",
    model_class=MoePlusPlusForCausalLM,
    conversion=CONVERSION,
    published=published,
)
