"""Vision networks of the `transformers` library with small random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as t
from torch import nn

Network = tuple[nn.Module, Any]

PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PATCHES = {**PLAIN, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1]}


def image(name: str, size: int = 32, kind: str = "ForImageClassification", **settings: Any) -> Callable[[], Network]:
    """A builder of an image classifier of the given family, on two images of size x size pixels."""

    def build() -> Network:
        config = getattr(t, f"{name}Config")(**{"num_labels": 10, **settings})
        return getattr(t, f"{name}{kind}")(config), {"pixel_values": torch.randn(2, 3, size, size)}

    return build


def efficientnet() -> Network:
    """EfficientNet of five stages with squeeze and excitation."""
    config = t.EfficientNetConfig(
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=1.0,
        hidden_dim=320,
        in_channels=[32, 64, 96, 128],
        out_channels=[64, 96, 128, 192],
        kernel_sizes=[3, 3, 5, 3],
        strides=[1, 2, 2, 1],
        num_block_repeats=[1, 2, 2, 1],
        expand_ratios=[1, 4, 4, 4],
        depthwise_padding=[],
        num_labels=10,
    )
    return t.EfficientNetForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def clip() -> Network:
    """CLIP: an image and a text tower, compared by cosine."""
    text = {**PLAIN, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    config = t.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=32)
    ids = torch.randint(3, 97, (2, 10))
    ids[:, -1] = 98
    example = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32), "attention_mask": torch.ones_like(ids)}
    return Towers(t.CLIPModel(config)), example


class Towers(nn.Module):
    """Both towers' embeddings; the library's logits compare every image with every text of the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, pixel_values: Any, attention_mask: Any) -> Mapping[str, torch.Tensor]:
        out = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return {"image": out.image_embeds, "text": out.text_embeds}


SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [4, 4], "window_size": 4}
CONVNEXT = {**STAGES, "hidden_sizes": [16, 24, 32, 48]}

VISION: dict[str, Callable[[], Network]] = {
    "resnet": image("ResNet", embedding_size=16, **STAGES, layer_type="bottleneck"),
    "resnet_basic": image("ResNet", embedding_size=16, **STAGES, layer_type="basic"),
    "regnet": image("RegNet", embedding_size=16, **STAGES, groups_width=8, layer_type="y"),
    "regnet_x": image("RegNet", embedding_size=16, **STAGES, groups_width=8, layer_type="x"),
    "convnext": image("ConvNext", **CONVNEXT),
    "convnextv2": image("ConvNextV2", **CONVNEXT),
    "mobilenet_v1": image("MobileNetV1", depth_multiplier=0.25, min_depth=8),
    "mobilenet_v2": image("MobileNetV2", depth_multiplier=0.35),
    "mobilevit": image(
        "MobileViT",
        image_size=32,
        patch_size=2,
        hidden_sizes=[32, 40, 48],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 96],
        expand_ratio=2.0,
    ),
    "mobilevitv2": image(
        "MobileViTV2", size=64, image_size=64, patch_size=2, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]
    ),
    "efficientnet": efficientnet,
    "bit": image("Bit", embedding_size=16, **STAGES, layer_type="preactivation", num_groups=4),
    "levit": image(
        "Levit",
        size=64,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[4, 6, 8],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        drop_path_rate=0,
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
    ),
    "poolformer": image("PoolFormer", hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1]),
    "segformer": image(
        "Segformer",
        kind="ForSemanticSegmentation",
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        num_attention_heads=[2, 3, 4, 6],
        decoder_hidden_size=32,
    ),
    "vit": image("ViT", **PATCHES),
    "deit": image("DeiT", **PATCHES),
    "beit": image("Beit", **PATCHES),
    "swin": image("Swin", **SWIN),
    "swinv2": image("Swinv2", **SWIN),
    "dinov2": image("Dinov2", **PATCHES, mlp_ratio=2),
    "focalnet": image(
        "FocalNet", image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], focal_levels=[2, 2], focal_windows=[3, 3]
    ),
    "pvt_v2": image(
        "PvtV2",
        image_size=32,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        num_attention_heads=[2, 3, 4, 6],
        sr_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "hgnet_v2": image(
        "HGNetV2",
        stem_channels=[3, 8, 16],
        embedding_size=16,
        hidden_sizes=[32, 48],
        depths=[1, 1],
        stage_in_channels=[16, 32],
        stage_mid_channels=[8, 16],
        stage_out_channels=[32, 48],
        stage_num_blocks=[1, 1],
        stage_downsample=[False, True],
        stage_light_block=[False, True],
        stage_kernel_size=[3, 5],
        stage_numb_of_layers=[3, 3],
    ),
    "clip": clip,
}
