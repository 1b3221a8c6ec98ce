"""Routing is seen while a model writes, prompt and generated tokens apart."""

import numpy as np
import pytest
import torch
from conftest import FIXTURES

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import InputError

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.mark.parametrize("family", ["mixtral", "deepseek", "moe_plus_plus"])
def test_generated_tokens_route_as_in_one_pass_over_the_whole_text(family):
    model = moe_probe.load(FIXTURES / family / "checkpoint")
    found = dynamic.generate(model, PROMPTS, [dynamic.GateChoices(), dynamic.OutputNorms()], max_new_tokens=4)
    choices = found["gate_choices"]
    ids = [choices.token_id.values[choices.document == number].tolist() for number in range(len(PROMPTS))]
    whole = dynamic.run(model, ids, [dynamic.GateChoices(), dynamic.OutputNorms()], progress=False)
    np.testing.assert_allclose(choices.weight, whole["gate_choices"].weight, atol=1e-5)
    np.testing.assert_allclose(found["output_norms"].norm, whole["output_norms"].norm, atol=1e-5, rtol=1e-5)


def test_prompt_and_generated_tokens_are_told_apart():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    found = dynamic.generate(model, PROMPTS, [dynamic.GateChoices(), dynamic.ExpertLoad()], max_new_tokens=4)
    label = found["gate_choices"].label
    for number, prompt in enumerate(PROMPTS):
        written = label.values[label.document == number].tolist()
        assert written == ["prompt"] * len(prompt) + ["generated"] * 3
    load = found["expert_load"]
    assert load.label.values.tolist() == ["generated", "prompt"]
    generated = found["gate_choices"].weight.values[:, label.values == "generated"] > 0
    counts = generated.sum(1)
    np.testing.assert_allclose(load.label_share.sel(label="generated"), counts / counts.sum(1, keepdims=True))


def test_the_text_is_what_the_model_writes_by_itself():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    ids = torch.tensor([PROMPTS[0]])
    written = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    found = dynamic.generate(model, PROMPTS[:1], [dynamic.GateChoices()], max_new_tokens=4)
    assert found["gate_choices"].token_id.values.tolist() == written[0, :-1].tolist()


def test_what_cannot_be_told_apart_is_refused():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    with pytest.raises(InputError, match="one sequence at a time"):
        dynamic.generate(model, PROMPTS, [dynamic.GateChoices()], num_beams=2)
    with pytest.raises(InputError, match="needs a dense model"):
        dynamic.generate(model, PROMPTS, [dynamic.OutputSimilarity(baseline=True)])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"do_sampel": True}, "no option of generate 'do_sampel'; did you mean 'do_sample'"),
        ({"do_sample": True, "temperature": -1.0}, "does not take do_sample=True, temperature=-1.0"),
        ({"top_k": object()}, "top_k is an object; pass a value that transformers"),
        ({"max_length": 2}, "does not take max_length=2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; pass a whole number from 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True; pass a whole number"),
    ],
)
def test_what_generate_does_not_take_is_said(options, sentence):
    with pytest.raises(InputError, match=sentence):
        dynamic.generate("ckpt/tiny-mixtral", [[4, 5, 6, 7]], "gate_choices", progress=False, **options)
