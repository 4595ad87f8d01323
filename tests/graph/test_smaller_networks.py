"""An oracle that knows nothing of groups: the cut weights, loaded into the library's own smaller network."""

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from bench import coverage_row as rows
from bench.networks import settled
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.surgery import cut

transformers = pytest.importorskip("transformers")

IDS = {"input_ids": torch.arange(2 * 9).view(2, 9) % 50}
PLAIN = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "use_cache": False}
STAGES = {"num_labels": 7, "embedding_size": 16, "depths": [1, 2], "layer_type": "basic"}
CASES = {
    "llama": (
        "LlamaForCausalLM",
        {**PLAIN, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
        {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3},
        IDS,
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {**PLAIN, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
        {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3},
        IDS,
    ),
    "bert": (
        "BertForMaskedLM",
        {**PLAIN, "num_attention_heads": 4, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0},
        {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3},
        IDS,
    ),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 16, "patch_size": 4, "num_labels": 7},
        {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 3},
        {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {**STAGES, "hidden_sizes": [16, 32]},
        {"embedding_size": 12, "hidden_sizes": [12, 24]},
        {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"num_labels": 7, "hidden_sizes": [16, 24], "depths": [1, 1], "num_stages": 2},
        {"hidden_sizes": [12, 18]},
        {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
    ),
}


def built(name: str, settings: dict) -> nn.Module:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return settled(kind(kind.config_class(**settings))).eval()


def three_quarters(found: tuple) -> dict[str, list[int]]:
    """Three of four units of every group, at random."""
    random = torch.Generator().manual_seed(3)
    return {
        group.name: sorted(torch.randperm(group.size, generator=random)[: group.size * 3 // 4].tolist())
        for group in found
        if group.reason is None and group.size >= 4
    }


@pytest.mark.parametrize("case", CASES)
def test_the_cut_weights_fit_the_smaller_network_and_give_the_same(case):
    name, settings, smaller, example = CASES[case]
    graph = capture(built(name, settings), example)
    left = cut(graph, three_quarters(groups(graph)))
    model = built(name, {**settings, **smaller})
    mine = dict(left.tensors())
    wanted = {k: v for k, v in model.state_dict().items() if k in mine}
    assert {k: tuple(v.shape) for k, v in wanted.items()} == {k: tuple(mine[k].shape) for k in wanted}
    missing = model.load_state_dict({k: v.detach() for k, v in mine.items() if k in wanted}, strict=False)
    tied = {k for k in missing.missing_keys if "lm_head" in k or "decoder" in k}
    assert set(missing.missing_keys) == tied
    model.tie_weights()
    with torch.no_grad():
        expected = [t for t in pytree.tree_leaves(model(**example)) if isinstance(t, torch.Tensor)]
        found = rows.tensors(left(*rows.flat(example)))
    assert rows.difference([t.numpy() for t in found], [t.numpy() for t in expected]) < 1e-5
