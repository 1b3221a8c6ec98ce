"""MoE++ (arXiv 2410.07348): Chat-UniVi/MoE-Plus-Plus-7B, `model_type` "MoE++".

The router also chooses experts without an FFN (kinds `constant`, `copy`, `zero`). It adds a linear map of the previous
layer's logits to its own: the gating residual. Router logits include it, as in the original; the router's own logits
are the output of its submodule `wg`. `config.moe_gate_residual = False` removes it from a model, which is an
intervention (also as `load(..., config={"moe_gate_residual": False})`).

`router_weight` is (E, d); if the gate has two layers (`moe_2layer_gate`), it is the last one, (E, 8 E). Models with
`moe_expert_interval` above 1 raise an error. Remote code that `config.json` names never runs.
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
