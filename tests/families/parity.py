"""What a module computes, beside what the original code computed: shared by the tests of the families."""

import torch


def run(module, input_ids, **kwargs):
    """The module's outputs, and by layer what goes into and comes out of its MoE block, router and experts."""
    seen, handles = {}, []

    def keep(name, value):
        seen[name] = value.detach().clone()

    def watch(index, block):
        def on_block(_, args, output):
            keep(f"layers.{index}.moe_input", args[0].flatten(0, 1))
            keep(f"layers.{index}.moe_output", output.flatten(0, 1))

        def on_router(_, args, output):
            keep(f"layers.{index}.router_logits", output[0])

        def on_experts(_, args, output):
            keep(f"layers.{index}.experts_input", args[0])
            keep(f"layers.{index}.topk_index", args[1])
            keep(f"layers.{index}.topk_weight", args[2])

        handles.append(block.register_forward_hook(on_block))
        handles.append(block.gate.register_forward_hook(on_router))
        handles.append(block.experts.register_forward_hook(on_experts))
        if getattr(block, "shared_experts", None) is not None:
            shared = f"layers.{index}.shared_output"
            handles.append(block.shared_experts.register_forward_hook(lambda *hook: keep(shared, hook[2])))

    keep("hidden_states.0", module.get_input_embeddings()(input_ids))
    for index, layer in enumerate(module.model.layers):
        name = f"hidden_states.{index + 1}"
        handles.append(layer.register_forward_hook(lambda *hook, name=name: keep(name, hook[2])))
        if hasattr(layer.mlp, "experts"):
            watch(index, layer.mlp)
    with torch.no_grad():
        keep("logits", module(input_ids, **kwargs).logits)
        for handle in handles:
            handle.remove()
        for index, layer in enumerate(module.model.layers):
            if hasattr(layer.mlp, "experts"):
                inputs = seen[f"layers.{index}.experts_input"]
                experts = seen[f"layers.{index}.router_logits"].shape[-1]
                keep(f"layers.{index}.expert_outputs", all_outputs(layer.mlp.experts, inputs, experts))
    return seen


def all_outputs(experts, inputs, count):
    """Every expert's unweighted output on every row, (experts, rows, width)."""
    weight = inputs.new_ones(len(inputs), 1)
    index = torch.zeros(len(inputs), 1, dtype=torch.long)
    return torch.stack([experts(inputs, index + expert, weight) for expert in range(count)])


ROUNDING = 2e-6  # relative, in float32: sixteen units in the last place, which differ from processor to processor


def assert_equal(seen, expected, tolerance, names=None):
    """Each expected tensor is what was seen, within the absolute tolerance and rounding; indices exactly."""
    for name in names or expected:
        if name == "input_ids":
            continue
        value = expected[name]
        if value.dtype.is_floating_point:
            torch.testing.assert_close(
                seen[name], value, atol=tolerance, rtol=ROUNDING, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert torch.equal(seen[name], value), name
