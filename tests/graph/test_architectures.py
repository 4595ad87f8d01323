"""Everything that graph/ does, on small random networks of the transformers library."""

import os

import pytest
import torch

from trimtab.graph.capture import capture
from trimtab.graph.count import total
from trimtab.graph.fuse import for_inference
from trimtab.graph.modes import set_mode
from trimtab.graph.module import module
from trimtab.graph.save import load, save

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
VISION = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
HALVES = {
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 64))},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    "d_model": 32,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}

NETWORKS = {
    "Bert": ("ForSequenceClassification", TEXT),
    "DistilBert": (
        "ForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99},
    ),
    "Roberta": ("ForSequenceClassification", TEXT),
    "Albert": ("ForSequenceClassification", TEXT | {"embedding_size": 16}),
    "DebertaV2": ("ForSequenceClassification", TEXT),
    "Electra": ("ForSequenceClassification", TEXT | {"embedding_size": 16}),
    "MobileBert": ("ForSequenceClassification", TEXT | {"embedding_size": 32, "intra_bottleneck_size": 32}),
    "GPT2": ("LMHeadModel", GPT2),
    "OPT": ("ForCausalLM", TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "GPTNeoX": ("ForCausalLM", TEXT),
    "Llama": ("ForCausalLM", TEXT | {"num_key_value_heads": 2}),
    "Mistral": ("ForCausalLM", TEXT | {"num_key_value_heads": 2}),
    "Qwen2": ("ForCausalLM", TEXT | {"num_key_value_heads": 2}),
    "Qwen3": ("ForCausalLM", TEXT | {"num_key_value_heads": 2, "head_dim": 8}),
    "Gemma": ("ForCausalLM", TEXT | {"num_key_value_heads": 2, "head_dim": 8}),
    "Phi": ("ForCausalLM", TEXT),
    "Mamba": ("ForCausalLM", TEXT | {"state_size": 8}),
    "T5": (
        "ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
    ),
    "Bart": ("ForConditionalGeneration", HALVES),
    "Whisper": ("ForConditionalGeneration", HALVES | {"max_source_positions": 50}),
    "Wav2Vec2": (
        "ForCTC",
        TEXT
        | {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
    "ResNet": ("ForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "RegNet": (
        "ForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    ),
    "ConvNext": (
        "ForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "drop_path_rate": 0.2},
    ),
    "ConvNextV2": ("ForImageClassification", {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}),
    "MobileNetV1": ("ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 4}),
    "MobileNetV2": ("ForImageClassification", {"depth_multiplier": 0.25}),
    "MobileViT": (
        "ForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32]},
    ),
    "EfficientNet": (
        "ForImageClassification",
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    ),
    "Bit": (
        "ForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4},
    ),
    "Levit": (
        "ForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
        | {"key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2], [""]]},
    ),
    "PoolFormer": ("ForImageClassification", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}),
    "Segformer": (
        "ForImageClassification",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    ),
    "ViT": ("ForImageClassification", VISION),
    "DeiT": ("ForImageClassification", VISION),
    "Dinov2": ("ForImageClassification", VISION | {"drop_path_rate": 0.1}),
    "Swin": (
        "ForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "Swinv2": (
        "ForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "CLIPVision": ("ModelWithProjection", VISION),
}
EVALUATION_ONLY = {"Wav2Vec2": "layer drop"}


def network(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    suffix, settings = NETWORKS[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}{suffix}")(config)
    ids = torch.randint(3, 90, (3, 9))
    if suffix == "ForImageClassification" or name == "CLIPVision":
        size = 64 if name not in ("ViT", "DeiT", "Dinov2", "Swin", "Swinv2", "CLIPVision", "EfficientNet") else 32
        return model, {"pixel_values": torch.randn(3, 3, size, size)}
    if name == "Whisper":
        return model, {"input_features": torch.randn(3, 80, 100), "decoder_input_ids": ids}
    if name == "Wav2Vec2":
        return model, {"input_values": torch.randn(3, 2000)}
    if suffix == "ForConditionalGeneration":
        return model, {"input_ids": ids, "decoder_input_ids": ids}
    if suffix == "ForSequenceClassification":
        return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model, {"input_ids": ids}


@pytest.mark.parametrize("name", NETWORKS)
def test_capture_train_save_count_and_fuse(name, tmp_path):
    model, example = network(name)
    graph = capture(model, example)
    assert any("evaluation only" in note for note in graph.notes) == (name in EVALUATION_ONLY)
    assert not any("batch of one" in note for note in graph.notes)
    x = tuple(example.values())
    if name not in EVALUATION_ONLY:
        model.train()
        set_mode(graph, True)
        torch.manual_seed(3)
        expected = model(**example)[0]
        torch.manual_seed(3)
        torch.testing.assert_close(first(graph(*x)), expected, rtol=1e-5, atol=1e-5)
    model.eval()
    set_mode(graph, False)
    expected = model(**example)[0]
    save(graph, tmp_path)
    again = load(tmp_path)
    torch.testing.assert_close(first(again(*x)), expected, rtol=1e-4, atol=1e-4)
    small = for_inference(graph)
    torch.testing.assert_close(first(small(*x)), expected, rtol=1e-4, atol=1e-4)
    save(small, tmp_path, "small")
    # below the smallest normal number, where random weights lead this far down, kernels may flush to zero
    torch.testing.assert_close(first(load(tmp_path, "small")(*x)), first(small(*x)), rtol=0, atol=1.2e-38)
    whole = total(graph)
    assert whole.parameters == sum(p.numel() for p in graph.net.parameters())
    assert whole.macs > 0
    assert whole.peak_memory > 0
    model.load_state_dict(module(again).state_dict(), strict=False)


def first(out):
    return out if isinstance(out, torch.Tensor) else out[0]
