"""Fusing: the same values to 1e-5, names kept, and nothing folded that must not be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.test_capture import ResNet
from tests.graph.test_modes import DropPath, Noise
from trimtab.graph.capture import capture
from trimtab.graph.fuse import fold_batch_norm, fold_constants, for_inference
from trimtab.graph.modes import set_mode
from trimtab.graph.save import load, save
from trimtab.graph.simplify import simplify

ATEN = torch.ops.aten


def stirred(model: nn.Module) -> nn.Module:
    """Statistics and scales as training leaves them: no zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def close(graph, model, x):
    expected = model.eval()(x)
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), (2, 3, 8, 8)),
        (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-2), (2, 3, 8, 8)),
        (nn.Conv2d(4, 8, 3, padding="same", groups=4), nn.BatchNorm2d(8, affine=False), (2, 4, 8, 8)),
        (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), (2, 3, 8)),
        (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 5)),
        (nn.Linear(5, 7), nn.BatchNorm1d(7), (3, 5)),
    ],
)
def test_a_batch_norm_is_folded_into_the_layer_before_it(layer, norm, shape):
    model, x = stirred(nn.Sequential(layer, norm)), torch.randn(shape)
    graph = capture(model, x)
    folded = fold_batch_norm(graph)
    close(folded, model, x)
    assert len(list(folded.nodes())) == 1
    assert sorted(folded.tensors()) == ["0.bias", "0.weight"]
    assert len(list(graph.nodes(ATEN.batch_norm.default))) == 1  # the argument is as it was
    close(graph, model, x)


def test_a_residual_network_is_folded_whole_and_saved(tmp_path):
    model, x = stirred(ResNet()), torch.randn(2, 3, 16, 16)
    folded = fold_batch_norm(capture(model, x))
    close(folded, model, x)
    assert not list(folded.nodes(ATEN.batch_norm.default, ATEN.add_.Tensor))
    assert "layers.0.conv1.bias" in folded.tensors()
    assert not [name for name in folded.tensors() if "bn" in name]
    save(folded, tmp_path)
    close(load(tmp_path), model, x)


def test_folded_weights_still_train():
    folded = fold_batch_norm(capture(ResNet(), torch.randn(2, 3, 16, 16)))
    folded(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in folded.net.parameters())


def test_what_must_not_be_folded_is_left():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.read, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.linear, self.third = nn.Linear(6, 6), nn.BatchNorm1d(4)
            self.own, self.fourth = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            x = self.first(self.twice(x)) + self.twice(x)  # a shared weight
            y = self.read(x)
            x = self.second(y) + y  # the norm is not the only reader
            x = self.fourth(self.own(x))  # the batch's own statistics
            return self.third(self.linear(x.flatten(1)[:, :24].unflatten(1, (4, 6))))  # a norm over another dimension

    model, x = stirred_all(Net()), torch.randn(3, 3, 4, 4)
    folded = fold_batch_norm(capture(model, x))
    assert len(list(folded.nodes(ATEN.batch_norm.default))) == 4
    close(folded, model, x)


def stirred_all(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
    return model.eval()


def test_a_frozen_weight_stays_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).requires_grad_(False)
    assert not any(p.requires_grad for p in fold_batch_norm(capture(model, torch.randn(2, 3, 4, 4))).net.parameters())


def test_weight_norm_and_ranges_are_computed_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x):
            return self.linear(x) * torch.arange(4) + torch.ones(4)

    model, x = Net(), torch.randn(2, 4)
    folded = fold_constants(capture(model, x))
    close(folded, model, x)
    assert [n.target for n in folded.nodes()] == [ATEN.linear.default, ATEN.mul.Tensor, ATEN.add.Tensor]
    assert not [name for name in folded.tensors() if name.endswith("original0")]


def test_what_changes_is_not_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            buffer = torch.zeros(4)
            buffer[1:3] = x.sum()  # written in place
            return x @ self.weight.t() + buffer + torch.rand(4) * 0

    model, x = Net(), torch.randn(2, 4)
    folded = fold_constants(capture(model, x))
    for _ in range(2):
        close(folded, model, x)
        x = x + 1
    targets = [n.target for n in folded.nodes()]
    assert ATEN.rand.default in targets
    assert ATEN.t.default in targets  # a view of a parameter costs nothing, and the parameter keeps its name
    assert next(iter(folded.net.state_dict())) == "weight"


def test_dropout_masks_noise_and_counters_disappear():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.3)
            self.a, self.b, self.c = DropPath("in place"), DropPath("floor"), DropPath("bernoulli")
            self.noise = Noise()

        def forward(self, x):
            return self.noise(self.c(self.b(self.a(self.drop(self.norm(x))))))

    model, x = Net(), torch.randn(3, 5, 8)
    graph = capture(model, x)
    small = simplify(graph)
    close(small, model, x)
    kinds = {str(n.target).split(".")[1] for n in small.nodes()}
    assert kinds <= {"batch_norm", "linear", "add", "sym_size", "reshape"}
    torch.manual_seed(0)
    assert not torch.allclose(set_mode(graph, True)(x), small(x))  # the argument still trains


def test_drop_path_that_divides_the_branch_disappears():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            if self.training:
                y = y.div(0.8) * (0.8 + torch.rand((x.shape[0], 1))).floor_()
            return x + y

    model, x = Net(), torch.randn(3, 8)
    small = simplify(capture(model, x))
    close(small, model, x)
    assert [n.target for n in small.nodes()] == [ATEN.linear.default, ATEN.add.Tensor]


def test_for_inference_does_all_of_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d()
            self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))

        def forward(self, x):
            return self.head(F.relu(self.drop(self.norm(self.conv(x)))).mean((2, 3)))

    model, x = stirred(Net()), torch.randn(2, 3, 8, 8)
    graph = for_inference(capture(model, x))
    close(graph, model, x)
    assert [n.target for n in graph.nodes()] == [
        *(ATEN.conv2d.default, ATEN.relu.default, ATEN.mean.dim, ATEN.linear.default)
    ]
