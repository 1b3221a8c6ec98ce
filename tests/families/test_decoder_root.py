"""Layers are the language model's, whatever else a module has; a mixture of experts that is not known is none."""

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    SiglipVisionConfig,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

import moe_probe
from moe_probe.errors import UnknownModel
from moe_probe.facts import facts
from moe_probe.forward.sites import decoder_layers

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}


def seen(text):
    """A model with a vision tower as deep as its decoder, whose FFNs are of another width."""
    vision = SiglipVisionConfig(**{**SIZES, "intermediate_size": 56}, image_size=16, patch_size=8)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    return LlavaForConditionalGeneration(config).eval()


def dense():
    return seen(MistralConfig(**SIZES, vocab_size=64, num_key_value_heads=2))


class LooksLikeAnFfn(nn.Module):
    """A tower's FFN with the names of a decoder's."""

    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(32, 56), nn.Linear(56, 32)


def test_the_ffns_of_a_tower_are_not_the_decoders(tmp_path):
    module = dense()
    for layer in module.model.vision_tower.encoder.layers:
        layer.mlp = LooksLikeAnFfn()
    model = moe_probe.load(module)
    assert not model.moe_layers
    for index, layer in enumerate(module.model.language_model.layers):
        assert model.layer(index).intermediate_size == 40
        for projection in ("up", "gate", "down"):
            weight = getattr(layer.mlp, f"{projection}_proj").weight
            assert torch.equal(model.expert_weight(index, "F", projection), weight)
    decoder, layers = decoder_layers(module)
    assert decoder is module.model.language_model
    assert layers is module.model.language_model.layers


def test_the_experts_of_a_tower_are_not_the_decoders():
    module = dense()
    config = transformers.MixtralConfig(**SIZES, vocab_size=64, num_key_value_heads=2, num_local_experts=4)
    sparse = transformers.MixtralForCausalLM(config).model.layers
    for layer, other in zip(module.model.vision_tower.encoder.layers, sparse, strict=True):
        layer.mlp = other.mlp
    with pytest.raises(UnknownModel, match="vision_tower"):
        moe_probe.load(module)
    for layer, other in zip(module.model.language_model.layers, sparse, strict=True):
        layer.mlp = other.mlp
    model = moe_probe.load(module)
    assert model.moe_layers == (0, 1, 2)
    assert model._architecture.blocks[1].startswith("model.language_model.layers.1")


def test_a_tower_is_counted_apart_on_disk_and_live(tmp_path):
    module = dense()
    module.save_pretrained(tmp_path)
    disk, live = moe_probe.load(tmp_path), moe_probe.load(module)
    language = sum(p.numel() for p in module.model.language_model.parameters()) + module.lm_head.weight.numel()
    tower = sum(p.numel() for p in module.model.vision_tower.parameters())
    assert disk.counts == live.counts
    assert disk.counts.language == language
    assert disk.counts.apart["vision_tower"] == tower
    lines = dict(facts(disk))
    assert lines["parameters"].startswith(f"{language:,} in all, {language:,} active")
    assert f"{tower:,} in vision_tower" in lines["also on disk"]


def test_layers_that_predict_further_ahead_are_counted_apart(tmp_path):
    from safetensors.torch import load_file, save_file

    config = transformers.DeepseekV3Config(
        **SIZES, vocab_size=64, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, first_k_dense_replace=1,
    )  # fmt: skip
    module = transformers.DeepseekV3ForCausalLM(config)
    module.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    extra = {key.replace("layers.2", "layers.3"): value.clone() for key, value in tensors.items() if "layers.2" in key}
    save_file(tensors | extra, path, metadata={"format": "pt"})
    disk, live = moe_probe.load(tmp_path), moe_probe.load(module)
    assert disk.counts == live.counts
    assert disk.counts.language == sum(p.numel() for p in module.parameters())
    assert dict(facts(disk))["parameters"] == dict(facts(live))["parameters"]
    assert (
        f"{sum(t.numel() for t in extra.values()):,} that the module does not use" in dict(facts(disk))["also on disk"]
    )


def switch():
    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=4, num_heads=4, num_experts=4,
            num_sparse_encoder_layers=2, num_sparse_decoder_layers=2,
        )
    )  # fmt: skip


def nllb():
    return NllbMoeForConditionalGeneration(
        NllbMoeConfig(
            vocab_size=64, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, num_experts=4, encoder_sparse_step=2,
            decoder_sparse_step=2,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [switch, nllb])
def test_an_unknown_mixture_of_experts_is_refused_by_name_live_and_on_disk(make, tmp_path):
    module = make()
    module.save_pretrained(tmp_path)
    for source in (module, tmp_path):
        with pytest.raises(UnknownModel, match="SparseMLP") as caught:
            moe_probe.load(source)
        assert "dense" not in str(caught.value)
