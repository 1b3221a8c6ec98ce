"""Step-3.5-Flash: the language model of transformers' Step3p7 with a head; transformers has it only with a tower.

Keys are those of `step3p7` in transformers' conversion mapping, without the prefix that the tower requires.
"""

from __future__ import annotations

from torch import nn
from transformers import GenerationMixin
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7PreTrainedModel, Step3p7TextModel

from moe_probe.families.registered import Registered


class Step3p5ForCausalLM(Step3p7PreTrainedModel, GenerationMixin):
    """The language model; its forward returns logits and the outputs of the decoder."""

    config_class = Step3p7TextConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Step3p7TextConfig):
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, logits_to_keep=0, **kwargs) -> MoeCausalLMOutputWithPast:
        """Returns the logits of every position, or of the last `logits_to_keep` positions."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        hidden = outputs.last_hidden_state
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return MoeCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=getattr(outputs, "router_logits", None),
        )


CONVERSION = [
    WeightRenaming(r"\.moe\.gate\.weight", r"\.mlp\.gate\.weight"),
    WeightRenaming(r"\.moe\.router_bias", r"\.mlp\.gate\.e_score_correction_bias"),
    WeightRenaming(r"\.moe\.down_proj\.weight", r"\.mlp\.experts\.down_proj"),
    WeightRenaming(r"\.share_expert\.", r"\.mlp\.shared_experts\."),
    WeightConverter(
        [".moe.gate_proj.weight", ".moe.up_proj.weight"], ".mlp.experts.gate_up_proj", operations=[Concatenate(dim=1)]
    ),
]

FAMILY = Registered(name="step3p5", model_class=Step3p5ForCausalLM, conversion=CONVERSION)
